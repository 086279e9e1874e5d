"""The training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fcifar import io
from fcifar.data import Dataset
from fcifar.parallel import Axis
from fcifar.recipes import Recipe
from fcifar.step_transforms import LoopState, StepInput, shard, stack
from fcifar.train import (
    bookkeeping,
    distributed,
    events,
    run_dir,
)
from fcifar.train.bookkeeping import NonFiniteError, Row, Run, has_ended
from fcifar.train.checkpoint import load_init
from fcifar.train.config import RunConfig, check_same_data
from fcifar.train.early_stopping import is_best
from fcifar.train.events import Noted, Observe, Pace, ignore
from fcifar.train.runtime import activate, on_rank
from fcifar.train.setup import Training, make_trainings, stage_at
from fcifar.train.signals import Stop, never

TICK = 0.25  # seconds between two progress events, and between two polls of several ranks


class Interrupted(NamedTuple):
    """Training stopped early, after saving a checkpoint."""

    signum: int | None  # None if ``until`` was reached
    step: int


def train(
    path: Path,
    config: RunConfig,
    dataset: Dataset,
    *,
    rows: Sequence[Row] = (),
    pretrained: Mapping[str, Tensor] | None = None,
    make: Callable[[Recipe, int], Training] | None = None,
    axis: Axis | None = None,
    resume: bool = False,
    begin: Callable[[], None] = lambda: None,
    observe: Observe = ignore,
    stop: Stop = never,
    probe: Callable[[int, LoopState], None] | None = None,
    until: int | None = None,
) -> dict[str, Any] | Interrupted:
    """Train, evaluate, and write a run directory.

    Call it on every rank of a ``torchrun`` script, with ``config.runtime.processes`` as the number
    of ranks, for data parallel training: each rank takes its part of every batch, rank 0 writes.

    Args:
        path: the run directory, new or (with ``resume``) an existing one. The report of a finished
            run is returned as it is.
        config: from ``make_config``.
        dataset: the data set of ``config``.
        rows: runs to train at once by ``vmap``, instead of the one at ``path``; ``config`` is what
            they share. With ``resume``, those that have begun are resumed.
        pretrained: the values of ``config.init``, by name. With ``resume``, those in the run
            directory.
        make: from ``make_trainings``, to share compiled functions between runs.
        axis: the ranks that divide each batch; by default all ranks.
        begin: called before the first file is written.
        observe: called with each event.
        stop: called before each step; a signal number ends training after a checkpoint.
        probe: called after each step with the state, which the next step may overwrite.
        until: stop after this step.

    Returns:
        The report, which is also in ``report.json``; for ``rows``, the reports by name; or
        ``Interrupted``.

    Raises:
        UsageError: invalid request; nothing was written.
        NonFiniteError: a loss or a parameter is not finite; the other ``rows`` continue.
        ExternalError: a file cannot be written.
        LostError: another rank ended, or did not answer in time.
    """
    check_same_data(path, config, dataset)
    with contextlib.ExitStack() as contexts:
        if axis is None:
            device = on_rank(config.runtime.device, distributed.local_rank())
            config = config.replace(runtime=dataclasses.replace(config.runtime, device=device))
            axis = contexts.enter_context(distributed.group(config.runtime))
        contexts.enter_context(activate(config.runtime))
        if axis.rank == 0 and not resume:
            for new in [row.path for row in rows] or [path]:
                run_dir.check_free(new)
        if make is None:
            pretrained = load_init(path, config) if resume else pretrained
            make = make_trainings(config, dataset, axis, pretrained)
        runs = [Run(row, i, make, dataset) for i, row in enumerate(rows)]
        runs = runs or [Run(Row(path, config, observe), None, make, dataset)]
        ended = has_ended if rows else lambda path, _: run_dir.is_finished(path)
        active = [run for run in runs if not (resume and ended(run.path, run.config))]
        if not active:
            observe(Noted(f"{path} is already finished; nothing to train"))
            return {} if rows else run_dir.read_report(path)
        if axis.rank == 0:
            for run in active:
                contexts.enter_context(io.locked(run.path))

        training, (save_steps, save_seconds) = active[0].training, config.checkpoint.every
        state = bookkeeping.init_or_restore(runs, active, resume=resume)
        step = int(state.state.step.max())
        if config.compile:
            training.listeners[:] = [active[0].observe]
            with active[0].timing("compile"):
                for function, arguments in training.first_calls(state):
                    function(*arguments)
                state.nonfinite.tolist()  # wait for the device
        if axis.rank == 0:
            begin()
            for run in active:
                bookkeeping.begin(run, state, step, resume=resume)

        stages = training.vmap_stages if rows else training.stages
        take_step = stage_at(stages, step)
        log_every = config.recipe.log_every or training.steps_per_epoch
        ends = {n * training.steps_per_epoch for n in (*config.earlier_ends, config.recipe.epochs)}
        reports: dict[str, Any] = {}
        pace = Pace(step, active[0].timings.train)
        lap = saved = polled = time.perf_counter()
        next_tick, next_poll, interval, signum = 0.0, step, 1, 0.0

        def count_time() -> None:
            """Add the time since the last call to the training time."""
            nonlocal lap
            now = time.perf_counter()
            for run in active:
                run.timings.train += (now - lap) / len(runs)
            lap = now

        @contextlib.contextmanager
        def dropping_nonfinite(run: Run) -> Generator[None]:
            """Continue a sweep without a run whose loss or parameters are not finite."""
            try:
                yield
            except NonFiniteError as error:
                if not rows:
                    raise
                run.observe(Noted(str(error)))
                active.remove(run)

        for run in [run for run in active if run.is_done(step)]:  # resumed after its last step
            reports[run.path.name] = bookkeeping.finish(run, state, step)
            active.remove(run)

        for inputs in _inputs(runs, active, step):
            is_late, is_tick = 0.0, 0.0
            if step >= next_poll:  # each step; with several ranks every few, since they must agree
                now = time.perf_counter()
                local = [stop() or 0, now - saved >= save_seconds, now >= next_tick, now - polled]
                signum, is_late, is_tick, seconds = distributed.maximum(local, axis)
                if axis.size > 1:
                    interval = max(1, min(4 * interval, int(interval * TICK / max(seconds, 1e-6))))
                next_poll, polled = step + interval, now
            if signum or step == until:
                count_time()
                for run in list(active):
                    with dropping_nonfinite(run):
                        bookkeeping.save(run, state, step)
                return Interrupted(int(signum) or None, step)

            take_step = stages.get(step, take_step)
            state, _ = take_step(state, inputs)
            step += 1

            is_epoch_end = step % training.steps_per_epoch == 0
            is_log = step % log_every == 0 or step in ends
            is_due = bool(is_late) or step % save_steps == 0 or (bool(rows) and is_epoch_end)
            if not (is_log or is_epoch_end or is_due or is_tick or probe):
                continue
            count_time()
            for run in list(active):
                with dropping_nonfinite(run):
                    if is_log:
                        bookkeeping.log_train(run, state, step)
                    if is_epoch_end and len(run.training.valid.labels):
                        count_time()
                        with run.timing("valid"):
                            valid, _ = bookkeeping.evaluate_split(
                                run, run.variables(state), "valid", step
                            )
                        run.valid_losses.append(valid["loss"])
                        lap = time.perf_counter()
                    if probe:
                        probe(step, state)
                    is_new_best = is_epoch_end and is_best(run.valid_losses)
                    if is_due or is_new_best:
                        bookkeeping.save(run, state, step)
                        saved = time.perf_counter()
                    if is_new_best:
                        run.save_model(run_dir.BEST, run.variables(state))
                    if is_tick:
                        run.observe(bookkeeping.progress(run, state, step))
                    if is_epoch_end and run.is_done(step):  # the last step, or early stopping
                        count_time()
                        reports[run.path.name] = bookkeeping.finish(run, state, step)
                        active.remove(run)
                        lap = time.perf_counter()
            if not active:
                break
            if is_tick:
                next_tick = time.perf_counter() + TICK
                pace, factor = events.update_pace(pace, step, active[0].timings.train)
                if factor:
                    text = events.describe_slowdown(pace, factor, config.runtime.threads)
                    active[0].observe(Noted(text))
        return reports if rows else reports[path.name]


def _inputs(runs: Sequence[Run], active: Sequence[Run], step: int) -> Iterator[StepInput]:
    """Return the inputs from ``step`` on: of the run, or of all runs, stacked."""
    if not active:
        return iter(())
    first = active[0].training
    if active[0].row is not None:
        each = [(run.training if run in active else first).inputs(step) for run in runs]
        return (stack(row_inputs) for row_inputs in zip(*each, strict=True))
    if first.axis.size == 1:
        return first.inputs(step)
    return (shard(inputs, first.axis.rank, first.axis.size) for inputs in first.inputs(step))
