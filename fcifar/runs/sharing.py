"""A group whose runs several processes share out: how rank 0 has the others train theirs."""

import dataclasses
import signal
import time
from pathlib import Path

from fcifar.data import Dataset
from fcifar.errors import WorldError
from fcifar.runs import group, leading, ranks
from fcifar.runs.group import Group
from fcifar.runs.program import count
from fcifar.runs.stepping import Stop

_POLL = 0.2  # seconds between two looks at what the others have done


def check(asked: Group, dataset: Dataset) -> None:
    """Make sure of what all processes would stumble on. Raises a UserError."""
    leading.describe(dataset)
    for part in group.parts(asked.members):
        count(part.members[0].recipe, dataset, seed=asked.runtime.seed)


def call(path: Path, asked: Group, dataset: Dataset) -> int:
    """Have the other processes train their shares of the group at ``path``; the job's number."""
    return ranks.post(
        {
            "kind": "group",
            "path": str(path.absolute()),
            "dataset": leading.describe(dataset),
            "safeguards": dataclasses.asdict(asked.safeguards),
        }
    )


def wait(number: int, path: Path, asked: Group, stop: Stop) -> int | None:
    """Wait until they have; the signal that ended it before, if one did.

    Raises:
        WorldError: one of them failed, or trained where this process sees nothing of it.
    """
    outcomes: dict[int, str | None] = dict.fromkeys(range(1, ranks.here().size))
    while None in outcomes.values():
        if (signum := stop()) is not None:
            return signum
        time.sleep(_POLL)
        outcomes = {rank: seen or ranks.reported(number, rank) for rank, seen in outcomes.items()}
    if failed := [rank for rank, outcome in outcomes.items() if outcome == "failed"]:
        raise WorldError(
            f"process {failed[0]} failed, as it says itself; go on with: fcifar train --resume "
            f"{path}"
        )
    if "interrupted" in outcomes.values():
        return stop() or signal.SIGTERM
    if missing := [m.name for m in asked.members if not group.has_ended(path / m.name, asked)]:
        raise WorldError(
            f"the run {missing[0]} was trained elsewhere, and is not in {path}; --out must be in a "
            "folder that all processes share"
        )
    return None
