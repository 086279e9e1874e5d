"""Models, augmentations and stages from their names in a recipe.

Recipes are read from files of others, so ``model_factory`` restricts what MODULE:NAME can import.
"""

import functools
import importlib
import inspect
import itertools
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import nn

from fcifar import augment, entries, optim
from fcifar.errors import UsageError, did_you_mean, located, one_line, shown
from fcifar.models import MODELS, Model, freeze, from_factory
from fcifar.parallel import ALONE, Axis
from fcifar.recipes.checks import check_choice, refused
from fcifar.recipes.recipe import Recipe
from fcifar.step import Augment, Mix

T = TypeVar("T")

IMPORT = "FCIFAR_IMPORT"  # environment variable: modules that the command line imports first
SMALLEST_IMAGE, LARGEST_IMAGE = 16, 64  # pixels a side, of resolutions
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


class NotImportableError(UsageError):
    """The module or the name cannot be imported."""


def is_import(name: object) -> bool:
    """Whether a name has the form MODULE:NAME."""
    return isinstance(name, str) and ":" in name


def imported(what: str, text: str) -> tuple[Any, Any]:
    """Return the module and the object of MODULE:NAME.

    Args:
        what: its description in messages.

    Raises:
        UsageError: the text has another form.
        NotImportableError: the module or the name cannot be found.
    """
    path, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), *name.split("."))):
        raise refused(what, text, "MODULE:NAME, such as my_nets:Net")
    cannot = f"{what} {shown(text)} cannot be imported"
    if _package(path) in sys.stdlib_module_names:
        raise NotImportableError(f"{cannot}: {path} is a part of Python; name a module of yours")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # whatever its code does
        raise NotImportableError(
            f"{cannot} ({located(error)}); install its package, or run fcifar in the folder of "
            f"{_package(path)}"
        ) from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise NotImportableError(f"{cannot}: there is no {part} in {path}; correct the name")
        value = getattr(value, part)
    return module, value


def model_factory(name: str) -> Callable[..., Model]:
    """Return the factory of a registered model, or MODULE:FACTORY.

    The latter is a class of ``nn.Module``, or a function of the same package. A function of an
    installed package must be annotated to return a ``Model`` or an ``nn.Module``: the text and the
    options may come from an untrusted file, which must not call arbitrary functions.

    Raises:
        UsageError: there is no such model, or it is something else; or as ``imported``.
    """
    if not is_import(name):
        if not isinstance(name, str) or name not in MODELS:
            hint = f"(${IMPORT} names packages that register more){did_you_mean(name, MODELS)}"
            raise refused("model", name, f"one of {', '.join(MODELS)}, or MODULE:FACTORY {hint}")
        return MODELS[name]
    module, factory = imported("the model", name)
    own = getattr(factory, "func", factory)  # unwraps a functools.partial
    if isinstance(own, type) and issubclass(own, nn.Module):
        return from_factory(factory)
    if not inspect.isfunction(own) or _package(own.__module__) != _package(module.__name__):
        accepted = "a class of nn.Module, or a function of that package which returns one or a "
        raise refused(f"the model {shown(name)}", factory, f"{accepted}fcifar.Model")
    installed = "-packages" in (getattr(module, "__file__", None) or "-packages")
    if installed and not _returns_a_model(own):
        raise UsageError(
            f"the model {shown(name)} does not say that it returns one, as a function of an "
            "installed package must; annotate it with -> fcifar.Model or -> nn.Module"
        )
    return from_factory(factory)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _returns_a_model(function: Callable[..., Any]) -> bool:
    try:
        given = typing.get_type_hints(function).get("return")
    except Exception:  # such as a name that only type checkers import
        return False
    return isinstance(given, type) and (given is Model or issubclass(given, nn.Module))


def options_of(name: str) -> tuple[list[str], bool]:
    """Return a model's named options, and whether it takes ``**kwargs``.

    Raises:
        UsageError: there is no such model.
    """
    parameters = inspect.signature(model_factory(name)).parameters.values()
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [p for p in parameters if p.kind not in several and not isinstance(p.default, Axis)]
    known = [p.name for p in named if p.name != "num_classes"]
    return known, any(p.kind == p.VAR_KEYWORD for p in parameters)


