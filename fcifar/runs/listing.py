"""List and remove the runs in a folder. Must not import torch, so that it stays fast."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import io
from fcifar.errors import ExternalError, UsageError, did_you_mean, one_line, reason
from fcifar.train import run_dir
from fcifar.train.run_dir import SUMMARY, SWEEP


class Entry(NamedTuple):
    """A run, or a group of runs."""

    name: str  # of its directory
    path: Path
    members: int = 0  # runs of a group; 0 for a single run
    recipe: str = ""
    dataset: str = ""
    seed: int | None = None  # of a group, the first
    state: str = "damaged"  # finished, running, interrupted, failed, waiting or damaged
    about: str = ""  # details of the state
    test_accuracy: float | None = None  # in [0, 1]; of a group, the mean
    created: str = ""  # ISO 8601
    bytes: int = 0  # on the disk

    @property
    def resume(self) -> str | None:
        """The command that resumes it, if it was interrupted."""
        return f"fcifar train --resume {self.path}" if self.state == "interrupted" else None


def find(root: Path) -> list[Entry]:
    """Return the runs and groups in a folder, the oldest first. Links are ignored."""
    try:
        paths = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise ExternalError(f"cannot read {one_line(root)}: {error.strerror}") from error
    entries = [describe(path) for path in paths if not path.is_symlink() and is_run(path)]
    return sorted(entries, key=lambda entry: (entry.created, entry.name))


def is_run(path: Path) -> bool:
    """Whether ``path`` is the directory of a run or of a group of runs."""
    return run_dir.is_group(path) or (path / run_dir.MANIFEST).is_file()


def locate(path: Path, root: Path) -> Path:
    """Return ``path`` if it exists, else the run or group of that name in ``root``.

    Raises a UsageError if there is neither.
    """
    if path.exists():
        return path
    if is_run(root / path):
        return root / path
    runs = [run for run in root.iterdir() if is_run(run)] if root.is_dir() else []
    names = [run.name for run in sorted(runs, key=os.path.getmtime, reverse=True)]
    some = f"; fcifar runs list shows its runs, such as {', '.join(names[:3])}"
    hint = did_you_mean(path.name, names) or (some if names else "; fcifar train makes one")
    raise UsageError(f"there is no {path}, and no run of that name in {one_line(root)}{hint}")


def describe(path: Path) -> Entry:
    """Return the entry of the run or group at ``path``. Damage is a state, not an error.

    Raises a UsageError if there is none.
    """
    if not is_run(path):
        raise UsageError(
            f"{path} is not a run directory: there is neither {run_dir.MANIFEST} nor {SWEEP} in it"
        )
    is_group, entry = run_dir.is_group(path), Entry(path.name, path, bytes=_size(path))
    file = SWEEP if is_group else run_dir.MANIFEST
    try:
        manifest = run_dir.read_manifest(path, file)
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
        modified = datetime.fromtimestamp((path / file).stat().st_mtime, UTC)
        created = modified.isoformat(timespec="seconds")
        return entry._replace(about=str(error), created=created)


def members(path: Path) -> Iterator[Entry]:
    """Yield the runs of a group. Raises an ExternalError if the group's manifest is damaged."""
    for name, values in _members(path):
        if is_run(path / name):
            yield describe(path / name)
        else:
            recipe, seed = values["recipe"]["name"], values["seed"]
            about = "has not begun"
            yield Entry(name, path / name, recipe=recipe, seed=seed, state="waiting", about=about)


def _size(path: Path) -> int:
    """Return the bytes of all files below ``path``. Links are not followed."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a running process removes old checkpoints
                total += Path(folder, name).lstat().st_size
    return total


def _state(path: Path) -> tuple[str, str, float | None]:
    """Return state, details and test accuracy of a run."""
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
    """Return name and specification of each run. Raises an ExternalError for invalid names."""
    runs = [(str(m["name"]), m) for m in run_dir.read_manifest(path, SWEEP)["members"]]
    if not runs or any(name in ("", ".", "..") or Path(name).name != name for name, _ in runs):
        raise ExternalError(f"{path / SWEEP} names runs that cannot be in it")
    return runs


# Removing ----------------------------------------------------------------------------------------


def check_removable(path: Path) -> None:
    """Raise a UsageError unless ``path`` is a run or group that may be removed.

    It may not be a link, a run of a group, another program's folder, or in use by a process.
    """
    name = one_line(path)
    if path.is_symlink():
        raise UsageError(f"{name} is a link, and is not followed; give the run that it leads to")
    if not is_run(path):
        raise UsageError(f"{name} is not a run directory, and is not removed")
    if path.name in ("", ".."):
        raise UsageError(f"{name} has no name of its own; give the path of {path.resolve().name}")
    manifest = path / (SWEEP if run_dir.is_group(path) else run_dir.MANIFEST)
    if not _is_ours(manifest):
        raise UsageError(
            f"{one_line(manifest)} was not written by fcifar, or is damaged; if {name} is a run, "
            "remove the folder yourself"
        )
    if run_dir.is_group(path.absolute().parent):
        raise UsageError(
            f"{name} is one run of the group {one_line(path.absolute().parent)}, which would be "
            "incomplete without it; remove the group"
        )
    runs = [folder for folder in sorted(path.iterdir()) if is_run(folder)]
    if locked := [run for run in (path, *runs) if io.is_locked(run)]:
        raise UsageError(f"a process is training into {one_line(locked[0])}; stop it first")


def remove(path: Path) -> None:
    """Remove the folder of a run or a group. Links in it are not followed.

    Raises as ``check_removable``, and an ExternalError if it cannot be removed completely.
    """
    check_removable(path)
    # Renamed first, so that a partly removed run is never listed.
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


def _is_ours(manifest: Path) -> bool:
    with contextlib.suppress(ExternalError):
        values = io.read_json(manifest)
        required = {"format", "environment", "members" if manifest.name == SWEEP else "recipe"}
        return isinstance(values, dict) and required <= set(values)
    return False
