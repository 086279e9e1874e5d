"""Listing and removing the runs in a folder, without importing torch."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import io
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, reason, shown
from fcifar.train import run_dir
from fcifar.train.run_dir import SUMMARY, SWEEP


class Entry(NamedTuple):
    """A run, or a group of runs, as a list shows it."""

    name: str  # of its directory
    path: Path
    members: int = 0  # of a group; 0 for a run by itself
    recipe: str = ""
    dataset: str = ""
    seed: int | None = None  # of a group, the first
    state: str = "damaged"  # finished, running, interrupted, failed, waiting or damaged
    about: str = ""  # what more there is to say of the state
    test_accuracy: float | None = None  # in [0, 1]; of a group, the mean
    created: str = ""  # ISO 8601
    bytes: int = 0  # on the disk

    @property
    def resume(self) -> str | None:
        """The command that goes on with it, if it can."""
        return f"fcifar train --resume {self.path}" if self.state == "interrupted" else None


def find(root: Path) -> list[Entry]:
    """The runs and groups in a folder, the oldest first. Links to folders are passed over."""
    try:
        paths = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise ExternalError(f"cannot read {one_line(root)}: {error.strerror}") from error
    found = [describe(path) for path in paths if not path.is_symlink() and is_run(path)]
    return sorted(found, key=lambda entry: (entry.created, entry.name))


def is_run(path: Path) -> bool:
    """Whether there is a run or a group of runs at ``path``."""
    return run_dir.is_group(path) or (path / run_dir.MANIFEST).is_file()


def named(path: Path, root: Path) -> Path:
    """``path``, or where nothing is there, the run or group of that name in ``root``.

    Raises:
        UsageError: there is neither, and ``path`` is nearly the name of one.
    """
    if path.exists() or path.name != str(path):
        return path
    if is_run(root / path):
        return root / path
    if hint := did_you_mean(path.name, _names(root)):
        raise UsageError(f"there is no {one_line(path)}, here or in {one_line(root)}{hint}")
    return path


def locate(text: str, root: Path) -> Path:
    """The run or group of that path, or of that name in ``root``.

    Raises:
        UsageError: there is none.
    """
    for path in (Path(text), root / text):
        if text and is_run(path):
            return path
    if text and any(path.exists() for path in (root / text, Path(text))):
        raise UsageError(
            f"{shown(text)} is not a run directory: there is neither {run_dir.MANIFEST} nor "
            f"{SWEEP} in it"
        )
    raise UsageError(
        f"there is no run {shown(text)} in {one_line(root)}; fcifar runs list shows them"
        f"{did_you_mean(text, _names(root))}"
    )


def _names(root: Path) -> list[str]:
    """What there is to mean; nothing where the folder cannot be read."""
    try:
        return [path.name for path in root.iterdir()]
    except OSError:
        return []


def describe(path: Path) -> Entry:
    """What is known of the run or the group at ``path``. Damage is a state, and not an error."""
    is_group, entry = run_dir.is_group(path), Entry(path.name, path, bytes=size(path))
    try:
        manifest = run_dir.read_manifest(path, SWEEP if is_group else run_dir.MANIFEST)
        members = len(_members(path)) if is_group else 0
        state, about, accuracy = (_group_state if is_group else _state)(path)
        return entry._replace(
            members=members,
            recipe=str(manifest["recipe"]["name"]),
            dataset=str(manifest["dataset"]["name"]),
            seed=int(manifest["seed"]),
            state=state,
            about=about,
            test_accuracy=accuracy,
            created=str(manifest["created"]),
        )
    except (ExternalError, UsageError, LookupError, TypeError, AttributeError) as error:
        modified = (path / (SWEEP if is_group else run_dir.MANIFEST)).stat().st_mtime
        created = datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")
        return entry._replace(about=str(error), created=created)


def members(path: Path) -> Iterator[Entry]:
    """The runs of the group at ``path``, in its order; those that have not begun are waiting.

    Raises:
        ExternalError: the group's file is damaged.
    """
    for name, values in _members(path):
        if is_run(path / name):
            yield describe(path / name)
        else:
            yield Entry(
                name,
                path / name,
                recipe=values["recipe"]["name"],
                seed=values["seed"],
                state="waiting",
                about="has not begun",
            )


def size(path: Path) -> int:
    """Bytes of all files below ``path``. Links are not followed."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a run that is going on removes its checkpoints
                total += Path(place, name).lstat().st_size
    return total


