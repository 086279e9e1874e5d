"""Import of models and recipes by MODULE:NAME, such as ``my_package.nets:Net``.

Recipes are read from files of others, so ``model_factory`` restricts what such a text can name.
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
from fcifar.recipes.checks import refused


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


def model_factory(text: str) -> Callable[..., Model]:
    """Return MODULE:FACTORY as a function like those of ``MODELS``.

    The factory is a class of ``nn.Module``, or a function of the same package. A function of an
    installed package must be annotated to return a ``Model`` or an ``nn.Module``: the text and the
    options may come from an untrusted file, which must not call arbitrary functions.

    Raises:
        UsageError: it is something else; or as ``imported``.
    """
    module, factory = imported("the model", text)
    own = getattr(factory, "func", factory)  # unwraps a functools.partial
    if isinstance(own, type) and issubclass(own, nn.Module):
        return from_factory(factory)
    if not inspect.isfunction(own) or _package(own.__module__) != _package(module.__name__):
        accepted = "a class of nn.Module, or a function of that package which returns one or a "
        raise refused(f"the model {shown(text)}", factory, f"{accepted}fcifar.Model")
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
    except Exception:  # such as a name that only type checkers import
        return False
    return isinstance(given, type) and (given is Model or issubclass(given, nn.Module))
