"""All ranks but the first: they wait for jobs and do them, until there are no more."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcifar import data, parallel, recipes
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.runs import group, loop, many, ranks, together
from fcifar.runs.events import Observe, ignore
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime, activate, on_rank
from fcifar.runs.stepping import Stop

_GRACE = 25  # seconds in which rank 0 may save and let us go, before torchrun kills us all


def serve(*, observe: Observe = ignore, catch: Callable[[], Any]) -> None:
    """Do what rank 0 wants done, as often as it wants something.

    Args:
        observe: is told what happens in runs of one's own.
        catch: ``interrupt.catching_signals``, entered for those.

    Raises:
        LostError: another process ended, or did not answer in time.
        UserError, WorldError: this process could not do its part.
    """
    for number, job in ranks.jobs():
        dataset = _open(job["dataset"])
        if job["kind"] == "run":
            _follow(job, dataset)
            continue
        outcome = "failed"
        try:
            with catch() as stop:
                outcome = _train_share(job, dataset, observe, stop)
        finally:
            ranks.report(number, outcome)


def _follow(job: dict[str, Any], dataset: Dataset) -> None:
    """Take part in a run that all make together."""
    rank = ranks.here()
    given = Runtime(**job["runtime"])
    runtime = dataclasses.replace(given, device=on_rank(given.device, rank.local))
    before = {s: signal.signal(s, _grant_time) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        ranks.join(runtime.device)
        with activate(runtime), ranks.telling():
            program = build(
                recipes.from_dict(job["recipe"]),
                runtime,
                dataset,
                compiled=job["compiled"],
                traced=job["traced"],
                axis=parallel.across_ranks(),
            )
            together.follow(program, rank.rank)
    except BaseException:
        ranks.leave()
        raise
    finally:
        signal.alarm(0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _grant_time(signum: int, frame: object) -> None:
    """Go on: rank 0 has heard the signal too, and says when to end. But do not go on for ever."""
    signal.alarm(_GRACE)


def _train_share(job: dict[str, Any], dataset: Dataset, observe: Observe, stop: Stop) -> str:
    """Train this rank's share of a group. Its outcome, for rank 0."""
    path = Path(job["path"])
    asked = group.read(path)
    asked = asked._replace(safeguards=dataclasses.replace(asked.safeguards, **job["safeguards"]))
    device = on_rank(asked.runtime.device, ranks.here().local)
    asked = asked._replace(runtime=dataclasses.replace(asked.runtime, device=device))
    result = many.train_shares(path, asked, dataset, observe=observe, stop=stop)
    return "interrupted" if isinstance(result, loop.Interrupted) else "done"


def _open(where: dict[str, str]) -> Dataset:
    """Map the file that rank 0 has mapped, or this host's copy of it.

    Raises:
        UserError: it is not there, or is another data set.
    """
    path = Path(where["path"])
    dataset = data.load(path.stem, path.parent)
    if ranks.here().local == 0:  # rank 0 has done so on its own host
        data.verify(path.stem, path.parent)
    if dataset.digest != where["digest"]:
        raise UserError(
            f"{path} is another data set than that of process 0 (digest {dataset.digest[:12]}, "
            f"there {where['digest'][:12]}); prepare the same one on every host"
        )
    return dataset
