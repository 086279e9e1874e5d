"""The training loop: a thin shell around the step."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import metrics, recipes, tree
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.recipes import Recipe
from fcifar.runs import checkpoint, directory, environment
from fcifar.runs.evaluate import evaluate, summarize
from fcifar.runs.program import Program, build
from fcifar.runs.runtime import Runtime, activate
from fcifar.step import Running


class Preparing(NamedTuple):
    """Something that takes a while has begun."""

    what: str


class Advanced(NamedTuple):
    """Where training is; sent a few times a second."""

    step: int
    total_steps: int
    epoch: int  # from 1
    epochs: int
    loss: float  # mean since the last log point
    accuracy: float  # the same
    images_per_second: float


class Logged(NamedTuple):
    """A record was added to the metrics log."""

    record: dict[str, Any]


Event = Preparing | Advanced | Logged


class Interrupted(NamedTuple):
    """Training stopped at a signal, with everything saved."""

    signum: int
    step: int


class Clock(NamedTuple):
    """Seconds spent so far, over all the sittings of a run."""

    train: float = 0.0
    compile: float = 0.0


def train(
    run: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    *,
    compiled: bool = False,
    resume: bool = False,
    observe: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], int | None] = lambda: None,
) -> dict[str, Any] | Interrupted:
    """Train, evaluate, and leave a run directory behind.

    Args:
        run: the run directory, new or (with ``resume``) one that was interrupted.
        compiled: whether the step goes through ``torch.compile``.
        observe: is told what happens.
        stop: asked between steps; a signal number ends the run after a checkpoint.

    Returns:
        The report, which is also in ``report.json``; or ``Interrupted``.
    """
    if compiled:
        environment.check_compiler(runtime.device)
    with activate(runtime):
        program = build(recipe, runtime, dataset, compiled=compiled)
        running, clock = program.init(), Clock()
        if resume:
            running, clock = _restore(run, running)
        else:
            directory.check_free(run)
        if compiled:
            observe(Preparing("compiling"))
            clock = clock._replace(compile=clock.compile + _warm_up(program, running))
        if not resume:
            directory.create(run, _manifest(recipe, runtime, dataset, compiled))

        running, clock = _run_steps(run, program, recipe, running, clock, observe, stop)
        step, signum = int(running.state.step), stop()
        if step < program.total_steps and signum is not None:
            return Interrupted(signum, step)

        observe(Preparing("evaluating"))
        report = _finish(run, program, recipe, runtime, dataset, running, clock)
        observe(Logged(directory.read_records(run)[-1]))
        return report


def _run_steps(
    run: Path,
    program: Program,
    recipe: Recipe,
    running: Running,
    clock: Clock,
    observe: Callable[[Event], None],
    stop: Callable[[], int | None],
) -> tuple[Running, Clock]:
    step = int(running.state.step)
    started, next_tick = time.perf_counter(), 0.0

    def now() -> Clock:
        return clock._replace(train=clock.train + time.perf_counter() - started)

    for rows in program.rows_from(step):
        if stop() is not None:
            _save(run, running, step, now())
            break
        running, _ = program.train_step(running, rows)
        step += 1
        if step % recipe.log_every == 0 or step == program.total_steps:
            running = _log(run, program, running, step, now(), observe)
        if step % program.steps_per_epoch == 0:
            _save(run, running, step, now())
        if time.perf_counter() >= next_tick:
            observe(_progress(program, recipe, running, step, now()))
            next_tick = time.perf_counter() + 0.25
    observe(_progress(program, recipe, running, step, now()))
    return running, now()


def _log(
    run: Path,
    program: Program,
    running: Running,
    step: int,
    clock: Clock,
    observe: Callable[[Event], None],
) -> Running:
    """Write the running metrics down and start them afresh."""
    record = {
        "kind": "train",
        "step": step,
        "epoch": step / program.steps_per_epoch,
        **metrics.summarize(running.totals),
        "seconds": clock.train,
    }
    directory.append_record(run, record)
    observe(Logged(record))
    return running._replace(totals=tree.zeros_like(running.totals))


def _progress(
    program: Program, recipe: Recipe, running: Running, step: int, clock: Clock
) -> Advanced:
    recent = metrics.summarize(running.totals)
    return Advanced(
        step=step,
        total_steps=program.total_steps,
        epoch=min(step // program.steps_per_epoch + 1, recipe.epochs),
        epochs=recipe.epochs,
        loss=recent["loss"],
        accuracy=recent["accuracy"],
        images_per_second=step * recipe.batch_size / clock.train,
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


def _finish(
    run: Path,
    program: Program,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    running: Running,
    clock: Clock,
) -> dict[str, Any]:
    variables = running.state.variables
    started = time.perf_counter()
    examples = evaluate(program.eval_step, variables, program.test)
    summary = summarize(examples, program.test.labels, dataset.classes)
    eval_seconds = time.perf_counter() - started
    step = int(running.state.step)
    directory.append_record(
        run,
        {
            "kind": "eval",
            "split": "test",
            "step": step,
            "epoch": step / program.steps_per_epoch,
            "loss": summary["loss"],
            "accuracy": summary["accuracy"],
            "count": summary["n"],
        },
    )
    digest = tree.digest(variables.params)
    checkpoint.save(
        run / directory.FINAL,
        {**variables.params, **variables.buffers},
        {
            "recipe": json.dumps(recipes.to_dict(recipe)),
            "classes": json.dumps(dataset.classes),
            "dataset": dataset.name,
            "params_digest": digest,
        },
    )
    images = program.total_steps * recipe.batch_size
    if not recipe.drop_last:
        images = len(dataset.train_labels) * recipe.epochs
    report = {
        "run_dir": str(run),
        "recipe": recipe.name,
        "dataset": dataset.name,
        "seed": runtime.seed,
        "device": runtime.device,
        "steps": step,
        "epochs": recipe.epochs,
        "test_accuracy": summary["accuracy"],
        "test_loss": summary["loss"],
        "test_n": summary["n"],
        "interval95": summary["interval95"],
        "per_class": summary["per_class"],
        "train_seconds": clock.train,
        "compile_seconds": clock.compile,
        "eval_seconds": eval_seconds,
        "images_per_second": images / clock.train,
        "params_digest": digest,
    }
    directory.write_json(run / directory.REPORT, report)
    return report


def _save(run: Path, running: Running, step: int, clock: Clock) -> None:
    checkpoint.save(
        run / directory.CHECKPOINT,
        running,
        {"step": str(step), "clock": json.dumps(clock._asdict())},
    )


def _restore(run: Path, like: Running) -> tuple[Running, Clock]:
    path = run / directory.CHECKPOINT
    if not path.exists():
        directory.rewind_records(run, 0)
        return like, Clock()  # stopped before the first checkpoint: begin at the beginning
    running, metadata = checkpoint.load(path, like)
    directory.rewind_records(run, int(metadata["step"]))
    return running, Clock(**json.loads(metadata["clock"]))


def _manifest(recipe: Recipe, runtime: Runtime, dataset: Dataset, compiled: bool) -> dict[str, Any]:
    return {
        "recipe": recipes.to_dict(recipe),
        "runtime": {
            "device": runtime.device,
            "seed": runtime.seed,
            "threads": runtime.threads,
            "precision": runtime.precision,
            "deterministic": runtime.deterministic,
        },
        "compile": compiled,
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "source": dataset.source,
            "train": len(dataset.train_labels),
            "test": len(dataset.test_labels),
            "classes": list(dataset.classes),
        },
        "environment": environment.describe(),
        "git_commit": environment.git_commit(),
        "argv": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_settings(run: Path) -> tuple[Recipe, Runtime, dict[str, Any], bool]:
    """Recipe, runtime, data set facts and whether the step is compiled, out of a manifest.

    Raises:
        UserError: the directory is not a run, or its manifest is not complete.
    """
    manifest = directory.read_manifest(run)
    try:
        return (
            recipes.from_dict(manifest["recipe"]),
            Runtime(**manifest["runtime"]),
            manifest["dataset"],
            manifest["compile"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / directory.MANIFEST} is not complete: {error}") from error
