"""File I/O: atomic writes, JSON, and directory locks."""

import contextlib
import json
import math
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fcifar.errors import DamagedError, ExternalError, UsageError

PARTIAL = ".partial"  # part of the names of temporary files
LOCK = ".lock"
LARGEST_JSON = 64 * 2**20  # bytes; files written by fcifar are thousands of times smaller


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path next to ``path``, and rename it to ``path`` at the end.

    If the block raises, ``path`` is unchanged and the temporary file is removed.

    Raises:
        ExternalError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{PARTIAL}{path.suffix}")
    try:
        if path.exists() and not path.is_file():  # a rename would replace a pipe or a device
            raise ExternalError(f"cannot write {path}: it is not a plain file; choose another path")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors creates files with mode 0600
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system can open a directory
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_partial(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove temporary files left by processes that were killed while writing.

    Args:
        older_than: minimum age in seconds; another process may still be writing a younger file.
    """
    now = time.time()
    for path in folder.glob(f".*{PARTIAL}*"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if now - path.stat().st_mtime >= older_than:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Atomically replace the content of ``path`` with ``text``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_bytes(path: Path, *, limit: float = math.inf) -> bytes:
    """Return the content of a file.

    Raises:
        DamagedError: the file is larger than ``limit`` bytes.
        ExternalError: the file is missing or cannot be read.
    """
    try:
        if path.stat().st_size > limit:
            raise DamagedError(f"{path} is larger than {limit:,} bytes; fcifar did not write that")
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_write(path: Path, error: Exception) -> ExternalError:
    """Return the error for a file that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return ExternalError(f"cannot write {path}: {reason}; free some space or choose another place")


def cannot_read(path: Path, error: OSError) -> ExternalError:
    """Return the error for a file that is missing or cannot be read."""
    if isinstance(error, FileNotFoundError):
        return ExternalError(f"there is no file {path}")
    return ExternalError(f"{path} cannot be read: {error.strerror or error}")


# JSON --------------------------------------------------------------------------------------------


def to_json(values: Any) -> str:
    """Format ``values`` as the text of a JSON file."""
    return json.dumps(finite(values), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Atomically replace the content of ``path`` with ``values`` as JSON."""
    write_text(path, to_json(values))


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DamagedError: the file is not JSON.
        ExternalError: the file is missing or cannot be read.
    """
    return parse_json(read_bytes(path, limit=LARGEST_JSON), path)


def parse_json(content: bytes, path: Path) -> Any:
    """Parse the content of the JSON file ``path``. Raises a DamagedError if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as JSON: {error}") from error


def finite(values: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with None."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return values


# Locks -------------------------------------------------------------------------------------------


def is_locked(folder: Path) -> bool:
    """Whether another process appears to hold the lock of ``folder``."""
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # for example on a read-only file system
        return False


@contextlib.contextmanager
def made(folder: Path) -> Generator[None]:
    """Make a directory and its parents for a block, and remove those that are made and stay empty.

    Raises an OSError if it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # up to the first directory that is not empty
            for path in missing:
                path.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the lock of a run directory. Creates the directory, and removes it again if it stays
    empty.

    The operating system releases the lock when the process ends for any reason, so a lock file left
    by a crash locks nothing.

    Raises:
        UsageError: another process holds the lock.
        OSError: the directory or its lock cannot be created.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    with made(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"another process is training into {folder}; wait until it ends or choose another "
                "--out"
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # the block may have moved the folder
                if [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
            lock.release()
