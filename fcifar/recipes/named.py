"""What a recipe names: its network, and its augmentations."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fcifar import augment
from fcifar.errors import UserError, did_you_mean, shown
from fcifar.models import MODELS, Model
from fcifar.parallel import ALONE, Axis
from fcifar.recipes.checks import check_choice
from fcifar.step import Augment

SMALLEST_IMAGE, LARGEST_IMAGE = 16, 64  # pixels a side, of resolutions


def _color_jitter(strength: float) -> Augment:
    return augment.color_jitter(strength, strength, strength)


def _reflect_crop(padding: int) -> Augment:
    return augment.random_crop(padding, mode="reflect")


def _mean_cutout(size: int) -> Augment:
    return augment.cutout(size, fill=(0.4914, 0.4822, 0.4465))  # of CIFAR-10's training images


AUGMENTS: dict[str, Callable[..., Augment]] = {
    "random_flip": augment.random_flip,
    "random_rotation": augment.random_rotation,
    "random_crop": augment.random_crop,
    "reflect_crop": _reflect_crop,
    "cutout": augment.cutout,
    "mean_cutout": _mean_cutout,
    "color_jitter": _color_jitter,
}
"""By name, each callable with its strength alone: a probability, degrees or pixels."""


def named_model(
    name: str, options: Mapping[str, Any], num_classes: int, axis: Axis = ALONE
) -> Model:
    """An entry of ``MODELS`` with its options.

    Args:
        axis: the ranks over which its batch norm takes its statistics, if it has any.

    Raises:
        UserError: there is no such model, or the options do not fit it.
    """
    check_choice("model", name, MODELS)
    if not isinstance(options, Mapping):
        raise UserError(
            f"model_options is {shown(options)}; it must be options by name, such as dropout"
        )
    does_not_fit = f"model_options {shown(dict(options))} do not fit the model {name}"
    takes = inspect.signature(MODELS[name]).parameters
    known = [option for option in takes if option not in ("num_classes", "axis")]
    if unknown := [option for option in options if option not in known]:
        hint = did_you_mean(unknown[0], known)
        raise UserError(f"{does_not_fit}, which takes {' and '.join(known)}{hint}")
    try:
        normed = {"axis": axis} if "axis" in takes else {}
        return MODELS[name](num_classes=num_classes, **normed, **options)
    except ValueError as error:
        raise UserError(f"{does_not_fit}: {error}") from error


def named_augment(text: str) -> Augment:
    """The augmentation that NAME or NAME:STRENGTH asks for.

    Raises:
        UserError: there is no such augmentation, or none of that strength.
    """
    name, colon, strength = text.partition(":")
    check_choice("augment", name, AUGMENTS)
    make = AUGMENTS[name]
    (parameter,) = list(inspect.signature(make).parameters.values())[:1]
    if not colon and parameter.default is inspect.Parameter.empty:
        raise UserError(f"augment {text!r} needs a strength; give {name}:{parameter.name.upper()}")
    try:
        return make(_number(strength)) if colon else make()
    except ValueError as error:
        raise UserError(f"augment {shown(text)} cannot be used: {error}") from error


class Stage(NamedTuple):
    """A part of a run, and the size of its images."""

    size: int  # pixels a side; 0 for as they are
    until: float  # part of the steps, in (0, 1]


def named_stages(texts: Sequence[str]) -> tuple[Stage, ...]:
    """What SIZE:PART, ..., SIZE ask for; one stage that leaves the images alone if nothing does.

    Raises:
        UserError: a text of another form, a size below 16, or parts that do not rise to 1.
    """
    stages = []
    for text in texts:
        size, colon, until = text.partition(":") if isinstance(text, str) else ("", "", "")
        try:
            stages.append(Stage(int(size), float(until) if colon else 1.0))
        except ValueError:
            raise UserError(
                f"resolutions has {shown(text)}; each must be SIZE:PART, such as 24:0.5, or SIZE"
            ) from None
    ends = [stage.until for stage in stages]
    rising = all(a < b for a, b in itertools.pairwise([0.0, *ends]))  # NaN is neither
    if stages and not (rising and ends[-1] == 1):
        raise UserError(
            f"resolutions is {shown(tuple(texts))}; the parts must rise and end with 1, as in "
            "24:0.5, 32"
        )
    if any(not SMALLEST_IMAGE <= stage.size <= LARGEST_IMAGE for stage in stages):
        raise UserError(
            f"resolutions is {shown(tuple(texts))}; a size must lie between {SMALLEST_IMAGE} and "
            f"{LARGEST_IMAGE}"
        )
    return tuple(stages) or (Stage(0, 1.0),)


def _number(text: str) -> int | float:
    try:
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    except ValueError:
        raise ValueError("what follows the colon must be a number") from None
