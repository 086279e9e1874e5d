"""Sweeps: a group of runs, over seeds and over the points of a grid.

group.json      trials, method and configuration
NAME/           the run directory of each trial
summary.json    the result
SHA256SUMS      of both files
plots/          figures

Trials are trained one after another with one compiled step, or at once by ``vmap``. With several
ranks, each trains every n-th trial, without communication.
"""

import dataclasses
import functools
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fcifar import io, parallel, recipes
from fcifar.data import Dataset
from fcifar.errors import ExternalError, UsageError, shown
from fcifar.recipes.trials import METHODS, NAME, Trial, compile_groups
from fcifar.train import distributed, run_dir
from fcifar.train.checkpoint import load_init, save_init
from fcifar.train.config import RunConfig, check_same_data, from_dict, provenance, to_dict
from fcifar.train.events import Advanced, Event, Logged, Noted, Observe, Preparing, ignore
from fcifar.train.loop import Interrupted, NonFiniteError, Row, has_ended
from fcifar.train.loop import train as train_run
from fcifar.train.runtime import activate, on_rank
from fcifar.train.setup import make_trainings
from fcifar.train.signals import Stop, never
from fcifar.train.summary import summarize

_POLL = 0.2  # seconds


class Sweep(NamedTuple):
    """The trials of a sweep and how to train them."""

    trials: tuple[Trial, ...]
    method: str  # one of METHODS
    config: RunConfig  # of the first trial


def write(path: Path, sweep: Sweep) -> None:
    """Write the manifest of a sweep."""
    trials = [{**t._asdict(), "recipe": recipes.to_dict(t.recipe)} for t in sweep.trials]
    values = {"members": trials, "method": sweep.method, **to_dict(sweep.config)}
    models = [trial.recipe.model for trial in sweep.trials]
    run_dir.write_manifest(path, values | provenance(models), run_dir.SWEEP)


def read(path: Path) -> Sweep:
    """Read the manifest of a sweep. Raises as ``run_dir.read_manifest``."""
    values, file = run_dir.read_manifest(path, run_dir.SWEEP), path / run_dir.SWEEP
    try:
        for trial in values["members"]:
            if not NAME.fullmatch(trial["name"]):
                raise UsageError(f"{file}: {shown(trial['name'])} is not a valid name of a run")
        trials = tuple(
            Trial(t["name"], recipes.from_dict(t["recipe"]), t["seed"], t["changes"])
            for t in values["members"]
        )
        if not trials or (method := values["method"]) not in METHODS:
            raise UsageError(f"{file} is not complete: it has no runs, or no method")
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is not complete: {error!r}") from error
    return Sweep(trials, method, from_dict(values, file))


def expand(paths: Sequence[Path]) -> list[Path]:
    """Replace each group by its finished runs. Raises a UsageError if a group has none."""
    return [run for path in paths for run in (finished(path) if run_dir.is_group(path) else [path])]


def finished(path: Path) -> list[Path]:
    """Return the finished runs of a group. Raises a UsageError if there is none."""
    runs = [path / trial.name for trial in read(path).trials]
    if not any(map(run_dir.is_finished, runs)):
        raise UsageError(
            f"no run of {path} is finished; resume it with fcifar train --resume {path}"
        )
    return [run for run in runs if run_dir.is_finished(run)]


def train(
    path: Path,
    sweep: Sweep,
    dataset: Dataset,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
    resume: bool = False,
    observe: Observe = ignore,
    stop: Stop = never,
) -> dict[str, Any] | Interrupted:
    """Train every trial of a sweep, and write its summary.

    A trial whose loss is not finite stops, and the others continue. With several ranks, each trains
    its share of the trials, and rank 0 waits for all of them; ``path`` must be shared storage.

    Args:
        path: the directory of the group, new or (with ``resume``) an interrupted one. Finished
            trials are not trained again.
        pretrained: the values of ``sweep.config.init``, by name. With ``resume``, those in the
            directory of the group.
        observe: called with each event.
        stop: called before each step; a signal number ends the sweep after checkpoints.

    Returns:
        The summary, which is also in ``summary.json``, on other ranks than 0 an empty dict; or
        ``Interrupted``.

    Raises:
        UsageError: invalid request; nothing was written.
        ExternalError: a file cannot be written.
    """
    check_same_data(path, sweep.config, dataset)
    if resume and run_dir.is_group(path):
        pretrained = load_init(path, sweep.config)
    if not distributed.is_main():
        result = _train_share(path, sweep, dataset, pretrained or {}, ignore, stop)
        distributed.report_done("interrupted" if result else "done")
        return result or {}
    with io.locked(path):
        if not resume:
            run_dir.check_free(path)
        elif run_dir.is_group(path):
            run_dir.write_checksums(path, [run_dir.SWEEP])
        result = _train_share(path, sweep, dataset, pretrained or {}, observe, stop)
        if result is None and distributed.world_size() > 1:
            observe(Preparing("waiting for the other processes"))
            result = _wait(path, sweep, stop)
        if result is not None:
            return result
        observe(Preparing("summarizing"))
        summary = summarize(path, sweep)
        run_dir.write_result(path, summary, run_dir.SUMMARY)
        return summary


