"""The training loop: ``train`` has the ``for`` over steps in it."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fcifar import fingerprint, io, metrics, random, tree
from fcifar.analysis.predictions import of_views, summarize
from fcifar.data import Dataset
from fcifar.errors import ExternalError
from fcifar.models import Variables
from fcifar.parallel import Axis
from fcifar.recipes import Recipe
from fcifar.step_transforms import LoopState, StepInput, shard, stack, take
from fcifar.train import checkpoint, distributed, environment, events, metrics_log, run_dir
from fcifar.train.checkpoint import Timings, load_model, save_model
from fcifar.train.config import RunConfig, check_same_config, check_same_data, write_config
from fcifar.train.early_stopping import best_epoch, is_best, should_stop
from fcifar.train.evaluate import evaluate, save_predictions
from fcifar.train.events import Advanced, Logged, Noted, Observe, Pace, Preparing, ignore
from fcifar.train.metrics_log import MetricsLog
from fcifar.train.runtime import activate, on_rank
from fcifar.train.setup import Training, make_trainings, stage_at
from fcifar.train.signals import Stop, never

TICK = 0.25  # seconds between two events of progress, and between two polls of several ranks
_SHOWN = 12  # row numbers in a message; all of them are in a file


class Interrupted(NamedTuple):
    """Training stopped before its end, with everything saved."""

    signum: int | None  # None where ``until`` was reached
    step: int


class NonFiniteError(ExternalError):
    """A loss or a parameter was not finite, and training stopped."""


class Row(NamedTuple):
    """One of the runs that a vmapped sweep trains at once, as rows of one stacked state."""

    run: Path
    config: RunConfig
    observe: Observe = ignore


def train(
    run: Path,
    config: RunConfig,
    dataset: Dataset,
    *,
    rows: Sequence[Row] = (),
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

    Called on every rank of a ``torchrun`` script, with the number of ranks as
    ``config.runtime.processes``, it trains data parallel: each rank takes its part of every batch,
    and rank 0 writes.

    Args:
        run: the run directory, new or (with ``resume``) one that was interrupted. Of a finished
            one only the report is returned.
        config: from ``make_config``.
        dataset: the one that ``config`` names.
        rows: train these runs at once, mapped over each other by ``vmap``, in place of ``run``;
            ``config`` is what they share. With ``resume``, those that have begun are continued.
        make: from ``make_trainings``, for runs that share what is compiled.
        axis: the ranks that divide each batch, if not all there are.
        begin: called before the first file is written.
        observe: called with each event.
        stop: called before each step; a signal number ends the run after a checkpoint.
        probe: called after each step with the state, which the next step may overwrite.
        until: stop after so many steps.

    Returns:
        The report, which is also in ``report.json``, or of ``rows`` each report by name; or
        ``Interrupted``.

    Raises:
        UsageError: the request cannot be carried out; nothing was written.
        NonFiniteError: a loss or a parameter is not finite; of ``rows``, the others go on instead.
        ExternalError: a file cannot be written; what was written before is whole.
        LostError: another rank ended, or did not answer in time.
    """
    check_same_data(run, config, dataset)
    if config.compile:
        environment.check_compiler(config.runtime.device)
    with contextlib.ExitStack() as contexts:
        if axis is None:
            device = on_rank(config.runtime.device, distributed.local_rank())
            config = config.replace(runtime=dataclasses.replace(config.runtime, device=device))
            axis = contexts.enter_context(distributed.group(config.runtime))
        contexts.enter_context(activate(config.runtime))
        if axis.rank == 0 and not resume:
            for path in [row.run for row in rows] or [run]:
                run_dir.check_free(path)
        make = make or make_trainings(config, dataset, axis)
        runs = [_Run(row, i, make, dataset) for i, row in enumerate(rows)]
        runs = runs or [_Run(Row(run, config, observe), None, make, dataset)]
        ended = has_ended if rows else lambda run, _: run_dir.is_finished(run)
        active = [one for one in runs if not (resume and ended(one.run, one.config))]
        if not active:
            observe(Noted(f"{run} is finished already"))
            return {} if rows else run_dir.read_report(run)
        if axis.rank == 0:
            for one in active:
                contexts.enter_context(io.locked(one.run))

        training, every = active[0].training, config.checkpoint.every
        state = _init_or_restore(runs, active, resume=resume)
        step = int(state.state.step.max())
        if config.compile:
            active[0].observe(Preparing("compiling"))
            with active[0].timing("compile"):
                for function, arguments in training.first_calls(state):
                    function(*arguments)
                state.nonfinite.tolist()  # wait for the device
        if axis.rank == 0:
            begin()
            for one in active:
                _begin(one, state, step, resume=resume)

        stages = training.vmap_stages if rows else training.stages
        take_step = stage_at(stages, step)
        log_every = config.recipe.log_every or training.steps_per_epoch
        ends = {n * training.steps_per_epoch for n in (*config.earlier_ends, config.recipe.epochs)}
        reports: dict[str, Any] = {}
        pace = Pace(step, active[0].timings.train)
        lap = saved = polled = time.perf_counter()
        next_tick, next_poll, interval, signum = 0.0, step, 1, 0.0

        def count_time() -> None:
            """Add the time since it was last counted to the training time."""
            nonlocal lap
            now = time.perf_counter()
            for one in active:
                one.add(train=(now - lap) / len(runs))
            lap = now

        @contextlib.contextmanager
        def leaving_out_nonfinite(one: _Run) -> Iterator[None]:
            """Go on without a run of several whose numbers are not finite."""
            try:
                yield
            except NonFiniteError as error:
                if not rows:
                    raise
                one.observe(Noted(str(error)))
                active.remove(one)

        for one in [one for one in active if one.is_over(step)]:  # resumed after its last step
            reports[one.run.name] = _finish(one, state, step)
            active.remove(one)

        for inputs in _inputs(runs, active, step):
            is_late, is_tick = 0.0, 0.0
            if step >= next_poll:  # each step; several ranks every few steps, for they must agree
                now = time.perf_counter()
                local = [stop() or 0, now - saved >= every.seconds, now >= next_tick, now - polled]
                signum, is_late, is_tick, seconds = distributed.maximum(local, axis)
                if axis.size > 1:
                    interval = max(1, min(4 * interval, int(interval * TICK / max(seconds, 1e-6))))
                next_poll, polled = step + interval, now
            if signum or step == until:
                count_time()
                for one in list(active):
                    with leaving_out_nonfinite(one):
                        _save(one, state, step)
                return Interrupted(int(signum) or None, step)

            take_step = stages.get(step, take_step)
            state, _ = take_step(state, inputs)
            step += 1

            is_epoch_end = step % training.steps_per_epoch == 0
            is_log = step % log_every == 0 or step in ends
            is_due = bool(is_late) or step % every.steps == 0 or (bool(rows) and is_epoch_end)
            if not (is_log or is_epoch_end or is_due or is_tick or probe):
                continue
            count_time()
            for one in list(active):
                with leaving_out_nonfinite(one):
                    if is_log:
                        _log_train(one, state, step)
                    if is_epoch_end and len(one.training.valid.labels):
                        count_time()
                        with one.timing("valid"):
                            valid, _ = _evaluate(one, one.variables(state), "valid", step)
                        one.valid_losses.append(valid["loss"])
                        lap = time.perf_counter()
                    if probe:
                        probe(step, state)
                    is_new_best = is_epoch_end and is_best(one.valid_losses)
                    if is_due or is_new_best:
                        _save(one, state, step)
                        saved = time.perf_counter()
                    if is_new_best:
                        one.save_model(run_dir.BEST, one.variables(state))
                    if is_tick:
                        _check_finite(one, one.of(state))
                        one.observe(_progress(one, state, step))
                    if is_epoch_end and one.is_over(step):  # the last step, or early stopping
                        count_time()
                        reports[one.run.name] = _finish(one, state, step)
                        active.remove(one)
                        lap = time.perf_counter()
            if not active:
                break
            if is_tick:
                next_tick = time.perf_counter() + TICK
                pace, times = events.keep_pace(pace, step, active[0].timings.train)
                if times:
                    text = events.describe_slowdown(pace, times, config.runtime.threads)
                    active[0].observe(Noted(text))
        return reports if rows else reports[run.name]


