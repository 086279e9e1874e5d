"""Removing runs, and nothing else."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fcifar.errors import UserError, WorldError, one_line, reason
from fcifar.runs import directory, jsonfiles, listing, lock


def check(path: Path) -> None:
    """Raise a UserError unless ``path`` is a run, or a group of runs, that may be removed.

    It may not if it is a link, is one of a group, has a manifest of another kind, or if a process
    is training into it.
    """
    where = one_line(path)
    if path.is_symlink():
        raise UserError(f"{where} is a link, and is not followed; give the run that it leads to")
    if not listing.is_run(path):
        raise UserError(f"{where} is not a run directory, and is not removed")
    first = path / (listing.GROUP if (path / listing.GROUP).is_file() else directory.MANIFEST)
    if not _is_ours(first):
        raise UserError(
            f"{one_line(first)} was not written by fcifar, or is damaged; if {where} is a run, "
            "remove the folder yourself"
        )
    if (path.absolute().parent / listing.GROUP).is_file():
        raise UserError(
            f"{where} is one run of the group {one_line(path.absolute().parent)}, which would not "
            "be whole without it; remove the group"
        )
    if held := [run for run in _runs(path) if lock.is_held(run)]:
        raise _held(held[0])


def remove(path: Path) -> None:
    """Remove a run or a group, with all that is in its folder. Links in it are not followed.

    Raises:
        UserError: as ``check``.
        WorldError: the disk refused; the message says what is left.
    """
    check(path)
    # Out of sight at once, so that no half of a run is ever taken for one.
    hidden = path.with_name(f".removed-{os.getpid()}-{path.name}")
    try:
        with _holding(path):
            path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        left = hidden if hidden.exists() else path
        raise WorldError(
            f"cannot remove {one_line(path)}: {reason(error)}; what is left is in {one_line(left)}"
        ) from error


def _is_ours(file: Path) -> bool:
    try:
        values = jsonfiles.read(file)
    except WorldError:
        return False
    wanted = {"format", jsonfiles.SEAL, "members" if file.name == listing.GROUP else "recipe"}
    return isinstance(values, dict) and wanted <= set(values)


def _runs(path: Path) -> list[Path]:
    """``path``, and the folders in it that are runs."""
    return [path, *(folder for folder in sorted(path.iterdir()) if listing.is_run(folder))]


@contextlib.contextmanager
def _holding(path: Path) -> Iterator[None]:
    try:
        with FileLock(path / lock.FILE, timeout=0):
            yield
    except Timeout as error:
        raise _held(path) from error


def _held(path: Path) -> UserError:
    return UserError(f"a process is training into {one_line(path)}; stop it first")