def _state(path: Path) -> tuple[str, str, float | None]:
    """State, more about it, and test accuracy of a run."""
    if run_dir.is_finished(path):
        report = run_dir.read_report(path)
        return "finished", f"{report['steps']:,} steps", float(report["test_accuracy"])
    steps = run_dir.list_checkpoints(path)
    at = f"at step {max(steps):,}" if steps else "before its first checkpoint"
    if io.is_locked(path):
        return "running", at, None
    if (path / run_dir.NONFINITE).exists():
        values = io.read_json(path / run_dir.NONFINITE)
        return "failed", f"{values['what']} not finite at step {values['step']:,}", None
    return "interrupted", at, None


def _group_state(path: Path) -> tuple[str, str, float | None]:
    runs = [path / name for name, _ in _members(path)]
    failed = sum((run / run_dir.NONFINITE).exists() for run in runs)
    about = f"{sum(map(run_dir.is_finished, runs))} of {len(runs)} runs"
    about += f", {failed} failed" if failed else ""
    if (path / SUMMARY).exists():
        return "finished", about, float(run_dir.read_report(path, SUMMARY)["test_accuracy"])
    if io.is_locked(path):
        return "running", about, None
    return "failed" if failed == len(runs) else "interrupted", about, None


def _members(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and values of each; a name that leads elsewhere is damage."""
    found = [(str(m["name"]), m) for m in run_dir.read_manifest(path, SWEEP)["members"]]
    if not found or any(name in ("", ".", "..") or Path(name).name != name for name, _ in found):
        raise ExternalError(f"{path / SWEEP} names runs that cannot be in it")
    return found


# Removing ----------------------------------------------------------------------------------------


def check_removable(path: Path) -> None:
    """Raise a UsageError unless ``path`` is a run, or a group of runs, that may be removed.

    It may not if it is a link, is one of a group, has a manifest of another kind, or if a process
    is training into it.
    """
    where = one_line(path)
    if path.is_symlink():
        raise UsageError(f"{where} is a link, and is not followed; give the run that it leads to")
    if not is_run(path):
        raise UsageError(f"{where} is not a run directory, and is not removed")
    first = path / (SWEEP if run_dir.is_group(path) else run_dir.MANIFEST)
    if not _is_ours(first):
        raise UsageError(
            f"{one_line(first)} was not written by fcifar, or is damaged; if {where} is a run, "
            "remove the folder yourself"
        )
    if run_dir.is_group(path.absolute().parent):
        raise UsageError(
            f"{where} is one run of the group {one_line(path.absolute().parent)}, which would not "
            "be whole without it; remove the group"
        )
    runs = [folder for folder in sorted(path.iterdir()) if is_run(folder)]
    if held := [run for run in (path, *runs) if io.is_locked(run)]:
        raise UsageError(f"a process is training into {one_line(held[0])}; stop it first")


def remove(path: Path) -> None:
    """Remove a run or a group, with all that is in its folder. Links in it are not followed.

    Raises:
        UsageError: as ``check_removable``.
        ExternalError: the disk refused; the message says what is left.
    """
    check_removable(path)
    # Out of sight at once, so that no half of a run is ever taken for one.
    hidden = path.with_name(f".removed-{os.getpid()}-{path.name}")
    try:
        with io.locked(path):
            path.rename(hidden)
        shutil.rmtree(hidden)
    except OSError as error:
        left = hidden if hidden.exists() else path
        raise ExternalError(
            f"cannot remove {one_line(path)}: {reason(error)}; what is left is in {one_line(left)}"
        ) from error


def _is_ours(file: Path) -> bool:
    with contextlib.suppress(ExternalError):
        values = io.read_json(file)
        wanted = {"format", "environment", "members" if file.name == SWEEP else "recipe"}
        return isinstance(values, dict) and wanted <= set(values)
    return False
