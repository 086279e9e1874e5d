"""Changes to a recipe from the command line, and the axes of a sweep."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcifar.errors import UsageError, did_you_mean, shown
from fcifar.recipes.recipe import Recipe, from_dict, option_flags, option_name, to_dict

if TYPE_CHECKING:
    from fcifar.train.config import RunConfig
    from fcifar.train.sweep import Sweep


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def flag(name: str) -> str:
    """Return the option of ``fcifar train`` for a field or an argument of that name."""
    return "RECIPE" if name == "recipe" else f"--{option_name(name).replace('_', '-')}"


@contextlib.contextmanager
def naming_options(
    changes: Sequence[str] | None, grid: Sequence[str] | None = None
) -> Generator[None]:
    """Let UsageErrors about a recipe name options of ``fcifar train`` instead of fields.

    Args:
        changes: the values of ``--set``, which is named for the fields that it sets.
        grid: the values of ``--sweep``, likewise.
    """
    try:
        yield
    except UsageError as error:
        error.args = (_by_option(str(error), {"--set": changes or (), "--sweep": grid or ()}),)
        raise


def _by_option(message: str, given: Mapping[str, Sequence[str]]) -> str:
    """Return a message with options in place of fields.

    A word is a field if it begins the message, or has an underscore, or precedes "=", or stands
    between a colon and "is".
    """
    fields = [f for f in dataclasses.fields(Recipe) if f.metadata and f.name != "model_options"]
    names = {f.name: flag(f.name) if option_flags(f) else f"--set {f.name}" for f in fields}
    names |= {"dropout": "--dropout", "hidden": "--hidden"}
    of_option = {option_name(name): name for name in names}
    for option, texts in given.items():
        for name in (text.partition("=")[0] for text in texts):
            names[of_option.get(name, name)] = f"{option} {name}"

    def spelled(word: re.Match[str]) -> str:
        before, after = message[: word.start()], message[word.end() :]
        is_subject = not before or (before.endswith(": ") and after.startswith(" is "))
        is_field = is_subject or "_" in word[0] or after.startswith("=")
        return names.get(word[0], word[0]) if is_field else word[0]

    return message if message.startswith("--") else re.sub(r"(?<![-'=/\w])\w+", spelled, message)


def with_changes(
    recipe: Recipe,
    changes: Sequence[str],
    option: str = "--set",
    overrides: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe with each NAME=VALUE: a field, or an option of its model.

    A field may also have the name of its option, such as ``lr``. A value is JSON, or else text;
    commas make a list, as in ``widths=64,128,128``. Another model drops the options of the one
    before, and ``valid=given`` and ``fold=2/5`` what the recipe holds out. The result is validated:
    raises a UsageError.

    Args:
        option: the name of the option in messages.
        overrides: fields to change first.
    """
    from fcifar import models, recipes

    values = {**to_dict(recipe), **(overrides or {})}
    fields = {option_name(field.name): field.name for field in dataclasses.fields(Recipe)}
    split = [text.partition("=") for text in changes]
    split = [(fields.get(name, name), equals, value) for name, equals, value in split]
    changed = {*(overrides or {}), *(name for name, _, _ in split)}
    for text, (name, equals, value) in zip(changes, split, strict=True):
        model = values["model"]
        if not equals:
            raise UsageError(f"{option} is {shown(text)}; it must be NAME=VALUE")
        if (
            option == "--set"
            and name in (overrides or {})
            and name not in ("model_options", "model")
        ):
            both = f"--set {shown(text)} and {flag(name)}"
            raise UsageError(f"{both} both set {name}; give one of them")
        if name == "model" and value != model:
            values |= {"model": value, "model_options": {}}
        elif name in ("augment", "freeze", "resolutions"):
            values[name] = split_texts(name, value)
        elif name == "milestones":
            parts = [] if value in ("", "none") else _parsed(value)
            values[name] = parts if isinstance(parts, list) else [parts]
        elif name in values and name not in ("model_options", "name"):
            values[name] = _parsed(value)
        elif _is_option(model, name):
            values["model_options"] = {**values["model_options"], name: _parsed(value)}
        else:
            own = recipes.options_of(model)[0] if model in models.MODELS else []
            example = recipe.name if recipe.name in recipes.RECIPES else "blitz"
            raise UsageError(
                f"{option} {shown(name)} is neither a setting of recipes nor an option of the "
                f"model {shown(model)}; fcifar recipes show {example} lists the settings"
                f"{did_you_mean(name, [*values, *own])}"
            )
    is_given = "valid" in changed and values["valid"] == "given"
    if is_given or ("fold" in changed and values["fold"]):
        nothing = {"valid": "fraction", "valid_fraction": 0.0, "stratify": False, "fold": ""}
        values |= {name: value for name, value in nothing.items() if name not in changed}
    return from_dict(values) if changes or overrides else recipe


