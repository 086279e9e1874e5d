"""Names and locations of prepared data sets. Must not import torch."""

import os
import re
import sys
from pathlib import Path

from fcifar.errors import UsageError, one_line

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ENDING = ".safetensors"


def data_root(data_dir: Path | None = None) -> Path:
    """Return the folder of prepared data sets, which need not exist.

    ``data_dir`` if given, else ``$FCIFAR_DATA``, else "fcifar" in the user's cache folder.
    """
    if data_dir is not None:
        return data_dir
    if chosen := os.environ.get("FCIFAR_DATA"):
        return Path(os.path.expanduser(chosen))
    return cache_root()


def cache_root() -> Path:
    """Return "fcifar" in the user's cache folder, which need not exist."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        cache = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        # The XDG specification requires relative paths to be ignored.
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        cache = cache if cache.is_absolute() else Path.home() / ".cache"
    return cache / "fcifar"


def path_of(name: str, root: Path) -> Path:
    """Return the file of data set ``name``, which need not exist.

    Raises:
        UsageError: the name is invalid.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{one_line(repr(name))} cannot name a data set; use up to 64 lower-case letters, "
            "digits, '-' and '_', beginning with a letter or digit"
        )
    return root / f"{name}{ENDING}"
