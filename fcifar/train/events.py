"""Events of training, for progress displays; and the pace of a run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

WINDOW = 3.0  # seconds over which the pace of a run is measured
SLOWDOWN = 3.0  # times as long as the fastest window: worth a line


class Preparing(NamedTuple):
    """Something that takes a while has begun."""

    what: str


class Advanced(NamedTuple):
    """Where training is; sent a few times a second."""

    step: int
    total_steps: int
    epoch: int  # from 1
    epochs: int
    loss: float  # mean since the last log point; NaN right after one
    accuracy: float  # the same
    images_per_second: float
    name: str = ""  # of the run, where there are several


class Logged(NamedTuple):
    """A record was added to the metrics log."""

    record: dict[str, Any]
    name: str = ""  # of the run, where there are several


class Noted(NamedTuple):
    """Something that a person should read."""

    text: str


Event = Preparing | Advanced | Logged | Noted
Observe = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""


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


def describe_slowdown(pace: Pace, times: float, threads: int) -> str:
    """The line for a run whose steps have become ``times`` times as slow."""
    last, best = (f"{1000 * seconds:,.4g} ms" for seconds in (pace.last, pace.best))
    hint = f"; a new run with --threads 1 would lose less than {threads} do" if threads > 1 else ""
    return (
        f"a step now takes {last}, {times:.1f} times as long as the fastest of this run ({best}): "
        f"other processes use the cores{hint}"
    )