def _train_share(
    path: Path,
    sweep: Sweep,
    dataset: Dataset,
    pretrained: Mapping[str, Tensor],
    observe: Observe,
    stop: Stop,
) -> Interrupted | None:
    """Train this rank's share of the trials, every n-th one.

    n is the number of ranks at the start of the sweep, because rounding depends on which trials are
    mapped together. With fewer ranks, a rank trains several shares.
    """
    base, size, is_vmap = sweep.config, distributed.world_size(), sweep.method == "vmap"
    starts = range(distributed.rank(), base.runtime.processes, size)
    shares = [[t.name for t in sweep.trials[i :: base.runtime.processes]] for i in starts]
    total, before = sum(map(len, shares)), 0
    batches = []

    def begin() -> None:
        if distributed.is_main() and not run_dir.is_group(path):
            if pretrained:
                save_init(path, pretrained)
            write(path, sweep)

    device = on_rank(base.runtime.device, distributed.local_rank())
    runtime = dataclasses.replace(base.runtime, processes=1, device=device)
    with activate(runtime):
        for group in compile_groups(sweep.trials):
            shared = base.replace(runtime=runtime, traced_hparams=group.traced_hparams)
            shared = shared.replace(recipe=group.trials[0].recipe)
            make = make_trainings(shared, dataset, pretrained=pretrained)
            parts = [[trial for trial in group.trials if trial.name in names] for names in shares]
            for batch in parts if is_vmap else [[trial] for part in parts for trial in part]:
                config = shared.replace(vmap_size=len(batch) if is_vmap else 0)
                rows = [
                    Row(
                        path / trial.name,
                        config.replace(recipe=trial.recipe, seed=trial.seed),
                        _watch(observe, trial.name, before, total, len(batch), is_first=not i),
                    )
                    for i, trial in enumerate(batch)
                ]
                batches.append((config, make, rows))
                before += len(batch)
    with distributed.main_first("sweep"):
        if size > 1:
            begin()
    for config, make, rows in batches:
        if (signum := stop()) is not None:
            return Interrupted(signum, 0)
        if all(has_ended(row.path, row.config) for row in rows):
            continue
        first, options = rows[0], {"make": make, "axis": parallel.ALONE, "begin": begin}
        train_batch = functools.partial(train_run, dataset=dataset, stop=stop, **options)
        try:
            if is_vmap:
                result = train_batch(path, config, rows=rows, resume=True)
            else:
                begun = (first.path / run_dir.MANIFEST).exists()
                result = train_batch(first.path, first.config, resume=begun, observe=first.observe)
        except NonFiniteError as error:
            first.observe(Noted(str(error)))
            continue
        if isinstance(result, Interrupted):
            return result
    return None


def _wait(path: Path, sweep: Sweep, stop: Stop) -> Interrupted | None:
    """Wait until the other ranks have trained their shares."""
    outcomes: list[str] = []
    while len(outcomes) < distributed.world_size() - 1:
        if (signum := stop()) is not None:
            return Interrupted(signum, 0)
        time.sleep(_POLL)
        outcomes = distributed.outcomes()
    if "interrupted" in outcomes:
        return Interrupted(stop() or signal.SIGTERM, 0)
    missing = [t.name for t in sweep.trials if not has_ended(path / t.name, sweep.config)]
    if missing:
        raise ExternalError(
            f"the run {missing[0]} is not in {path}, although another process trained it; --out "
            "must be in a folder that all processes share"
        )
    return None


def _watch(
    observe: Observe, name: str, before: int, total: int, at_once: int, *, is_first: bool
) -> Observe:
    """Add the name of a run to its events, and convert its progress to that of the sweep."""

    def watch(event: Event) -> None:
        match event:
            case Advanced(step=step, total_steps=steps) if is_first:
                done = step * at_once + before * steps
                observe(event._replace(name=name, step=done, total_steps=steps * total))
            case Preparing(what):
                observe(Preparing(f"{name}: {what}"))
            case Noted(text):
                observe(Noted(f"{name}: {text}"))
            case Logged(record):
                observe(Logged(record, name))

    return watch