def _is_option(model: Any, name: str) -> bool:
    from fcifar import recipes

    if not name.isidentifier():
        return False
    try:
        known, any_other = recipes.options_of(model)
    except recipes.NotImportableError:
        raise
    except UsageError:
        return False
    return any_other or name in known or name == "num_classes"


def split_texts(name: str, text: str) -> Any:
    """Return the texts of ``augment``, ``freeze`` or ``resolutions``: JSON, or divided by commas.

    In ``augment``, a number belongs to the name before it, as in
    ``random_flip,rand_augment:2,9,cutout:8``.
    """
    parsed = _parsed(text)
    if isinstance(parsed, list) and text.startswith("["):
        return parsed
    parts = [] if text in ("", "none") else text.split(",")
    return _with_numbers(parts) if name == "augment" else parts


def _with_numbers(parts: Sequence[str]) -> list[str]:
    """Join each number to the part before it."""
    joined: list[str] = []
    for part in parts:
        if joined and ":" in joined[-1] and _is_number(part):
            joined[-1] += f",{part}"
        else:
            joined.append(part)
    return joined


def _is_number(text: str) -> bool:
    number = _parsed(text)
    return isinstance(number, int | float) and not isinstance(number, bool)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return [_parsed(part) for part in text.split(",")] if "," in text else text


# Sweeps -------------------------------------------------------------------------------------------


def make_sweep(
    config: "RunConfig", *, replicas: int | None, grid: Sequence[str], method: str
) -> "Sweep":
    """Return the sweep of ``--replicas``, ``--sweep`` and ``--replica-method``."""
    from fcifar.recipes import trials
    from fcifar.train import sweep

    if replicas is not None and not 1 <= replicas <= trials.LARGEST:
        raise UsageError(
            f"--replicas is {replicas}; it must be a whole number from 1 to {trials.LARGEST:,}"
        )
    seeds = range(config.seed, config.seed + (replicas or 1))
    axes = dict(_axis(config.recipe, text) for text in grid)
    if len(axes) < len(grid):
        raise UsageError("--sweep names the same value twice; give all of its values at once")
    return sweep.Sweep(
        trials=trials.make_trials(config.recipe, axes, seeds),
        method=trials.choose_method(method, config.recipe, config.runtime.device),
        config=config,
    )


def _axis(recipe: Recipe, text: str) -> tuple[str, list[tuple[Any, Recipe]]]:
    """Return the name and the values of ``lr=0.1,0.2``, with the recipe changed to each."""
    name, equals, values = text.partition("=")
    each = _with_numbers(_split(values)) if name == "augment" else _split(values)
    if not equals or not name or not all(each):
        raise UsageError(f"--sweep is {shown(text)}; it must be NAME=VALUE,VALUE,...")
    if len(set(each)) < len(each):
        raise UsageError(f"--sweep {shown(text)} has a value twice; give each once")
    return option_name(name), [
        (_number(value), with_changes(recipe, [f"{name}={value}"], "--sweep")) for value in each
    ]


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _number(text: str) -> Any:
    """Return JSON numbers and booleans as such, and other text as it is."""
    value = text if "," in text else _parsed(text)
    return value if isinstance(value, int | float) else text
