"""What is in a folder of runs, told from the files without loading torch."""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.errors import UserError, WorldError, did_you_mean, one_line, shown
from fcifar.runs import directory, jsonfiles, lock

GROUP = "group.json"
SUMMARY = "summary.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")


class Entry(NamedTuple):
    """A run, or a group of runs, as a list shows it."""

    name: str  # of its directory
    path: Path
    members: int  # of a group; 0 for a run by itself
    recipe: str
    dataset: str
    seed: int | None  # of a group, the first
    state: str  # finished, running, interrupted, failed, waiting or damaged
    about: str  # what more there is to say of the state
    test_accuracy: float | None  # in [0, 1]; of a group, the mean
    created: str  # ISO 8601
    bytes: int  # on the disk

    @property
    def resume(self) -> str | None:
        """The command that goes on with it, if it can."""
        return f"fcifar train --resume {self.path}" if self.state == "interrupted" else None


def find(root: Path) -> list[Entry]:
    """The runs and groups in a folder, the oldest first. Links to folders are passed over."""
    try:
        paths = sorted(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise WorldError(f"cannot read {one_line(root)}: {error.strerror}") from error
    found = [describe(path) for path in paths if not path.is_symlink() and is_run(path)]
    return sorted(found, key=lambda entry: (entry.created, entry.name))


def is_run(path: Path) -> bool:
    """Whether there is a run or a group of runs at ``path``."""
    return (path / GROUP).is_file() or (path / directory.MANIFEST).is_file()


def named(path: Path, root: Path) -> Path:
    """``path``, or where nothing is there, the run or group of that name in ``root``.

    Raises:
        UserError: there is neither, and ``path`` is nearly the name of one.
    """
    if path.exists() or path.name != str(path):
        return path
    if is_run(root / path):
        return root / path
    if hint := did_you_mean(path.name, _names(root)):
        raise UserError(f"there is no {one_line(path)}, here or in {one_line(root)}{hint}")
    return path


def locate(text: str, root: Path) -> Path:
    """The run or group of that path, or of that name in ``root``.

    Raises:
        UserError: there is none.
    """
    for path in (Path(text), root / text):
        if text and is_run(path):
            return path
    if text and any(path.exists() for path in (root / text, Path(text))):
        raise UserError(
            f"{shown(text)} is not a run directory: there is neither {directory.MANIFEST} nor "
            f"{GROUP} in it"
        )
    raise UserError(
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
    """What is known of the run or the group at ``path``. Damage is a state, and no error."""
    try:
        if (path / GROUP).is_file():
            return _describe_group(path)
        return _describe_run(path)
    except (WorldError, UserError, LookupError, TypeError, AttributeError) as error:
        first = path / (GROUP if (path / GROUP).is_file() else directory.MANIFEST)
        created = datetime.fromtimestamp(first.stat().st_mtime, UTC)
        return Entry(
            name=path.name,
            path=path,
            members=0,
            recipe="",
            dataset="",
            seed=None,
            state="damaged",
            about=str(error),
            test_accuracy=None,
            created=created.isoformat(timespec="seconds"),
            bytes=size(path),
        )


def members(path: Path) -> Iterator[Entry]:
    """The runs of the group at ``path``, in its order; those that have not begun are waiting.

    Raises:
        WorldError: the group's file is damaged.
    """
    for name, values in _members(path):
        if is_run(path / name):
            yield describe(path / name)
        else:
            yield Entry(
                name=name,
                path=path / name,
                members=0,
                recipe=values["recipe"]["name"],
                dataset="",
                seed=values["seed"],
                state="waiting",
                about="has not begun",
                test_accuracy=None,
                created="",
                bytes=0,
            )


def size(path: Path) -> int:
    """Bytes of all files below ``path``. Links are not followed."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a run that is going on removes its checkpoints
                total += Path(place, name).lstat().st_size
    return total


def _describe_run(path: Path) -> Entry:
    manifest = directory.read_manifest(path)
    state, about, accuracy = _state(path)
    return Entry(
        name=path.name,
        path=path,
        members=0,
        recipe=str(manifest["recipe"]["name"]),
        dataset=str(manifest["dataset"]["name"]),
        seed=int(manifest["runtime"]["seed"]),
        state=state,
        about=about,
        test_accuracy=accuracy,
        created=str(manifest["created"]),
        bytes=size(path),
    )


def _state(path: Path) -> tuple[str, str, float | None]:
    """State, more about it, and test accuracy."""
    if (path / directory.REPORT).exists():
        report = directory.read_report(path)
        return "finished", f"{report['steps']:,} steps", float(report["test_accuracy"])
    steps = [
        int(found[1]) for name in path.iterdir() if (found := _CHECKPOINT.fullmatch(name.name))
    ]
    at = f"at step {max(steps):,}" if steps else "before its first checkpoint"
    if lock.is_held(path):
        return "running", at, None
    if (path / directory.NONFINITE).exists():
        values = jsonfiles.read(path / directory.NONFINITE)
        return "failed", f"{values['what']} not finite at step {values['step']:,}", None
    return "interrupted", at, None


def _describe_group(path: Path) -> Entry:
    values = jsonfiles.read_sealed(path / GROUP)
    runs = _members(path)
    ended = [name for name, _ in runs if (path / name / directory.REPORT).exists()]
    failed = [name for name, _ in runs if (path / name / directory.NONFINITE).exists()]
    about, accuracy = f"{len(ended)} of {len(runs)} runs", None
    if failed:
        about += f", {len(failed)} failed"
    if (path / SUMMARY).exists():
        accuracy = float(jsonfiles.read_sealed(path / SUMMARY)["test_accuracy"])
        state = "finished"
    elif lock.is_held(path):
        state = "running"
    else:
        state = "failed" if len(failed) == len(runs) else "interrupted"
    _, first = runs[0]
    return Entry(
        name=path.name,
        path=path,
        members=len(runs),
        recipe=str(first["recipe"]["name"]),
        dataset=str(values["dataset"]["name"]),
        seed=int(first["seed"]),
        state=state,
        about=about,
        test_accuracy=accuracy,
        created=str(values["created"]),
        bytes=size(path),
    )


def _members(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Name and values of each; a name that leads elsewhere is damage."""
    found = [(str(m["name"]), m) for m in jsonfiles.read_sealed(path / GROUP)["members"]]
    if not found or any(name in ("", ".", "..") or Path(name).name != name for name, _ in found):
        raise WorldError(f"{path / GROUP} names runs that cannot be in it")
    return found
