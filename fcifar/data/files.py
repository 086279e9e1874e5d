"""Files that are written whole or not at all."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from fcifar.errors import WorldError

PARTIAL = ".partial"  # in the names of files that are being written


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what was written there becomes ``path`` at the end.

    If the block raises, ``path`` is as it was and the temporary file is gone.

    Raises:
        WorldError: the disk refused.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL}{path.suffix}")
    try:
        if path.exists() and not path.is_file():  # renaming would do away with a pipe or a device
            raise WorldError(f"cannot write {path}: it is no plain file; choose another place")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors lets nobody else read its files; folders are shared
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sweep(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove what processes that were killed left half-written.

    Args:
        older_than: seconds; a younger file may be one that another process is writing.
    """
    now = time.time()
    for path in folder.glob(f".*{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process may sweep as well
            if now - path.stat().st_mtime >= older_than:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cannot_write(path: Path, error: Exception) -> WorldError:
    """The one line for a disk that refused."""
    reason = getattr(error, "strerror", None) or error
    return WorldError(f"cannot write {path}: {reason}; free some space or choose another place")
