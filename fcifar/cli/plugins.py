"""The user's own modules: where they are looked for, and those that come first."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from fcifar.errors import UsageError, located, shown

IMPORT = "FCIFAR_IMPORT"


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Inside, modules in the current folder can be imported, and those of ``$FCIFAR_IMPORT`` are.

    The variable has names of modules with commas between; what they register is there for every
    command.

    Raises:
        UsageError: one of them cannot be imported.
    """
    here = ""
    with contextlib.suppress(OSError):  # of a folder that is gone
        here = os.getcwd()
    sys.path.append(here)  # last, so that nothing installed is hidden by a file of its name
    try:
        for name in filter(None, os.environ.get(IMPORT, "").replace(",", " ").split()):
            try:
                importlib.import_module(name)
            except (Exception, SystemExit) as error:  # whatever its code does
                raise UsageError(
                    f"${IMPORT} has {shown(name)}, which cannot be imported ({located(error)}); "
                    "install it, or unset the variable"
                ) from error
        yield
    finally:
        if here in sys.path:
            sys.path.reverse()
            sys.path.remove(here)
            sys.path.reverse()
