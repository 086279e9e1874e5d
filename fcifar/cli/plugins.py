"""Installed plugins, and the modules of ``$FCIFAR_IMPORT``.

A plugin is a module that registers models, optimizers, augmentations or recipes when it is
imported. A package declares one as an entry point:

    [project.entry-points."fcifar.plugins"]
    my_package = "my_package.fcifar_entries"
"""

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Generator, Sequence

from fcifar.errors import UsageError, located, shown

IMPORT = "FCIFAR_IMPORT"
GROUP = "fcifar.plugins"


@contextlib.contextmanager
def importable(words: Sequence[str] = ()) -> Generator[None]:
    """Import all plugins, and allow imports from the current folder.

    Installed plugins come first, sorted by name, then the modules in ``$FCIFAR_IMPORT``, separated
    by commas.

    Args:
        words: the command line. Help and shell completion skip installed plugins to stay fast.

    Raises:
        UsageError: a plugin cannot be imported.
    """
    here = ""
    with contextlib.suppress(OSError):  # the folder has been removed
        here = os.getcwd()
    sys.path.append(here)  # last, so that its files hide no installed package
    try:
        if not {"-h", "--help"} & set(words) and "_FCIFAR_COMPLETE" not in os.environ:
            for plugin in sorted(importlib.metadata.entry_points(group=GROUP)):
                owner = plugin.dist.name if plugin.dist else "?"
                _import(
                    plugin.value.partition(":")[0],
                    f"the package {owner} has the plugin {shown(plugin.value)}",
                    "update or uninstall the package",
                )
        for name in filter(None, os.environ.get(IMPORT, "").replace(",", " ").split()):
            _import(name, f"${IMPORT} has {shown(name)}", "install it, or unset the variable")
        yield
    finally:
        if here in sys.path:
            sys.path.reverse()
            sys.path.remove(here)
            sys.path.reverse()


def _import(name: str, what: str, to_do: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever its code does
        raise UsageError(f"{what}, which cannot be imported ({located(error)}); {to_do}") from error
