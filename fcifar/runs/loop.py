"""The training loop: a thin shell around the step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import metrics, tree
from fcifar.data import Dataset
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import directory, environment, manifest
from fcifar.runs.evaluate import evaluate, save_predictions, summarize
from fcifar.runs.events import Advanced, Logged, Observe, Preparing, ignore
from fcifar.runs.program import Program, build
from fcifar.runs.runtime import Runtime, activate
from fcifar.runs.saving import (
    Clock,
    read_network,
    restore_running,
    save_network,
    save_running,
)
from fcifar.runs.selection import best_epoch, is_best, should_stop
from fcifar.step import Batch, Running

Stop = Callable[[], int | None]


class Interrupted(NamedTuple):
    """Training stopped at a signal, with everything saved."""

    signum: int
    step: int


def train(
    run: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    *,
    compiled: bool = False,
    resume: bool = False,
    observe: Observe = ignore,
    stop: Stop = lambda: None,
) -> dict[str, Any] | Interrupted:
    """Train, evaluate, and leave a run directory behind.

    Args:
        run: the run directory, new or (with ``resume``) one that was interrupted.
        compiled: whether the step goes through ``torch.compile``.
        observe: is told what happens.
        stop: asked before each step; a signal number ends the run after a checkpoint.

    Returns:
        The report, which is also in ``report.json``; or ``Interrupted``.

    Raises:
        UserError: the request cannot be carried out; nothing was written.
        WorldError: the disk failed; what was written before is whole.
    """
    if compiled:
        environment.check_compiler(runtime.device)
    with activate(runtime):
        program = build(recipe, runtime, dataset, compiled=compiled)
        running, clock = program.init(), Clock()
        if resume:
            running, clock = restore_running(run, running)
        else:
            directory.check_free(run)
        if compiled:
            observe(Preparing("compiling"))
            clock = clock._replace(compile=clock.compile + _warm_up(program, running))
        if not resume:
            about = manifest.describe(recipe, runtime, dataset, compiled=compiled)
            directory.create(run, about)
        session = _Session(run, program, recipe, runtime, dataset, observe, stop)
        running, clock, signum = _run_steps(session, running, clock)
        if signum is not None:
            return Interrupted(signum, int(running.state.step))
        observe(Preparing("evaluating"))
        return _finish(session, running, clock)


class _Session(NamedTuple):
    """What does not change while a run is on."""

    run: Path
    program: Program
    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    observe: Observe
    stop: Stop


def _run_steps(
    session: _Session, running: Running, clock: Clock
) -> tuple[Running, Clock, int | None]:
    """Train to the end, to an early stop, or to a signal, which is then the last value."""
    run, program, recipe, _, _, observe, stop = session
    step = int(running.state.step)
    log_every = recipe.log_every or program.steps_per_epoch
    losses = _valid_losses(run)
    if should_stop(losses, recipe.patience):
        return running, clock, None
    started, next_tick = time.perf_counter(), 0.0

    def now() -> Clock:
        return clock._replace(train=clock.train + time.perf_counter() - started)

    for rows in program.rows_from(step):
        if (signum := stop()) is not None:
            save_running(run, running, step, now())
            return running, now(), signum
        running, _ = program.train_step(running, rows)
        step += 1
        if step % log_every == 0 or step == program.total_steps:
            running = _log_training(session, running, step, now())
        if step % program.steps_per_epoch == 0:
            clock, started = now(), time.perf_counter()
            if len(program.valid.labels):
                losses.append(_validate(session, running.state.variables, step, losses))
                seconds = time.perf_counter() - started
                clock, started = clock._replace(valid=clock.valid + seconds), time.perf_counter()
            save_running(run, running, step, now())
            if should_stop(losses, recipe.patience):
                break
        if time.perf_counter() >= next_tick:
            observe(_progress(session, running, step, now()))
            next_tick = time.perf_counter() + 0.25
    observe(_progress(session, running, step, now()))
    return running, now(), None


def _log_training(session: _Session, running: Running, step: int, clock: Clock) -> Running:
    """Write the running metrics down and start them afresh."""
    epoch = step / session.program.steps_per_epoch
    summary = metrics.summarize(running.totals)
    _log(session, {"kind": "train", "step": step, "epoch": epoch, **summary}, clock.train)
    return running._replace(totals=tree.zeros_like(running.totals))


def _validate(session: _Session, variables: Variables, step: int, losses: list[float]) -> float:
    """Evaluate on the images held out, keep the network if it is the best yet; its loss."""
    summary = _evaluate(session, variables, session.program.valid, "valid", step)
    if is_best([*losses, summary["loss"]]):
        _save_network(session, directory.BEST, variables)
    return summary["loss"]


def _save_network(session: _Session, name: str, variables: Variables) -> None:
    seed = session.runtime.seed
    save_network(session.run / name, variables, session.recipe, seed, session.dataset)


def _evaluate(
    session: _Session, variables: Variables, data: Batch, split: str, step: int
) -> dict[str, Any]:
    program = session.program
    started = time.perf_counter()
    examples = evaluate(program.eval_step, variables, data)
    summary = summarize(examples, data.labels, session.dataset.classes)
    if split == "test":
        save_predictions(session.run / directory.PREDICTIONS, examples, data.labels)
    record = {
        "kind": "eval",
        "split": split,
        "step": step,
        "epoch": step / program.steps_per_epoch,
        "loss": summary["loss"],
        "accuracy": summary["accuracy"],
        "count": summary["n"],
    }
    _log(session, record, time.perf_counter() - started)
    return summary


def _log(session: _Session, record: dict[str, Any], seconds: float) -> None:
    record = {**record, "seconds": seconds}
    directory.append_record(session.run, record)
    session.observe(Logged(record))


def _progress(session: _Session, running: Running, step: int, clock: Clock) -> Advanced:
    program, recipe = session.program, session.recipe
    recent = metrics.summarize(running.totals)
    return Advanced(
        step=step,
        total_steps=program.total_steps,
        epoch=min(step // program.steps_per_epoch + 1, recipe.epochs),
        epochs=recipe.epochs,
        loss=recent["loss"],
        accuracy=recent["accuracy"],
        images_per_second=program.images_per_epoch
        * (step / program.steps_per_epoch)
        / max(clock.train, 1e-9),
    )


def _warm_up(program: Program, running: Running) -> float:
    """Compile the step for each shape of batch, on a copy of the state; the seconds it took."""
    started = time.perf_counter()
    last_epoch = program.rows_from(program.total_steps - program.steps_per_epoch)
    for rows in {len(rows): rows for rows in last_epoch}.values():
        # A donated state is overwritten: the copy is what gets lost.
        copy, _ = program.train_step(tree.map(lambda x: x.clone(), running), rows)
        int(copy.state.step)  # wait for the device
    return time.perf_counter() - started


def _valid_losses(run: Path) -> list[float]:
    """The validation losses so far, one an epoch; NaN is null in the log."""
    return [
        float("nan") if record["loss"] is None else record["loss"]
        for record in directory.read_records(run)
        if record["kind"] == "eval" and record["split"] == "valid"
    ]


def _finish(session: _Session, running: Running, clock: Clock) -> dict[str, Any]:
    """Choose the network to end with, measure it on the test images, and report."""
    run, program, recipe, runtime, dataset, *_ = session
    step, losses = int(running.state.step), _valid_losses(run)
    variables, chosen = running.state.variables, step
    selected: dict[str, Any] = {"by": "last epoch", "step": step}
    if recipe.restore_best:
        epoch = best_epoch(losses)
        chosen = (epoch + 1) * program.steps_per_epoch
        variables = read_network(run / directory.BEST, like=variables)
        selected = {
            "by": "lowest validation loss",
            "step": chosen,
            "valid_loss": losses[epoch],
        }
    started = time.perf_counter()
    summary = _evaluate(session, variables, program.test, "test", chosen)
    eval_seconds = time.perf_counter() - started
    _save_network(session, directory.FINAL, variables)
    epochs = step / program.steps_per_epoch
    report = {
        "run_dir": str(run),
        "recipe": recipe.name,
        "dataset": dataset.name,
        "seed": runtime.seed,
        "device": runtime.device,
        "steps": step,
        "epochs": int(epochs) if epochs.is_integer() else epochs,
        "stopped_early": step < program.total_steps,
        "selected": selected,
        "test_accuracy": summary["accuracy"],
        "test_loss": summary["loss"],
        "test_n": summary["n"],
        **{name: summary[name] for name in summary if name not in ("accuracy", "loss", "n")},
        "train_seconds": clock.train,
        "valid_seconds": clock.valid,
        "compile_seconds": clock.compile,
        "eval_seconds": eval_seconds,
        "images_per_second": program.images_per_epoch * epochs / clock.train,
        "params_digest": tree.digest(variables.params),
    }
    directory.write_json(run / directory.REPORT, report)
    return report