def named_model(
    name: str,
    options: Mapping[str, Any],
    num_classes: int,
    axis: Axis = ALONE,
    frozen: Sequence[str] = (),
) -> Model:
    """Return a registered model or MODULE:FACTORY, with its options.

    Args:
        axis: the ranks that share the statistics of batch norm.
        frozen: patterns of the parameters that are not trained, see ``models.freeze``.

    Raises:
        UsageError: there is no such model, or the options or the patterns do not fit it.
    """
    make = model_factory(name)
    if not isinstance(options, Mapping):
        raise refused("model_options", options, "options by name, such as dropout")
    written = one_line(", ".join(f"{key}={shown(value)}" for key, value in options.items()))
    does_not_fit = f"the options {written} do not fit the model {name}"
    known, any_other = options_of(name)
    unknown = [] if any_other else [option for option in options if option not in known]
    if "num_classes" in options or unknown:
        hint = did_you_mean(unknown[0], known) if unknown else ""
        raise UsageError(f"{does_not_fit}, which takes {' and '.join(known) or 'none'}{hint}")
    takes = inspect.signature(make, follow_wrapped=False).parameters
    normed = {"axis": axis} if "axis" in takes else {}
    try:
        model = make(num_classes=num_classes, **normed, **options)
    except ValueError as error:
        what = does_not_fit if options else f"the model {name} cannot be used"
        raise UsageError(one_line(f"{what}: {error}")) from error
    try:
        return freeze(model, frozen) if frozen else model
    except ValueError as error:
        raise UsageError(str(error)) from error


AUGMENTS: dict[str, Callable[..., Augment]] = {
    "random_flip": augment.random_flip,
    "random_rotation": augment.random_rotation,
    "random_crop": augment.random_crop,
    "reflect_crop": lambda padding: augment.random_crop(padding, mode="reflect"),
    "cutout": augment.cutout,
    "mean_cutout": lambda size: augment.cutout(size, fill=_CIFAR10_MEAN),
    "color_jitter": lambda strength: augment.color_jitter(strength, strength, strength),
    "rand_augment": augment.rand_augment,
    "trivial_augment": augment.trivial_augment,
    "auto_augment": augment.auto_augment,
    "aug_mix": augment.aug_mix,
    "random_erasing": augment.random_erasing,
}
"""Factories by name; positional arguments are the strengths: a probability, degrees or pixels."""

MIXES: dict[str, Callable[..., Mix]] = {"mixup": augment.mixup, "cutmix": augment.cutmix}
"""Factories ``(alpha, num_classes) -> mix`` by name, which a recipe names among augmentations."""


def register_augment(name: str, make: Callable[..., Augment]) -> None:
    """Add an entry to ``AUGMENTS``, for recipes and the command line (see ``$FCIFAR_IMPORT``).

    Args:
        name: what ``--augment NAME`` or ``NAME:STRENGTH`` calls it.
        make: ``(strength) -> augmentation``, or with several numbers, or without an argument.

    Raises:
        ValueError: the name is taken or invalid, or ``make`` is not callable.
    """
    if name in MIXES:
        raise ValueError(f"the augmentation {shown(name)} is one of fcifar's; choose another name")
    entries.add_function(AUGMENTS, "an augmentation", name, make)


def is_own(recipe: Recipe) -> bool:
    """Whether the model, the augmentations and the optimizer of a recipe are all fcifar's own.

    Then the recipe determines them, together with the version of fcifar.
    """
    functions: list[Any] = [model_factory(recipe.model)]
    parts = {**AUGMENTS, **MIXES}
    functions += [parts[text.partition(":")[0]] for text in recipe.augment]
    if recipe.optimizer in optim.REGISTERED:
        functions.append(optim.REGISTERED[recipe.optimizer])
    return all(_package(getattr(f, "__module__", "")) == "fcifar" for f in functions)


def named_augment(text: str) -> Augment:
    """Return the augmentation NAME, NAME:STRENGTH, or NAME:NUMBER,NUMBER.

    Raises:
        UsageError: there is no such augmentation, or a strength is missing or invalid.
    """
    name = text.partition(":")[0]
    check_choice("augment", name, (*AUGMENTS, *MIXES))
    if name in MIXES:
        raise UsageError(
            f"augment {shown(text)} mixes images and labels, and images alone are needed; leave it "
            "out"
        )
    return _made(text, AUGMENTS[name], strengths_of(name))


