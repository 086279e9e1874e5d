"""Rank 0 of several processes, as it begins a run and ends it."""

import contextlib
import dataclasses
from collections.abc import Iterator

from fcifar import parallel, recipes
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.parallel import Axis
from fcifar.runs import ranks, together
from fcifar.runs.manifest import Settings
from fcifar.runs.runtime import Runtime


@contextlib.contextmanager
def lead(settings: Settings, dataset: Dataset) -> Iterator[Axis]:
    """The processes that a run's batches are divided between, while it lasts.

    The others must be waiting in ``following.serve``. Whatever goes wrong here ends them, too.

    Raises:
        UserError: there are more or fewer processes than ``settings.runtime`` says, or ``dataset``
            is no prepared one.
        LostError: another process ended, or did not answer in time.
    """
    check_processes(settings.runtime)
    if settings.runtime.processes == 1:
        yield parallel.ALONE
        return
    ranks.post(
        {
            "kind": "run",
            "recipe": recipes.to_dict(settings.recipe),
            "runtime": dataclasses.asdict(settings.runtime),
            "compiled": settings.compiled,
            "traced": settings.traced,
            "dataset": describe(dataset),
        }
    )
    try:
        ranks.join(settings.runtime.device)
        with ranks.telling():
            axis = parallel.across_ranks()
            yield axis
            together.end(axis)
    except BaseException:
        ranks.leave()
        raise


def check_processes(runtime: Runtime) -> None:
    """Make sure that as many processes are here as ``runtime`` says. Raises a UserError."""
    wanted, found = runtime.processes, ranks.here().size
    if wanted != found:
        start = f"torchrun --nproc-per-node {wanted} -m fcifar" if wanted > 1 else "fcifar"
        raise UserError(
            f"this is a run of {wanted} process{'es' if wanted > 1 else ''}, and {found} "
            f"{'are' if found > 1 else 'is'} here; start it with {start} ..."
        )


def describe(dataset: Dataset) -> dict[str, str]:
    """Where other processes find a data set. Raises a UserError if it is in memory alone."""
    if not dataset.path:
        raise UserError(
            f"the data set {dataset.name} is in memory alone, and other processes cannot map it; "
            "save it with fcifar.data.save, and load it again"
        )
    return {"path": dataset.path, "digest": dataset.digest}
