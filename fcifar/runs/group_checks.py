"""Whether a group is what it was: its files as they were written, its runs the same again."""

import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fcifar.data import Dataset
from fcifar.errors import UserError, WorldError
from fcifar.runs import directory, environment, group, integrity, jsonfiles, loop, many
from fcifar.runs.differences import compare_environments, compare_records
from fcifar.runs.events import Observe, ignore
from fcifar.runs.runtime import activate
from fcifar.runs.stepping import Stop


def check(path: Path) -> list[str]:
    """What is wrong with the files of a group and of its runs, a line each.

    Raises:
        UserError: ``path`` is no group.
        WorldError: its file is damaged, on which all else hangs.
    """
    problems: list[str] = []
    for member in group.read(path).members:
        if (path / member.name / directory.MANIFEST).exists():
            try:
                problems += integrity.check(path / member.name)
            except (UserError, WorldError) as error:
                problems.append(str(error))
        elif (path / group.SUMMARY).exists():
            problems.append(f"{path / member.name} is missing, though the group came to its end")
    if (path / group.SUMMARY).exists():
        try:
            group.read_summary(path)
        except WorldError as error:
            problems.append(str(error))
    return problems


def doubts(path: Path) -> list[str]:
    """Why the same bits cannot be expected again, if they cannot."""
    asked = group.read(path)
    then = jsonfiles.read_sealed(path / group.FILE).get("environment", {})
    with activate(asked.runtime):
        now = environment.describe(member.recipe.model for member in asked.members)
    changes = compare_environments(then, now, asked.runtime, compiled=asked.compiled)
    found = [f"{c.name} was {c.then} and is {c.now}" for c in changes if c.matters]
    fast = "the group was made with --fast, which promises no bits"
    return found + ([] if asked.runtime.deterministic else [fast])


def reproduce(
    path: Path,
    dataset: Dataset,
    *,
    out: Path | None = None,
    observe: Observe = ignore,
    stop: Stop = lambda: None,
) -> dict[str, Any] | loop.Interrupted:
    """Train a group again, and compare every log point and the final parameters of each run.

    All of its runs, by the same method: mapped over each other, they round together.

    Returns:
        What was found, as values that JSON holds; ``identical`` is the verdict. Or Interrupted.

    Raises:
        UserError: ``path`` is no group, has not come to its end, or had another data set.
        WorldError: a file of it is damaged.
    """
    asked = group.read(path)
    if not (path / group.SUMMARY).exists():
        raise UserError(
            f"{path} has not come to its end; continue it with fcifar train --resume {path}"
        )
    if dataset.digest != asked.dataset_digest:
        raise UserError(
            f"the data set {dataset.name} is not the one that {path} was trained on; prepare that "
            "one again"
        )
    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        new = Path(folder) if out else Path(folder) / "group"
        result = many.train(new, asked, dataset, observe=observe, stop=stop)
        if isinstance(result, loop.Interrupted):
            return result
        runs = [
            {"name": member.name, "first_difference": _first(path / member.name, new / member.name)}
            for member in asked.members
        ]
    damaged = check(path)
    return {
        "run": str(path),
        "identical": not damaged and all(run["first_difference"] is None for run in runs),
        "runs": runs,
        "damaged": damaged,
        "expected": not doubts(path),
        "seconds": time.perf_counter() - started,
    }


def _first(then: Path, now: Path) -> dict[str, Any] | None:
    """The first difference between the logs of two runs, or between their ends."""
    records, others = (directory.read_records(run) for run in (then, now))
    for i in range(max(len(records), len(others))):
        a, b = (json.loads(json.dumps(r[i])) if i < len(r) else None for r in (records, others))
        if difference := compare_records(a, b):
            return difference
    ends = [(run / directory.REPORT).exists() for run in (then, now)]
    if all(ends):
        a, b = (directory.read_report(run) for run in (then, now))
        if a["params_digest"] == b["params_digest"]:
            return None
    elif not any(ends):
        return None
    step = (records or others or [{"step": 0}])[-1]["step"]
    return {"step": step, "kind": "final", "what": [], "tensors": []}