def named_mix(text: str, num_classes: int) -> Mix:
    """Return the mix NAME:ALPHA.

    Raises:
        UsageError: there is no such mix, or alpha is missing or invalid.
    """
    name = text.partition(":")[0]
    check_choice("augment", name, MIXES)
    make = functools.partial(MIXES[name], num_classes=num_classes)
    return _made(text, make, strengths_of(name))


def split_augments(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the augmentations of a recipe, and its mixes: none, or one.

    Raises:
        UsageError: a text is invalid, a mix is not the last, or there are several.
    """
    mixes = [text for text in texts if text.partition(":")[0] in MIXES]
    if len(mixes) > 1:
        raise UsageError(
            f"augment has {' and '.join(map(shown, mixes))}, of which a batch takes one; leave one "
            "out"
        )
    if mixes and texts[-1] != mixes[0]:
        raise UsageError(
            f"augment has {shown(mixes[0])} before {shown(texts[-1])}; put it last, because it "
            "changes labels too"
        )
    plain = list(texts[: len(texts) - len(mixes)])
    for text in plain:
        named_augment(text)
    for text in mixes:
        named_mix(text, 10)
    return plain, mixes


def strengths_of(name: str) -> list[inspect.Parameter]:
    """Return the strengths of a registered augmentation or mix: its positional parameters."""
    if name in MIXES:
        return list(inspect.signature(MIXES[name]).parameters.values())[:1]
    parameters = inspect.signature(AUGMENTS[name]).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in parameters if parameter.kind in positional]


def _made(text: str, make: Callable[..., T], parameters: Sequence[inspect.Parameter]) -> T:
    """Call a factory with the numbers of NAME:NUMBER,NUMBER."""
    name, colon, written = text.partition(":")
    numbers = written.split(",") if colon else []
    if colon and not parameters:
        raise UsageError(
            f"augment {shown(text)} has a strength, and {name} takes none; leave it out"
        )
    if len(numbers) > len(parameters):
        form = f"{name}:{','.join(p.name.upper() for p in parameters)}"
        raise UsageError(
            f"augment {shown(text)} has {len(numbers)} numbers, and {name} takes "
            f"{len(parameters)}; give {form}"
        )
    needed = [p for p in parameters if p.default is inspect.Parameter.empty]
    if len(numbers) < len(needed):
        raise UsageError(
            f"augment {text!r} needs a strength; give "
            f"{name}:{','.join(p.name.upper() for p in needed)}"
        )
    try:
        return make(*map(_number, numbers))
    except ValueError as error:
        raise UsageError(f"augment {shown(text)} cannot be used: {error}") from error


class Stage(NamedTuple):
    """A part of a run with one image size."""

    size: int  # pixels a side; 0: unchanged
    until: float  # end, as a fraction of the steps in (0, 1]


def named_stages(texts: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages of SIZE:PART, ..., SIZE; without texts, one stage of unchanged images.

    Raises:
        UsageError: a text has another form, a size is out of range, or parts do not rise to 1.
    """
    stages = []
    for text in texts:
        size, colon, until = text.partition(":") if isinstance(text, str) else ("", "", "")
        try:
            stages.append(Stage(int(size), float(until) if colon else 1.0))
        except ValueError:
            raise UsageError(
                f"resolutions has {shown(text)}; each must be SIZE:PART, such as 24:0.5, or SIZE"
            ) from None
    ends = [stage.until for stage in stages]
    rising = all(a < b for a, b in itertools.pairwise([0.0, *ends]))  # false for NaN
    if stages and not (rising and ends[-1] == 1):
        raise UsageError(
            f"resolutions is {shown(tuple(texts))}; the parts must rise and end with 1, as in "
            "24:0.5, 32"
        )
    if any(not SMALLEST_IMAGE <= stage.size <= LARGEST_IMAGE for stage in stages):
        raise UsageError(
            f"resolutions is {shown(tuple(texts))}; a size must lie between {SMALLEST_IMAGE} and "
            f"{LARGEST_IMAGE}"
        )
    return tuple(stages) or (Stage(0, 1.0),)


def _number(text: str) -> int | float:
    try:
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    except ValueError:
        raise ValueError("what follows the colon must be a number") from None