# A run, and what is written of it ----------------------------------------------------------------


class _Run:
    """What the loop keeps of a run besides its state."""

    def __init__(
        self, row: Row, number: int | None, make: Callable[..., Training], dataset: Dataset
    ) -> None:
        self.run, self.config, self.dataset = row.run, row.config, dataset
        self.row = number  # of a stacked state; None for a run by itself
        self.training = make(row.config.recipe, row.config.seed)
        self.writes = self.training.axis.rank == 0
        self.observe = row.observe if self.writes else ignore
        self.log = MetricsLog(row.run, enabled=self.writes)
        self.multipliers = torch.empty(0)  # of the digests
        self.timings = Timings()
        self.valid_losses: list[float] = []  # one an epoch
        self.logged = 0, 0.0  # step and seconds of training at the last log point
        self.saved_step = -1

    def of(self, state: LoopState) -> LoopState:
        """The state of this run, in the memory of the loop's state."""
        return state if self.row is None else take(state, self.row)

    def variables(self, state: LoopState) -> Variables:
        """Those to evaluate and to end with."""
        return self.training.value(self.of(state).state)

    def is_over(self, step: int) -> bool:
        """Whether the run has made all of its steps, or stops early."""
        patience = self.config.recipe.patience
        return step >= self.training.total_steps or should_stop(self.valid_losses, patience)

    def add(self, **seconds: float) -> None:
        """Add to the timings."""
        sums = {name: getattr(self.timings, name) + value for name, value in seconds.items()}
        self.timings = self.timings._replace(**sums)

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to one of the timings."""
        started = time.perf_counter()
        yield
        self.add(**{name: time.perf_counter() - started})

    def save_model(self, name: str, variables: Variables) -> None:
        """Write a model to a file of the run."""
        if self.writes:
            save_model(self.run / name, variables, self.config, self.dataset.classes)


def has_ended(run: Path, config: RunConfig) -> bool:
    """Whether a run of a sweep is finished, or stopped at numbers that are not finite."""
    failed = (run / run_dir.NONFINITE).exists() and not config.checkpoint.allow_nonfinite
    return run_dir.is_finished(run) or failed


def _init_or_restore(runs: Sequence[_Run], active: Sequence[_Run], *, resume: bool) -> LoopState:
    """The state to begin with: of one run, or of all stacked.

    A stack always has a row for each run, so that rounding does not depend on which have ended:
    the row of one that has is computed, and not looked at.
    """
    steps = None
    if resume and active[0].row is not None:  # those of which each has a checkpoint
        steps = set.intersection(*(set(run_dir.list_checkpoints(one.run)) for one in active))
    states = {}
    for one in active:
        with one.timing("adapt"):
            like = one.training.init()
        if one.writes:
            one.multipliers = fingerprint.draw_multipliers(random.key(0), like.state)
        begun = resume and (one.row is None or (one.run / run_dir.MANIFEST).exists())
        states[one.run] = _restore(one, like, steps) if begun else like
    if active[0].row is None:
        return states[active[0].run]
    return stack([states.get(one.run, states[active[0].run]) for one in runs])


def _restore(one: _Run, like: LoopState, steps: set[int] | None) -> LoopState:
    """The state of the latest checkpoint, of those after ``steps``; rank 0 reads it for all."""
    axis, losses = one.training.axis, []
    if one.writes:
        check_same_config(one.run, one.config)
        like, timings, notes = checkpoint.restore(one.run, like, one.log, steps)
        one.timings = one.timings if timings == Timings() else timings
        for note in notes:
            one.observe(Noted(note))
        found = [r["loss"] for r in metrics_log.read(one.run) if r["split"] == "valid"]
        losses = [math.nan if loss is None else loss for loss in found]
    like = distributed.broadcast(like, axis)
    step = int(like.state.step)
    epochs = step // one.training.steps_per_epoch if len(one.training.valid.labels) else 0
    received = torch.tensor(losses if one.writes else [0.0] * epochs, dtype=torch.float64)
    one.valid_losses = distributed.broadcast(received, axis).tolist()
    one.logged, one.saved_step = (step, one.timings.train), step or -1
    return like


def _begin(one: _Run, state: LoopState, step: int, *, resume: bool) -> None:
    """Write the manifest of a new run."""
    if not (resume and (one.run / run_dir.MANIFEST).exists()):
        run_dir.check_free(one.run)  # again, now that the lock is held
        write_config(one.run, one.config, one.dataset)
    elif step == len(one.valid_losses) * one.training.steps_per_epoch and is_best(one.valid_losses):
        # The process may have ended between the checkpoint of a best epoch and its model.
        one.save_model(run_dir.BEST, one.variables(state))


def _inputs(runs: Sequence[_Run], active: Sequence[_Run], step: int) -> Iterator[StepInput]:
    """The input of each step from ``step`` on: of one run, or of all stacked."""
    if not active:
        return iter(())
    first = active[0].training
    if active[0].row is not None:
        each = [(one.training if one in active else first).inputs(step) for one in runs]
        return (stack(row_inputs) for row_inputs in zip(*each, strict=True))
    if first.axis.size == 1:
        return first.inputs(step)
    return (shard(inputs, first.axis.rank, first.axis.size) for inputs in first.inputs(step))


def _log_train(one: _Run, state: LoopState, step: int) -> None:
    """Log the running metrics and digests of the state, and reset the metrics.

    Raises:
        NonFiniteError: as ``_check_finite``.
    """
    own, training, (last, then) = one.of(state), one.training, one.logged
    _check_finite(one, own)
    images = (step - last) * training.images_per_epoch / training.steps_per_epoch
    seconds = one.timings.train
    with one.timing("safeguard"):
        if one.writes:
            figures = {
                **metrics.summarize(own.totals),
                "learning_rate": training.learning_rate(step - 1),
                "images_per_second": images / max(seconds - then, 1e-9),
                "seconds": seconds,
            }
            _append(one, "train", step, figures, fingerprint.digests(one.multipliers, own.state))
        tree.map(lambda total: total.zero_(), own.totals)
    one.logged = step, seconds


def _evaluate(
    one: _Run, variables: Variables, split: str, step: int, views: str = "none"
) -> tuple[dict[str, Any], float]:
    """Figures of an evaluation on the validation or test images, which are logged; and seconds.

    ``views`` is "none", or the name of the recipe's test-time augmentation.
    """
    training, plain = one.training, views == "none"
    data = training.valid if split == "valid" else training.test
    started = time.perf_counter()
    eval_step = training.eval_step if plain else training.eval_views_step
    examples = evaluate(eval_step, variables, data, axis=training.axis)
    summary = summarize(examples, data.labels, one.dataset.classes)
    seconds = time.perf_counter() - started
    if one.writes:
        if split == "test" and plain:
            save_predictions(one.run / run_dir.PREDICTIONS, examples, data.labels)
        figures = {
            "loss": summary["loss"],
            "accuracy": summary["accuracy"],
            "count": summary["n"],
            "images_per_second": summary["n"] / max(seconds, 1e-9),
            "seconds": seconds,
        }
        name = split if plain else f"{split}-{views}"
        _append(one, name, step, figures, {"digest": tree.digest(examples)[:16]})
    return summary, seconds


def _append(
    one: _Run, split: str, step: int, figures: dict[str, Any], digests: dict[str, Any]
) -> None:
    epoch = step / one.training.steps_per_epoch
    record = {"step": step, "epoch": epoch, "split": split, **figures}
    one.log.append(record, digests)
    one.observe(Logged(record | digests))


def _save(one: _Run, state: LoopState, step: int) -> None:
    """Write a checkpoint, unless there is one of this step.

    Raises:
        NonFiniteError: as ``_check_finite``; no checkpoint holds numbers that are not finite,
            unless that was allowed.
    """
    if one.saved_step == step:
        return
    own = one.of(state)
    _check_finite(one, own, parameters=True)
    if one.writes:
        with one.timing("safeguard"):
            checkpoint.save(one.run, one.config, own, one.timings, one.log)
    one.saved_step = step


def _check_finite(one: _Run, own: LoopState, *, parameters: bool = False) -> None:
    """Stop a run whose numbers are not finite.

    Args:
        parameters: check them too. They can be wrong for one step before the loss is.

    Raises:
        NonFiniteError: a loss was not finite. It names the step, the rows of its batch (all of them
            are in ``nonfinite.json``), and the last checkpoint from before.
    """
    if one.config.checkpoint.allow_nonfinite:
        return
    what, step = "the loss", int(own.nonfinite)
    if not step and parameters:
        finite = all(bool(leaf.isfinite().all()) for leaf in own.state.variables.params.values())
        what, step = "a parameter", 0 if finite else int(own.state.step)
    if not step:
        return
    run = one.run
    rows = next(one.training.inputs(step - 1)).indices.tolist()
    last = next(iter(run_dir.list_checkpoints(run).values()), None) if one.writes else None
    if one.writes:
        name = last.name if last else None
        values = {"what": what, "step": step, "rows": rows, "checkpoint": name}
        io.write_json(run / run_dir.NONFINITE, values)
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
    raise NonFiniteError(
        f"{what} is not finite at step {step:,}, whose batch was the training images {shown} "
        f"(see {run / run_dir.NONFINITE}); "
        + (f"the last good checkpoint is {last}" if last else "no checkpoint was saved before")
        + "; begin a new run with a lower --lr or with --clip-norm, or go on all the same with "
        f"fcifar train --resume {run} --allow-nonfinite"
    )


def _progress(one: _Run, state: LoopState, step: int) -> Advanced:
    training, epochs = one.training, one.config.recipe.epochs
    recent = metrics.summarize(one.of(state).totals)
    images = training.images_per_epoch * (step / training.steps_per_epoch)
    return Advanced(
        step=step,
        total_steps=training.total_steps,
        epoch=min(step // training.steps_per_epoch + 1, epochs),
        epochs=epochs,
        loss=recent["loss"],
        accuracy=recent["accuracy"],
        images_per_second=images / max(one.timings.train, 1e-9),
    )


def _finish(one: _Run, state: LoopState, step: int) -> dict[str, Any]:
    """Save, choose the model to end with, evaluate it on the test images, and write the report."""
    _save(one, state, step)
    one.observe(_progress(one, state, step))
    run, training, recipe, timings = one.run, one.training, one.config.recipe, one.timings
    distributed.check_equal(one.of(state).state, training.axis)
    one.observe(Preparing("evaluating"))
    variables, chosen = one.variables(state), step
    selected: dict[str, Any] = {"by": "last epoch", "step": step}
    if recipe.restore_best:
        epoch = best_epoch(one.valid_losses)
        chosen = (epoch + 1) * training.steps_per_epoch
        variables = load_model(run / run_dir.BEST, like=variables) if one.writes else variables
        variables = distributed.broadcast(variables, training.axis)
        loss = one.valid_losses[epoch]
        selected = {"by": "lowest validation loss", "step": chosen, "valid_loss": loss}
    summary, eval_seconds = _evaluate(one, variables, "test", chosen)
    views: dict[str, Any] = {}
    if recipe.tta != "none":  # whose seconds are the ones that count
        seen, eval_seconds = _evaluate(one, variables, "test", chosen, recipe.tta)
        views = {"tta": recipe.tta, **of_views(seen)}
    one.save_model(run_dir.FINAL, variables)
    epochs = step / training.steps_per_epoch
    figures = dict(summary)
    report = {
        "run_dir": str(run),
        "recipe": recipe.name,
        "dataset": one.dataset.name,
        "seed": one.config.seed,
        "device": one.config.runtime.device,
        "steps": step,
        "epochs": int(epochs) if epochs.is_integer() else epochs,
        "stopped_early": step < training.total_steps,
        "selected": selected,
        **{f"test_{name}": figures.pop(name) for name in ("accuracy", "loss", "n")},
        "valid_n": len(training.valid.labels),
        **views,
        **figures,
        **{f"{name}_seconds": seconds for name, seconds in timings._asdict().items()},
        "eval_seconds": eval_seconds,
        "convention_seconds": timings.adapt + timings.train + eval_seconds,
        "process_seconds": environment.since_process_start(),
        "images_per_second": training.images_per_epoch * epochs / max(timings.train, 1e-9),
        "params_digest": tree.digest(variables.params),
    }
    if one.writes:
        run_dir.write_result(run, report)
    return report
