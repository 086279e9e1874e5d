"""How a run is kept safe. No choice here changes a result."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from fcifar.errors import UserError

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_EVERY = re.compile(r"([0-9]{1,9})(s|min|h|)")


class Every(NamedTuple):
    """A number of steps or of seconds; infinite where the other counts."""

    steps: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Safeguards:
    """checkpoint_every: a number of steps such as ``500``, or a time such as ``30s`` or ``5min``.
    keep_checkpoints: how many of the latest stay; with one, a damaged one is a run lost.
    allow_nonfinite: go on when a loss is not finite, instead of stopping.

    Raises:
        UserError: a value is outside its range.
    """

    checkpoint_every: str = "30s"
    keep_checkpoints: int = 2
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        parse_every(self.checkpoint_every)
        kept = self.keep_checkpoints
        if isinstance(kept, bool) or not isinstance(kept, int) or not 1 <= kept <= 1_000_000:
            raise UserError(
                f"--keep-checkpoints is {kept!r}; it must be a whole number from 1 to 1,000,000"
            )
        if not isinstance(self.allow_nonfinite, bool):
            raise UserError(f"allow_nonfinite is {self.allow_nonfinite!r}, neither true nor false")

    @property
    def every(self) -> Every:
        """``checkpoint_every`` in numbers."""
        return parse_every(self.checkpoint_every)


def parse_every(text: str) -> Every:
    """``500`` or ``30s`` in numbers.

    Raises:
        UserError: it is neither, or nothing at all.
    """
    match = _EVERY.fullmatch(text) if isinstance(text, str) else None
    if match is None or not int(match[1]):
        raise UserError(
            f"--checkpoint-every is {text!r}; it must be a number of steps such as 500, or a time "
            "such as 30s, 5min or 1h"
        )
    number, unit = int(match[1]), match[2]
    if not unit:
        return Every(number, math.inf)
    return Every(math.inf, number * _SECONDS[unit])
