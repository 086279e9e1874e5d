"""One process at a time in a run directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fcifar.errors import UserError

FILE = ".lock"


def is_held(run: Path) -> bool:
    """Whether a process is training into ``run``, as far as this one can tell."""
    if not (run / FILE).is_file():
        return False
    try:
        with FileLock(run / FILE, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a lock that cannot be taken, as on a disk that is read alone
        return False


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run directory, which is made if need be and goes again if nothing came into it.

    The operating system holds the lock for the process, and lets it go when the process ends,
    however it ends: a file that a crash leaves behind locks nothing.

    Raises:
        UserError: another process holds it.
        OSError: the disk refused.
    """
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    lock = FileLock(run / FILE, timeout=0)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        try:
            yield
        finally:
            if made and [path.name for path in run.iterdir()] == [FILE]:
                (run / FILE).unlink()
            lock.release()
    except Timeout as error:
        raise UserError(
            f"another process is training into {run}; wait for its end, or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # up to the first folder that is not empty
            for folder in made:
                folder.rmdir()
