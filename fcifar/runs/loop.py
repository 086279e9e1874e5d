"""The training loop: a thin shell around the step."""

import contextlib
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.data import Dataset
from fcifar.data.files import sweep
from fcifar.errors import UserError, WorldError
from fcifar.recipes import Recipe
from fcifar.runs import directory, environment, leading, manifest, ranks, session, together
from fcifar.runs.driving import drive
from fcifar.runs.events import Noted, Observe, Preparing, ignore
from fcifar.runs.finishing import finish
from fcifar.runs.lock import locked
from fcifar.runs.log import Mark
from fcifar.runs.manifest import Settings
from fcifar.runs.program import Program, build, count
from fcifar.runs.runtime import Runtime, activate
from fcifar.runs.safeguards import Safeguards
from fcifar.runs.saving import Clock, Place, restore_running
from fcifar.runs.session import Session
from fcifar.runs.stepping import Probe, Stop, hold_alone, steps


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
    traced: Sequence[str] = (),
    earlier_ends: Sequence[int] = (),
    resume: bool = False,
    safeguards: Safeguards = Safeguards(),  # noqa: B008
    observe: Observe = ignore,
    stop: Stop = lambda: None,
    probe: Probe | None = None,
    until: int | None = None,
) -> dict[str, Any] | Interrupted:
    """Train, evaluate, and leave a run directory behind.

    Args:
        run: the run directory, new or (with ``resume``) one that was interrupted. Of one that had
            come to its end, nothing but the report is returned.
        compiled: whether the step goes through ``torch.compile``.
        traced: as ``program.build`` takes it; it changes results by rounding.
        earlier_ends: epochs that the run once ended after, before it was given more of them
            (``manifest.extend``); it has log points there.
        safeguards: when to save, and what to stop at.
        observe: is told what happens.
        stop: asked before each step; a signal number ends the run after a checkpoint.
        probe: sees the state after each step, as a checkpoint would hold it.
        until: end the run after so many steps, as a signal of number 0 would.

    Returns:
        The report, which is also in ``report.json``; or ``Interrupted``.

    Raises:
        UserError: the request cannot be carried out; nothing was written.
        NonFiniteError: the loss is no number any more.
        WorldError: the disk failed; what was written before is whole.
    """
    if compiled:
        environment.check_compiler(runtime.device)
    settings = Settings(
        recipe=recipe,
        runtime=runtime,
        compiled=compiled,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        safeguards=safeguards,
        traced=tuple(traced),
        earlier_ends=tuple(earlier_ends),
    )
    if not resume:
        directory.check_free(run)
    count(recipe, dataset, seed=runtime.seed, processes=runtime.processes)
    with _resumable(run, runtime), activate(runtime), leading.lead(settings, dataset) as axis:
        program = build(recipe, runtime, dataset, compiled=compiled, traced=traced, axis=axis)
        sitting, place = open_sitting(run, program, settings, dataset, observe)
        with locked(run):
            if resume and (run / directory.REPORT).exists():
                observe(Noted(f"{run} had come to its end already"))
                return directory.read_report(run)
            if resume:
                place = warm_up(sitting, restore(sitting, place))
            else:
                directory.check_free(run)  # again, for another process may have been quicker
                place = create(sitting, warm_up(sitting, place))
            together.begin(program, place.running)
            hold = hold_alone(place.running)
            ended = drive(
                program, steps(sitting, place, hold, probe=probe), hold, stop=stop, until=until
            )
            if ended.signum is not None:
                return Interrupted(ended.signum, int(ended.place.running.state.step))
            _check_agreement(sitting, ended.place)
            observe(Preparing("evaluating"))
            return finish(sitting, ended.place, ended.losses)


@contextlib.contextmanager
def _resumable(run: Path, runtime: Runtime) -> Iterator[None]:
    """Say how to go on, where a process of several was lost."""
    try:
        yield
    except ranks.LostError as error:
        if not (run / directory.MANIFEST).exists():
            raise
        raise ranks.LostError(
            f"{error}; go on with: torchrun --nproc-per-node {runtime.processes} -m fcifar train "
            f"--resume {run}"
        ) from error


def _check_agreement(sitting: Session, place: Place) -> None:
    """Make sure that all processes have trained the same network. Raises a WorldError."""
    if not together.agree(sitting.program, place.running):
        raise WorldError(
            f"the {sitting.runtime.processes} processes of {sitting.run} have come to different "
            "parameters, as processors of different kinds may; run them on hosts of one kind"
        )


def open_sitting(
    run: Path, program: Program, settings: Settings, dataset: Dataset, observe: Observe
) -> tuple[Session, Place]:
    """A sitting at the beginning of a run, of which nothing is on the disk yet."""
    started = time.perf_counter()
    first = program.init()
    sitting = Session(
        run=run,
        program=program,
        recipe=settings.recipe,
        runtime=settings.runtime,
        dataset=dataset,
        compiled=settings.compiled,
        traced=settings.traced,
        mapped=settings.mapped,
        earlier_ends=settings.earlier_ends,
        safeguards=settings.safeguards,
        observe=observe,
        multipliers=session.draw_multipliers(first.state),
    )
    clock = Clock(adapt=time.perf_counter() - started)
    return sitting, Place(first, clock, Mark(0, ""))


def create(sitting: Session, place: Place) -> Place:
    """Make the run directory."""
    seal = directory.create(sitting.run, manifest.describe(sitting))
    return place._replace(mark=Mark(0, seal))


def restore(sitting: Session, beginning: Place, steps: Container[int] | None = None) -> Place:
    """Where an interrupted run goes on: at the latest checkpoint, of those after ``steps``."""
    run, began = sitting.run, manifest.read_settings(sitting.run)
    given = sitting.recipe, sitting.runtime, sitting.compiled
    if began[:3] != given or began.dataset_digest != sitting.dataset.digest:
        raise UserError(
            f"{run} began with another recipe, runtime or data set than is given now; continue it "
            "with those it began with, or begin a new run"
        )
    sweep(run)
    (run / directory.NONFINITE).unlink(missing_ok=True)
    place, notes = restore_running(run, beginning.running, directory.seal(run), steps)
    for note in notes:
        sitting.observe(Noted(note))
    return place


def warm_up(sitting: Session, place: Place) -> Place:
    """Compile the steps for each shape of batch, on a copy of the state, and count the seconds."""
    if not sitting.compiled:
        return place
    sitting.observe(Preparing("compiling"))
    started = time.perf_counter()
    together.warm_up(sitting.program, place.running)
    seconds = place.clock.compile + time.perf_counter() - started
    return place._replace(clock=place.clock._replace(compile=seconds))
