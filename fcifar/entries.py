"""Registries: dicts of functions by name, which other packages can extend."""

import re
from collections.abc import MutableMapping
from typing import Any

from fcifar.errors import shown

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def add(registry: MutableMapping[str, Any], what: str, name: str, value: Any) -> None:
    """Set ``registry[name] = value``, for a new name.

    Raises:
        ValueError: ``name`` is taken, or is not a valid name on the command line.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of {what} is {shown(name)}; it must be letters, digits, - and _, with a "
            "letter first"
        )
    if name in registry:
        raise ValueError(f"{what} is called {name} already; choose another name")
    registry[name] = value


def add_function(registry: MutableMapping[str, Any], what: str, name: str, value: Any) -> None:
    """As ``add``, and raise a ValueError if ``value`` is not callable."""
    if not callable(value):
        raise ValueError(f"{what} {shown(name)} is {shown(value)}; it must be a function")
    add(registry, what, name, value)
