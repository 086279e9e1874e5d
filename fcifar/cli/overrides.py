"""What the command line changes of a recipe."""

import inspect
import json
from collections.abc import Sequence
from typing import Any

from fcifar.errors import UserError, shown


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def with_changes(recipe: Any, changes: Sequence[str]) -> Any:
    """The recipe with each NAME=VALUE: a field of it, or an option of its network.

    A value is JSON, or else text; commas make a list, as in ``widths=64,128,128``.

    Raises:
        UserError: a text of another form, or what the recipe does not accept.
    """
    from fcifar.models import MODELS
    from fcifar.recipes import from_dict, to_dict

    values = to_dict(recipe)
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set is {shown(text)}; it must be NAME=VALUE")
        if name in values and name not in ("model_options", "name"):
            listed = isinstance(values[name], list | tuple)
            values[name] = _parsed(value, listed=listed)
        elif name in inspect.signature(MODELS[values["model"]]).parameters:
            values["model_options"] = {**values["model_options"], name: _parsed(value)}
        else:
            raise UserError(
                f"--set {shown(name)}: no value of a recipe is called so, and no option of the "
                f"network {values['model']}; fcifar recipes show {recipe.name} lists the values"
            )
    return from_dict(values) if changes else recipe


def _parsed(text: str, *, listed: bool = False) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = [_parsed(part) for part in text.split(",")] if "," in text else text
    if not listed or isinstance(value, list):
        return value
    return [] if value in ("", "none") else [value if isinstance(value, str) else text]


def refuse_changes(changes: dict[str, Any]) -> None:
    """Raise a UserError if a run to be continued is given other settings."""
    if changes:
        names = ", ".join(changes)
        raise UserError(
            f"--resume continues a run with the settings it began with, and {names} would change "
            "them; leave that out, or begin a new run"
        )
