"""The bookkeeping of a run while it is trained: what is restored, logged, saved and reported."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import io, metrics, random, tree
from fcifar.analysis.predictions import of_views, summarize
from fcifar.augment import tta
from fcifar.data import Dataset
from fcifar.errors import ExternalError
from fcifar.models import Variables
from fcifar.step_transforms import LoopState, stack, take
from fcifar.train import (
    accounting,
    checkpoint,
    distributed,
    environment,
    fingerprint,
    metrics_log,
    run_dir,
)
from fcifar.train.checkpoint import Timings, load_model, save_init, save_model
from fcifar.train.config import RunConfig, check_same_config, write_config
from fcifar.train.early_stopping import best_epoch, is_best, should_stop
from fcifar.train.evaluate import batch_size_of, evaluate, save_predictions
from fcifar.train.events import Advanced, Logged, Noted, Observe, Preparing, ignore
from fcifar.train.metrics_log import MetricsLog
from fcifar.train.setup import Training

_MAX_ROWS = 12  # row numbers in a message


class NonFiniteError(ExternalError):
    """Training stopped at a loss or a parameter that is not finite."""


class Row(NamedTuple):
    """A run of a vmapped sweep: one row of the stacked state."""

    path: Path
    config: RunConfig
    observe: Observe = ignore


class Run:
    """The bookkeeping of a run; its state is in the loop."""

    def __init__(
        self, row: Row, index: int | None, make: Callable[..., Training], dataset: Dataset
    ) -> None:
        self.path, self.config, self.dataset = row.path, row.config, dataset
        self.row = index  # in the stacked state; None for a single run
        self.training = make(row.config.recipe, row.config.seed)
        self.writes = self.training.axis.rank == 0
        self.observe = row.observe if self.writes else ignore
        self.log = MetricsLog(row.path, enabled=self.writes)
        self.multipliers = torch.empty(0)  # of the digests
        self.timings = Timings()
        self.valid_losses: list[float] = []  # by epoch
        self.logged = 0, 0.0  # step and training seconds at the last log point
        self.saved_step = -1

    def own(self, state: LoopState) -> LoopState:
        """Return the state of this run, as a view of the loop's state."""
        return state if self.row is None else take(state, self.row)

    def variables(self, state: LoopState) -> Variables:
        """Return the variables to evaluate and to save."""
        return self.training.value(self.own(state).state)

    def is_done(self, step: int) -> bool:
        """Whether ``step`` is the last one, or early stopping applies."""
        patience = self.config.recipe.patience
        return step >= self.training.total_steps or should_stop(self.valid_losses, patience)

    @contextlib.contextmanager
    def timing(self, name: str) -> Generator[None]:
        """Add the duration of the block to a timing."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        setattr(self.timings, name, getattr(self.timings, name) + seconds)

    def save_model(self, name: str, variables: Variables) -> None:
        """Write a model to a file of the run directory."""
        if self.writes:
            save_model(self.path / name, variables, self.config, self.dataset.classes)


def has_ended(path: Path, config: RunConfig) -> bool:
    """Whether a run of a sweep is finished, or stopped at a non-finite loss."""
    failed = (path / run_dir.NONFINITE).exists() and not config.checkpoint.allow_nonfinite
    return run_dir.is_finished(path) or failed


def init_or_restore(runs: Sequence[Run], active: Sequence[Run], *, resume: bool) -> LoopState:
    """Return the initial state: of the run, or of all runs, stacked.

    A stack has a row for every run, also for those that have ended, so that rounding does not
    depend on which have.
    """
    steps = None
    if resume and active[0].row is not None:  # steps at which every run has a checkpoint
        steps = set.intersection(*(set(run_dir.list_checkpoints(run.path)) for run in active))
    states = {}
    for run in active:
        with run.timing("adapt"):
            like = run.training.init()
        if run.writes:
            run.multipliers = fingerprint.draw_multipliers(random.key(0), like.state)
        begun = resume and (run.row is None or (run.path / run_dir.MANIFEST).exists())
        states[run.path] = _restore(run, like, steps) if begun else like
    if active[0].row is None:
        return states[active[0].path]
    return stack([states.get(run.path, states[active[0].path]) for run in runs])


def _restore(run: Run, like: LoopState, steps: set[int] | None) -> LoopState:
    """Restore the latest checkpoint, of ``steps`` if given; rank 0 reads it for all ranks."""
    axis, losses = run.training.axis, []
    if run.writes:
        check_same_config(run.path, run.config)
        like, timings, notes = checkpoint.restore(run.path, like, run.log, steps)
        run.timings = run.timings if timings == Timings() else timings
        for note in notes:
            run.observe(Noted(note))
        logged = [r["loss"] for r in metrics_log.read(run.path) if r["split"] == "valid"]
        losses = [math.nan if loss is None else loss for loss in logged]
    like = distributed.broadcast(like, axis)
    step = int(like.state.step)
    epochs = step // run.training.steps_per_epoch if len(run.training.valid.labels) else 0
    received = torch.tensor(losses if run.writes else [0.0] * epochs, dtype=torch.float64)
    run.valid_losses = distributed.broadcast(received, axis).tolist()
    run.logged, run.saved_step = (step, run.timings.train), step or -1
    return like


def begin(run: Run, state: LoopState, step: int, *, resume: bool) -> None:
    """Write the manifest of a new run."""
    if not (resume and (run.path / run_dir.MANIFEST).exists()):
        run_dir.check_free(run.path)  # again, now that the lock is held
        if run.training.pretrained:
            save_init(run.path, run.training.pretrained)
        write_config(run.path, run.config, run.dataset)
    elif step == len(run.valid_losses) * run.training.steps_per_epoch and is_best(run.valid_losses):
        # The process may have ended after the checkpoint of a best epoch, before its model.
        run.save_model(run_dir.BEST, run.variables(state))


def log_train(run: Run, state: LoopState, step: int) -> None:
    """Log the running metrics and digests of the state, and reset the metrics."""
    own, training, (last_step, last_seconds) = run.own(state), run.training, run.logged
    with run.timing("safeguard"):
        hashes = fingerprint.hash_tree(run.multipliers, own.state) if run.writes else ()
        # One copy, because a run on a GPU waits for each.
        totals, nonfinite, hashes = tree.on_device((own.totals, own.nonfinite, hashes), "cpu")
    _check_finite(run, int(nonfinite))
    images = (step - last_step) * training.images_per_epoch / training.steps_per_epoch
    seconds = run.timings.train
    with run.timing("safeguard"):
        if run.writes:
            values = {
                **metrics.summarize(totals),
                "learning_rate": training.learning_rate(step - 1),
                "images_per_second": images / max(seconds - last_seconds, 1e-9),
                "seconds": seconds,
            }
            _append(run, "train", step, values, fingerprint.digests(own.state, hashes))
        tree.map(lambda total: total.zero_(), own.totals)
    run.logged = step, seconds


def evaluate_split(
    run: Run, variables: Variables, split: str, step: int, views: str = "none", of: str = ""
) -> tuple[dict[str, Any], float]:
    """Evaluate on the validation or test images, and log the metrics; return them and the seconds.

    ``views`` is "none" or the name of the recipe's test-time augmentation. ``of`` is what the
    variables are, "average" or empty for those of the run, whose predictions are saved.
    """
    training, is_plain = run.training, views == "none"
    data = training.valid if split == "valid" else training.test
    started = time.perf_counter()
    eval_step = training.eval_step if is_plain else training.eval_views_step
    size = batch_size_of(tta.VIEWS[views], data.images.device)
    examples = evaluate(eval_step, variables, data, batch_size=size, axis=training.axis)
    summary = summarize(examples, data.labels, run.dataset.classes)
    seconds = time.perf_counter() - started
    if run.writes:
        if split == "test" and is_plain and not of:
            save_predictions(run.path / run_dir.PREDICTIONS, examples, data.labels)
        values = {
            "loss": summary["loss"],
            "accuracy": summary["accuracy"],
            "count": summary["n"],
            "images_per_second": summary["n"] / max(seconds, 1e-9),
            "seconds": seconds,
        }
        name = "-".join(filter(None, (split, of, "" if is_plain else views)))
        _append(run, name, step, values, {"digest": tree.digest(examples)[:16]})
    return summary, seconds


def _append(
    run: Run, split: str, step: int, values: dict[str, Any], digests: dict[str, Any]
) -> None:
    epoch = step / run.training.steps_per_epoch
    record = {"step": step, "epoch": epoch, "split": split, **values}
    run.log.append(record, digests)
    run.observe(Logged(record | digests))


def save(run: Run, state: LoopState, step: int) -> None:
    """Write a checkpoint, unless this step has one."""
    if run.saved_step == step:
        return
    own = run.own(state)
    # A parameter can be non-finite one step before the loss.
    finite = [leaf.isfinite().all() for leaf in own.state.variables.params.values()]
    values = own.nonfinite, torch.stack([own.nonfinite == 0, *finite]).all()
    nonfinite, are_finite = map(int, tree.on_device(values, "cpu"))
    _check_finite(run, nonfinite)
    _check_finite(run, 0 if are_finite else step, "a parameter")
    if run.writes:
        with run.timing("safeguard"):
            checkpoint.save(run.path, run.config, own, run.timings, run.log)
    run.saved_step = step


def _check_finite(run: Run, step: int, what: str = "the loss") -> None:
    """Raise a NonFiniteError, and write ``nonfinite.json``, unless ``step`` is 0: the first step at
    which ``what`` was not finite.
    """
    if not step or run.config.checkpoint.allow_nonfinite:
        return
    path = run.path
    inputs = next(run.training.inputs(step - 1))
    present = inputs.present if isinstance(inputs.present, Tensor) else slice(None)
    rows = inputs.indices[present].tolist()
    last = next(iter(run_dir.list_checkpoints(path).values()), None) if run.writes else None
    if run.writes:
        name = last.name if last else None
        values = {"what": what, "step": step, "rows": rows, "checkpoint": name}
        io.write_json(path / run_dir.NONFINITE, values)
    images = ", ".join(map(str, rows[:_MAX_ROWS])) + (", ..." if len(rows) > _MAX_ROWS else "")
    raise NonFiniteError(
        f"{what} is not finite at step {step:,}, whose batch was the training images {images} "
        f"(see {path / run_dir.NONFINITE}); "
        + (f"the last good checkpoint is {last}" if last else "no checkpoint was saved before")
        + "; start a new run with a lower --lr or with --clip-norm, or continue with "
        f"fcifar train --resume {path} --allow-nonfinite"
    )


def progress(run: Run, state: LoopState, step: int) -> Advanced:
    """Check that the losses are finite, and return the event of ``step``."""
    training, epochs, own = run.training, run.config.recipe.epochs, run.own(state)
    totals, nonfinite = tree.on_device((own.totals, own.nonfinite), "cpu")
    _check_finite(run, int(nonfinite))
    recent = metrics.summarize(totals)
    images = training.images_per_epoch * (step / training.steps_per_epoch)
    return Advanced(
        step=step,
        total_steps=training.total_steps,
        epoch=min(step // training.steps_per_epoch + 1, epochs),
        epochs=epochs,
        loss=recent["loss"],
        accuracy=recent["accuracy"],
        images_per_second=images / max(run.timings.train, 1e-9),
    )


def finish(run: Run, state: LoopState, step: int) -> dict[str, Any]:
    """Save, select the model, evaluate it on the test images, and write the report."""
    save(run, state, step)
    run.observe(progress(run, state, step))
    path, training, recipe, timings = run.path, run.training, run.config.recipe, run.timings
    distributed.check_equal(run.own(state).state, training.axis)
    run.observe(Preparing("evaluating"))
    variables, best_step = run.variables(state), step
    selected: dict[str, Any] = {"by": "last epoch", "step": step}
    if recipe.restore_best:
        epoch = best_epoch(run.valid_losses)
        best_step = (epoch + 1) * training.steps_per_epoch
        variables = load_model(path / run_dir.BEST, like=variables) if run.writes else variables
        variables = distributed.broadcast(variables, training.axis)
        loss = run.valid_losses[epoch]
        selected = {"by": "lowest validation loss", "step": best_step, "valid_loss": loss}
    summary, eval_seconds = evaluate_split(run, variables, "test", best_step)
    views: dict[str, Any] = {}
    if recipe.tta != "none":
        tta_summary, eval_seconds = evaluate_split(run, variables, "test", best_step, recipe.tta)
        views = {"tta": recipe.tta, **of_views(tta_summary)}
    run.save_model(run_dir.FINAL, variables)
    average = _evaluate_average(run, state, step)
    epochs = step / training.steps_per_epoch
    report = {
        "run_dir": str(path),
        "recipe": recipe.name,
        "dataset": run.dataset.name,
        "seed": run.config.seed,
        "device": run.config.runtime.device,
        "steps": step,
        "epochs": int(epochs) if epochs.is_integer() else epochs,
        "stopped_early": step < training.total_steps,
        "selected": selected,
        **{f"test_{name}": summary.pop(name) for name in ("accuracy", "loss", "n")},
        "valid_n": len(training.valid.labels),
        **views,
        **average,
        **(accounting.report(recipe, training.size, step) if recipe.dp_clip else {}),
        **summary,
        **{f"{name}_seconds": seconds for name, seconds in dataclasses.asdict(timings).items()},
        "eval_seconds": eval_seconds,
        "convention_seconds": timings.adapt + timings.train + eval_seconds,
        "process_seconds": environment.since_process_start(),
        "images_per_second": training.images_per_epoch * epochs / max(timings.train, 1e-9),
        "params_digest": tree.digest(variables.params),
    }
    if run.writes:
        run_dir.write_result(path, report)
    return report


def _evaluate_average(run: Run, state: LoopState, step: int) -> dict[str, Any]:
    """Save the average beside the weights, and return its figures; empty without one."""
    recipe, training = run.config.recipe, run.training
    if training.average is None:
        return {}
    variables = training.average(run.own(state).state)
    run.save_model(run_dir.AVERAGE, variables)
    summary, _ = evaluate_split(run, variables, "test", step, of="average")
    figures = {name: summary[name] for name in ("accuracy", "loss", "interval95")}
    if recipe.tta != "none":
        of_tta, _ = evaluate_split(run, variables, "test", step, recipe.tta, of="average")
        figures |= of_views(of_tta)
    figures["params_digest"] = tree.digest(variables.params)
    return {"average": recipe.average, **{f"average_{name}": v for name, v in figures.items()}}
