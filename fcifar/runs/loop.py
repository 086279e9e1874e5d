"""The training loop: a thin shell around the step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import metrics, tree
from fcifar.data import Dataset
from fcifar.data.files import sweep
from fcifar.errors import UserError
from fcifar.recipes import Recipe
from fcifar.running import Running
from fcifar.runs import directory, environment, manifest, session
from fcifar.runs.evaluate import evaluate
from fcifar.runs.events import Advanced, Noted, Observe, Preparing, ignore
from fcifar.runs.finishing import finish
from fcifar.runs.lock import locked
from fcifar.runs.log import Mark
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime, activate
from fcifar.runs.safeguards import Safeguards
from fcifar.runs.saving import Clock, Place, restore_running
from fcifar.runs.selection import is_best, should_stop
from fcifar.runs.session import Session

Stop = Callable[[], int | None]
Probe = Callable[[int, Running], None]


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
    safeguards: Safeguards = Safeguards(),  # noqa: B008
    observe: Observe = ignore,
    stop: Stop = lambda: None,
    probe: Probe = lambda step, running: None,
) -> dict[str, Any] | Interrupted:
    """Train, evaluate, and leave a run directory behind.

    Args:
        run: the run directory, new or (with ``resume``) one that was interrupted. Of one that had
            come to its end, nothing but the report is returned.
        compiled: whether the step goes through ``torch.compile``.
        safeguards: when to save, and what to stop at.
        observe: is told what happens.
        stop: asked before each step; a signal number ends the run after a checkpoint.
        probe: sees the state after each step, as a checkpoint would hold it.

    Returns:
        The report, which is also in ``report.json``; or ``Interrupted``.

    Raises:
        UserError: the request cannot be carried out; nothing was written.
        NonFiniteError: the loss is no number any more.
        WorldError: the disk failed; what was written before is whole.
    """
    if compiled:
        environment.check_compiler(runtime.device)
    with activate(runtime):
        program = build(recipe, runtime, dataset, compiled=compiled)
        started = time.perf_counter()
        first = program.init()
        adapted = Clock(adapt=time.perf_counter() - started)
        sitting = Session(
            run=run,
            program=program,
            recipe=recipe,
            runtime=runtime,
            dataset=dataset,
            compiled=compiled,
            safeguards=safeguards,
            observe=observe,
            multipliers=session.draw_multipliers(first.state),
        )
        if not resume:
            directory.check_free(run)
        with locked(run):
            if resume and (run / directory.REPORT).exists():
                observe(Noted(f"{run} had come to its end already"))
                return directory.read_report(run)
            if resume:
                place = _warm_up(sitting, _restore(sitting, first))
            else:
                directory.check_free(run)  # again, for another process may have been quicker
                place = _warm_up(sitting, Place(first, adapted, Mark(0, "")))
                seal = directory.create(run, manifest.describe(sitting))
                place = place._replace(mark=Mark(0, seal))
            place, losses, signum = _run_steps(sitting, place, stop, probe)
            if signum is not None:
                return Interrupted(signum, int(place.running.state.step))
            observe(Preparing("evaluating"))
            return finish(sitting, place, losses)


def _restore(sitting: Session, first: Running) -> Place:
    """Where an interrupted run goes on."""
    run, began = sitting.run, manifest.read_settings(sitting.run)
    given = sitting.recipe, sitting.runtime, sitting.compiled
    if began[:3] != given or began.dataset_digest != sitting.dataset.digest:
        raise UserError(
            f"{run} began with another recipe, runtime or data set than is given now; continue it "
            "with those it began with, or begin a new run"
        )
    sweep(run)
    (run / directory.NONFINITE).unlink(missing_ok=True)
    place, notes = restore_running(run, first, directory.seal(run))
    for note in notes:
        sitting.observe(Noted(note))
    return place


def _run_steps(
    sitting: Session, place: Place, stop: Stop, probe: Probe
) -> tuple[Place, list[float], int | None]:
    """Train to the end, to an early stop, or to a signal, which is then the last value.

    The second value is the validation losses so far, one an epoch.
    """
    program, recipe = sitting.program, sitting.recipe
    every = sitting.safeguards.every
    step, losses = int(place.running.state.step), _valid_losses(sitting.run)
    log_every = recipe.log_every or program.steps_per_epoch
    if losses and is_best(losses) and step == len(losses) * program.steps_per_epoch:
        # The process may have ended between the checkpoint of a best epoch and its network.
        session.save_network(sitting, directory.BEST, program.value(place.running.state))
    started = time.perf_counter()
    saved_step, saved, next_tick = step if step else -1, started, 0.0

    def here(running: Running) -> Place:
        nonlocal started
        now = time.perf_counter()
        clock = place.clock._replace(train=place.clock.train + now - started)
        started = now
        return place._replace(running=running, clock=clock)

    running = place.running
    for rows in () if should_stop(losses, recipe.patience) else program.rows_from(step):
        if (signum := stop()) is not None:
            if saved_step != step:
                place = session.save(sitting, here(running))
            return place, losses, signum
        running, _ = program.step_at(step)(running, rows)
        step += 1
        due = step % every.steps == 0 or time.perf_counter() - saved >= every.seconds
        best = False
        if step % log_every == 0 or step == program.total_steps:
            place = session.log_training(sitting, here(running))
            running = place.running
        if step % program.steps_per_epoch == 0 and len(program.valid.labels):
            place = _validate(sitting, here(running), step, losses)
            started = time.perf_counter()
            best = is_best(losses)
        probe(step, running)
        if due or best:
            place = session.save(sitting, here(running))
            saved_step, saved = step, time.perf_counter()
        if best:
            session.save_network(sitting, directory.BEST, program.value(running.state))
        if time.perf_counter() >= next_tick:
            place = here(running)
            session.check_finite(sitting, place)
            sitting.observe(_progress(sitting, place, step))
            next_tick = time.perf_counter() + 0.25
        if step % program.steps_per_epoch == 0 and should_stop(losses, recipe.patience):
            break
    place = here(running)
    if saved_step != step:
        place = session.save(sitting, place)
    sitting.observe(_progress(sitting, place, step))
    return place, losses, None


def _validate(sitting: Session, place: Place, step: int, losses: list[float]) -> Place:
    """Evaluate on the images held out, and add the loss to ``losses``."""
    started = time.perf_counter()
    variables = sitting.program.value(place.running.state)
    summary, mark = session.measure(sitting, variables, "valid", step, place.mark)
    losses.append(summary["loss"])
    clock = place.clock._replace(valid=place.clock.valid + time.perf_counter() - started)
    return place._replace(clock=clock, mark=mark)


def _progress(sitting: Session, place: Place, step: int) -> Advanced:
    program, recipe = sitting.program, sitting.recipe
    recent = metrics.summarize(place.running.totals)
    return Advanced(
        step=step,
        total_steps=program.total_steps,
        epoch=min(step // program.steps_per_epoch + 1, recipe.epochs),
        epochs=recipe.epochs,
        loss=recent["loss"],
        accuracy=recent["accuracy"],
        images_per_second=program.images_per_epoch
        * (step / program.steps_per_epoch)
        / max(place.clock.train, 1e-9),
    )


def _warm_up(sitting: Session, place: Place) -> Place:
    """Compile the steps for each shape of batch, on a copy of the state, and count the seconds."""
    if not sitting.compiled:
        return place
    sitting.observe(Preparing("compiling"))
    program, started = sitting.program, time.perf_counter()
    last_epoch = program.rows_from(program.total_steps - program.steps_per_epoch)
    shapes = {len(rows): rows for rows in last_epoch}.values()
    for step in program.stages.values():
        for rows in shapes:
            # A donated state is overwritten: the copy is what gets lost.
            copy, _ = step(tree.map(lambda x: x.clone(), place.running), rows)
            int(copy.state.step)  # wait for the device
    for eval_step in program.compiled_evals:
        first = tree.map(lambda x: x[:1], program.test)
        evaluate(eval_step, program.value(place.running.state), first)
    seconds = place.clock.compile + time.perf_counter() - started
    return place._replace(clock=place.clock._replace(compile=seconds))


def _valid_losses(run: Path) -> list[float]:
    """The validation losses so far, one an epoch; NaN is null in the log."""
    return [
        float("nan") if record["loss"] is None else record["loss"]
        for record in directory.read_records(run)
        if record["kind"] == "eval" and record["split"] == "valid"
    ]
