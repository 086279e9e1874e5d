"""What a training run tells whoever watches it."""

from collections.abc import Callable
from typing import Any, NamedTuple


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
