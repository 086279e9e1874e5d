"""Events of training, for progress displays, and detection of slowdowns."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

WINDOW = 3.0  # seconds over which the time of a step is averaged
SLOWDOWN = 3.0  # report a step that takes so many times as long as in the fastest window


class Preparing(NamedTuple):
    """A phase that takes a while has begun."""

    what: str


class Advanced(NamedTuple):
    """Training progress; sent a few times a second."""

    step: int
    total_steps: int
    epoch: int  # from 1
    epochs: int
    loss: float  # mean since the last log point, like accuracy; NaN right after one
    accuracy: float
    images_per_second: float
    name: str = ""  # of the run, in a sweep


class Logged(NamedTuple):
    """A record was added to the metrics log."""

    record: dict[str, Any]
    name: str = ""  # of the run, in a sweep


class Noted(NamedTuple):
    """A message for the user."""

    text: str


Event = Preparing | Advanced | Logged | Noted
Observe = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore all events."""


class Pace(NamedTuple):
    """Seconds per step, over windows of ``WINDOW`` seconds."""

    step: int  # at the start of the window
    seconds: float  # of training until then
    best: float = math.inf  # seconds per step in the fastest window so far
    last: float = math.inf  # seconds per step in the last window
    reported: bool = False  # whether a slowdown has been reported


def update_pace(pace: Pace, step: int, seconds: float) -> tuple[Pace, float]:
    """Return the pace after ``step`` steps and ``seconds`` of training, and a slowdown factor.

    The factor is the ratio of the last to the fastest seconds per step, the first time that it
    reaches ``SLOWDOWN``; else 0.
    """
    if seconds - pace.seconds < WINDOW or step == pace.step:
        return pace, 0.0
    last = (seconds - pace.seconds) / (step - pace.step)
    factor = last / pace.best
    is_new = factor >= SLOWDOWN and not pace.reported
    new = Pace(step, seconds, min(pace.best, last), last, pace.reported or is_new)
    return new, factor if is_new else 0.0


def describe_slowdown(pace: Pace, factor: float, threads: int) -> str:
    """Return the message for a run whose steps have become ``factor`` times as slow."""
    last, best = (f"{1000 * seconds:,.4g} ms" for seconds in (pace.last, pace.best))
    hint = f"; a new run with --threads 1 would slow down less than one with {threads}"
    return (
        f"a step now takes {last}, {factor:.1f} times as long as the fastest of this run ({best}): "
        f"other processes use the cores{hint if threads > 1 else ''}"
    )
