"""What the command line changes of a recipe."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fcifar.errors import UsageError, did_you_mean, shown


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def with_changes(
    recipe: Any,
    changes: Sequence[str],
    option: str = "--set",
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """The recipe with each NAME=VALUE: a field of it, or an option of its network.

    A value is JSON, or else text; commas make a list, as in ``widths=64,128,128``. Another network
    comes without the options of the one before, and ``valid=given`` without the fraction that the
    recipe would hold out. ``option`` is what a message calls them.
    ``overrides`` are fields that change before them; what comes of it all is validated once.

    Raises:
        UsageError: a text of another form, or what the recipe does not accept.
    """
    from fcifar import models, recipes
    from fcifar.recipes import RECIPES, from_dict, to_dict

    values = {**to_dict(recipe), **(overrides or {})}
    asked = {*(overrides or {}), *(text.partition("=")[0] for text in changes)}
    for text in changes:
        name, equals, value = text.partition("=")
        network = values["model"]
        if not equals:
            raise UsageError(f"{option} is {shown(text)}; it must be NAME=VALUE")
        if name == "model" and value != network:
            values |= {"model": value, "model_options": {}}
        elif name == "valid" and value == "given":
            held_out = {"valid_fraction": 0.0, "stratify": False}
            values |= {"valid": value, **{n: v for n, v in held_out.items() if n not in asked}}
        elif name in _TEXTS:
            values[name] = _texts(value)
        elif name in values and name not in ("model_options", "name"):
            values[name] = _parsed(value)
        elif _is_option(network, name):
            values["model_options"] = {**values["model_options"], name: _parsed(value)}
        else:
            own = recipes.options_of(network)[0] if network in models.MODELS else []
            raise UsageError(
                f"{option} {shown(name)}: no value of a recipe is called so, and no option of the "
                f"model {shown(network)}; fcifar recipes show "
                f"{recipe.name if recipe.name in RECIPES else 'blitz'} lists the values"
                f"{did_you_mean(name, [*values, *own])}"
            )
    return from_dict(values) if changes or overrides else recipe


def with_model(recipe: Any, model: str | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """Changes to a recipe, ``model_options`` among them, together with another model, which comes
    without the options of the one before.
    """
    own = overrides.pop("model_options", {})
    if model is None or model == recipe.model:
        return {**overrides, "model_options": {**recipe.model_options, **own}}
    return {**overrides, "model": model, "model_options": own}


def _is_option(network: Any, name: str) -> bool:
    from fcifar import recipes

    if not name.isidentifier():
        return False
    try:
        known, any_other = recipes.options_of(network)
    except recipes.NotImportableError:
        raise
    except UsageError:
        return False
    return any_other or name in known or name == "num_classes"


_TEXTS = ("augment", "resolutions")  # lists of texts, each of which may look like a number


def _texts(text: str) -> Any:
    parsed = _parsed(text)
    if isinstance(parsed, list) and text.startswith("["):
        return parsed
    return [] if text in ("", "none") else text.split(",")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return [_parsed(part) for part in text.split(",")] if "," in text else text


def refuse_changes(changes: dict[str, Any]) -> None:
    """Raise a UsageError if a run to be continued is given other settings."""
    if changes:
        names = ", ".join(changes)
        raise UsageError(
            f"--resume continues a run with the settings it began with, and {names} would change "
            "them; leave that out, or begin a new run"
        )
