"""What a text such as ``my_package.nets:Net`` names: something of a module that can be imported.

Such a text stands in a recipe, and recipes are read from files that others have written. So it
cannot name just any function: see ``model_factory``.
"""

import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

from torch import nn

from fcifar.errors import UsageError, located, shown
from fcifar.models import Model, from_factory


class NotImportableError(UsageError):
    """What a text names is not here, or not now."""


def is_import(name: object) -> bool:
    """Whether a name is that of something to import."""
    return isinstance(name, str) and ":" in name


def imported(what: str, text: str) -> tuple[Any, Any]:
    """The module and the thing in it that MODULE:NAME names.

    Args:
        what: what a message calls it.

    Raises:
        UsageError: the text has another form; as ``NotImportableError`` where it cannot be found.
    """
    place, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), *name.split("."))):
        raise UsageError(f"{what} is {shown(text)}; it must be MODULE:NAME, such as my_nets:Net")
    cannot = f"{what} {shown(text)} cannot be imported"
    if place.partition(".")[0] in sys.stdlib_module_names:
        raise NotImportableError(f"{cannot}: {place} is a part of Python; name a module of yours")
    try:
        module = importlib.import_module(place)
    except (Exception, SystemExit) as error:  # whatever its code does
        raise NotImportableError(
            f"{cannot} ({located(error)}); install its package, or run fcifar in the folder of "
            f"{place.partition('.')[0]}"
        ) from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise NotImportableError(f"{cannot}: there is no {part} in {place}; correct the name")
        value = getattr(value, part)
    return module, value


def model_factory(text: str) -> Callable[..., Model]:
    """The function like those of ``MODELS`` that MODULE:FACTORY names.

    The factory is a class of modules, or a function of that package. A function of an installed
    package must say that it returns a ``Model`` or an ``nn.Module``: the text and the options may
    come from a file of a stranger, and installed packages have functions that do anything.

    Raises:
        UsageError: it is something else; or as ``imported``.
    """
    module, factory = imported("the model", text)
    own = getattr(factory, "func", factory)  # of a functools.partial
    if isinstance(own, type) and issubclass(own, nn.Module):
        return from_factory(factory)
    if not inspect.isfunction(own) or _package(own.__module__) != _package(module.__name__):
        raise UsageError(
            f"the model {shown(text)} is {shown(factory)}; it must be a class of nn.Module, or a "
            "function of that package which returns one or a fcifar.Model"
        )
    installed = "-packages" in (getattr(module, "__file__", None) or "-packages")
    if installed and not _returns_a_model(own):
        raise UsageError(
            f"the model {shown(text)} does not say that it returns one, as a function of an "
            "installed package must; annotate it with -> fcifar.Model or -> nn.Module"
        )
    return from_factory(factory)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _returns_a_model(function: Callable[..., Any]) -> bool:
    try:
        given = typing.get_type_hints(function).get("return")
    except Exception:  # a hint that is not there at run time
        return False
    return isinstance(given, type) and (given is Model or issubclass(given, nn.Module))
