"""Files: written atomically, JSON, and a lock on a directory."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fcifar.errors import DamagedError, ExternalError, UsageError

PARTIAL = ".partial"  # in the names of files that are being written
LOCK = ".lock"
LARGEST_JSON = 64 * 2**20  # bytes; the files of fcifar are thousands of times smaller


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; what was written there becomes ``path`` at the end.

    If the block raises, ``path`` is as it was and the temporary file is gone.

    Raises:
        ExternalError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL}{path.suffix}")
    try:
        if path.exists() and not path.is_file():  # renaming would do away with a pipe or a device
            raise ExternalError(f"cannot write {path}: it is not a plain file; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_partial(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove the temporary files of processes that were killed while writing.

    Args:
        older_than: seconds; a younger file may be one that another process is writing.
    """
    now = time.time()
    for path in folder.glob(f".*{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process may remove it as well
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


def read_bytes(path: Path, *, limit: float = math.inf) -> bytes:
    """The content of a file.

    Raises:
        DamagedError: it is larger than ``limit`` bytes.
        ExternalError: it is missing or cannot be read.
    """
    try:
        if path.stat().st_size > limit:
            raise DamagedError(f"{path} is larger than {limit:,} bytes; fcifar did not write that")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ExternalError(f"there is no file {path}") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_write(path: Path, error: Exception) -> ExternalError:
    """The error for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return ExternalError(f"cannot write {path}: {reason}; free some space or choose another place")


def cannot_read(path: Path, error: OSError) -> ExternalError:
    """The error for a file that cannot be read."""
    return ExternalError(f"{path} cannot be read: {error.strerror or error}")


# JSON --------------------------------------------------------------------------------------------


def to_json(values: Any) -> str:
    """``values`` as the text of a JSON file."""
    return json.dumps(finite(values), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Replace the content of ``path`` by ``values`` as JSON."""
    write_text(path, to_json(values))


def read_json(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        DamagedError: it is not JSON.
        ExternalError: it is missing or cannot be read.
    """
    return parse_json(read_bytes(path, limit=LARGEST_JSON), path)


def parse_json(content: bytes, path: Path) -> Any:
    """The values in the content of the JSON file ``path``. Raises a DamagedError."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as JSON: {error}") from error


def finite(values: Any) -> Any:
    """The values with null for NaN and infinity, which JSON does not have."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return values


# Locks -------------------------------------------------------------------------------------------


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``, as far as this one can tell."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a lock that cannot be taken, as on a read-only file system
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if need be, and removed again if empty.

    The operating system releases the lock when the process ends, however it ends: a file that a
    crash leaves behind locks nothing.

    Raises:
        UsageError: another process holds it.
        OSError: the folder or its lock cannot be made.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        try:
            yield
        finally:
            if made and [path.name for path in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            lock.release()
    except Timeout as error:
        raise UsageError(
            f"another process is training into {folder}; wait for its end, or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # up to the first folder that is not empty
            for parent in made:
                parent.rmdir()
