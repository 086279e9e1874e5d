"""Adding to a dict of functions by name: the doors of this package for other packages."""

import re
from collections.abc import MutableMapping
from typing import Any

from fcifar.errors import shown

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def add(registry: MutableMapping[str, Any], what: str, name: str, value: Any) -> None:
    """``registry[name] = value``, for a name that is new.

    Raises:
        ValueError: the name is taken, or could not be typed as a word of a command; or a function
            was to be registered and something else was given.
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
    """As ``add``. Raises a ValueError for what cannot be called, too."""
    if not callable(value):
        raise ValueError(f"{what} {shown(name)} is {shown(value)}; it must be a function")
    add(registry, what, name, value)
