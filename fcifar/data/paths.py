"""Where prepared data sets lie, and what they may be called. Nothing here needs torch."""

import os
import re
import sys
from pathlib import Path

from fcifar.errors import UsageError, one_line

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ENDING = ".safetensors"


def data_root(data_dir: Path | None = None) -> Path:
    """The folder of prepared data sets; it need not exist yet.

    ``data_dir`` if given, else ``$FCIFAR_DATA``, where ~ is the user's home, else "fcifar" in the
    user's cache folder.
    """
    if data_dir is not None:
        return data_dir
    if chosen := os.environ.get("FCIFAR_DATA"):
        return Path(os.path.expanduser(chosen))
    return _user_cache() / "fcifar"


def _user_cache() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG specification says that a relative path is to be ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return cache if cache.is_absolute() else Path.home() / ".cache"


def path_of(name: str, root: Path) -> Path:
    """The file of data set ``name``, whether it exists or not.

    Raises:
        UsageError: ``name`` is not made of lower-case letters, digits, "-" and "_".
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{one_line(repr(name))} cannot name a data set; use up to 64 lower-case letters, "
            "digits, '-' and '_', beginning with a letter or digit"
        )
    return root / f"{name}{ENDING}"
