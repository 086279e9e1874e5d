"""The steps of a run, as a generator: everything around them, and not the steps themselves.

Whoever drives it makes them: one run's after another, or those of many runs at once.
"""

import math
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from fcifar import metrics
from fcifar.running import Feed, Running
from fcifar.runs import directory, session
from fcifar.runs.events import Advanced, Noted
from fcifar.runs.saving import Place
from fcifar.runs.selection import is_best, should_stop
from fcifar.runs.session import Session

WINDOW = 3.0  # seconds over which the pace of a run is measured
SLOWDOWN = 3.0  # times as long as the fastest window: worth a line

Stop = Callable[[], int | None]
Probe = Callable[[int, Running], None]


class Hold(NamedTuple):
    """Where the state of a run is while it trains: alone, or in a row of a stack."""

    get: Callable[[], Running]
    put: Callable[[Running], None]


class Ended(NamedTuple):
    """How the steps of a run ended."""

    place: Place
    losses: list[float]  # on the validation images, one an epoch
    signum: int | None  # of the signal that stopped it


Steps = Generator[tuple[int, Feed], int | None, Ended]
"""How many steps were made before, and what to feed to the next; a signal's number, sent back in
place of making it, ends the run there."""


def hold_alone(running: Running) -> Hold:
    """A place of its own for the state of one run."""
    held = [running]
    return Hold(lambda: held[0], lambda new: held.__setitem__(0, new))


def steps(
    sitting: Session,
    place: Place,
    hold: Hold,
    *,
    probe: Probe | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Steps:
    """Train to the end, to an early stop, or to a signal: all of it but the steps themselves.

    It yields what to feed to the next step, and goes on when whoever drives it has made the step
    and put the new state into ``hold``.

    Args:
        timer: seconds that this run has taken; one that shares its time with others has its own.
    """
    program, recipe = sitting.program, sitting.recipe
    every = sitting.safeguards.every
    step, losses = int(place.running.state.step), _valid_losses(sitting.run)
    log_every = recipe.log_every or program.steps_per_epoch
    ends = [epochs * program.steps_per_epoch for epochs in (*sitting.earlier_ends, recipe.epochs)]
    if losses and is_best(losses) and step == len(losses) * program.steps_per_epoch:
        # The process may have ended between the checkpoint of a best epoch and its network.
        session.save_network(sitting, directory.BEST, program.value(place.running.state))
    started, saved, next_tick = timer(), time.perf_counter(), 0.0
    pace = Pace(step, place.clock.train)
    saved_step = step if step else -1

    def here() -> Place:
        nonlocal started
        now = timer()
        clock = place.clock._replace(train=place.clock.train + now - started)
        started = now
        return place._replace(running=hold.get(), clock=clock)

    for feed in () if should_stop(losses, recipe.patience) else program.feeds_from(step):
        signum = yield step, feed
        if signum is not None:
            place = here()
            if saved_step != step:
                place = session.save(sitting, place)
            return Ended(place, losses, signum)
        step += 1
        due = step % every.steps == 0 or time.perf_counter() - saved >= every.seconds
        best = False
        if step % log_every == 0 or step in ends:
            place = session.log_training(sitting, here())
            hold.put(place.running)
        if step % program.steps_per_epoch == 0 and len(program.valid.labels):
            place = _validate(sitting, here(), step, losses)
            started = timer()
            best = is_best(losses)
        if probe:
            probe(step, hold.get())
        if due or best:
            place = session.save(sitting, here())
            saved_step, saved = step, time.perf_counter()
        if best:
            session.save_network(sitting, directory.BEST, program.value(hold.get().state))
        if time.perf_counter() >= next_tick:
            place = here()
            session.check_finite(sitting, place)
            sitting.observe(_progress(sitting, place, step))
            pace, times = keep_pace(pace, step, place.clock.train)
            if times:
                sitting.observe(Noted(_describe_slowdown(pace, times, sitting.runtime.threads)))
            next_tick = time.perf_counter() + 0.25
        if step % program.steps_per_epoch == 0 and should_stop(losses, recipe.patience):
            break
    place = here()
    if saved_step != step:
        place = session.save(sitting, place)
    sitting.observe(_progress(sitting, place, step))
    return Ended(place, losses, None)


def _validate(sitting: Session, place: Place, step: int, losses: list[float]) -> Place:
    """Evaluate on the images held out, and add the loss to ``losses``."""
    started = time.perf_counter()
    variables = sitting.program.value(place.running.state)
    summary, mark = session.measure(sitting, variables, "valid", step, place.mark)
    losses.append(summary["loss"])
    clock = place.clock._replace(valid=place.clock.valid + time.perf_counter() - started)
    return place._replace(clock=clock, mark=mark)


class Pace(NamedTuple):
    """How fast steps are made, over windows of ``WINDOW`` seconds."""

    step: int  # at the beginning of the window
    seconds: float  # of training until then
    best: float = math.inf  # seconds a step, over the fastest window so far
    last: float = math.inf  # the same, over the last window
    told: bool = False  # whether a slowdown has been reported


def keep_pace(pace: Pace, step: int, seconds: float) -> tuple[Pace, float]:
    """The pace after ``step`` steps and ``seconds`` of training.

    Returns:
        The new pace; and how many times as long as the fastest a step now takes, when that has
        become ``SLOWDOWN`` times or more for the first time; else 0.
    """
    if seconds - pace.seconds < WINDOW or step == pace.step:
        return pace, 0.0
    last = (seconds - pace.seconds) / (step - pace.step)
    times = last / pace.best
    slow = times >= SLOWDOWN and not pace.told
    now = Pace(step, seconds, min(pace.best, last), last, pace.told or slow)
    return now, times if slow else 0.0


def _describe_slowdown(pace: Pace, times: float, threads: int) -> str:
    last, best = (f"{1000 * seconds:,.4g} ms" for seconds in (pace.last, pace.best))
    hint = f"; a new run with --threads 1 would lose less than {threads} do" if threads > 1 else ""
    return (
        f"a step now takes {last}, {times:.1f} times as long as the fastest of this run ({best}): "
        f"other processes use the cores{hint}"
    )


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


def _valid_losses(run: Path) -> list[float]:
    """The validation losses so far, one an epoch; NaN is null in the log."""
    return [
        float("nan") if record["loss"] is None else record["loss"]
        for record in directory.read_records(run)
        if record["kind"] == "eval" and record["split"] == "valid"
    ]
