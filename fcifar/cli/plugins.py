"""Modules with entries of the user's own: installed plugins and those of ``$FCIFAR_IMPORT``.

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
from collections.abc import Iterator, Sequence

from fcifar.errors import UsageError, located, shown

IMPORT = "FCIFAR_IMPORT"
GROUP = "fcifar.plugins"


@contextlib.contextmanager
def importable(words: Sequence[str] = ()) -> Iterator[None]:
    """Import all plugins; inside, modules in the current folder can be imported, too.

    Installed plugins come first, in the order of their names, then the modules that
    ``$FCIFAR_IMPORT`` names, separated by commas.

    Args:
        words: of the command line. Help and shell completion load no installed plugin, so that
            they stay quick.

    Raises:
        UsageError: one of them cannot be imported.
    """
    here = ""
    with contextlib.suppress(OSError):  # of a folder that is gone
        here = os.getcwd()
    sys.path.append(here)  # last, so that nothing installed is hidden by a file of its name
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
