"""Checks of a recipe's values, and their limits."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fcifar.errors import UsageError, did_you_mean, names_of, shown

if TYPE_CHECKING:
    from fcifar.models import Model

MOST_FOLDS = 1000
LARGEST_COUNT = 10**9  # so that the steps of a run stay below 2**63
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-30, 1e30  # so that a step stays within float32

_FOLD = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", re.ASCII)


def refused(name: str, value: Any, accepted: str) -> UsageError:
    """Return the error about a value that is not ``accepted``."""
    return UsageError(f"{name} is {shown(value)}; it must be {accepted}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise a UsageError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise refused(name, value, f"one of {', '.join(choices)}{did_you_mean(value, choices)}")


def check_text(name: str, value: Any) -> None:
    """Raise a UsageError unless ``value`` is one line without control characters."""
    if not isinstance(value, str) or not value.isprintable():
        raise refused(name, value, "one line of printable text")


def check_switch(name: str, value: Any) -> None:
    """Raise a UsageError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise refused(name, value, "true or false")


def check_count(name: str, value: Any, least: int, most: int = LARGEST_COUNT) -> None:
    """Raise a UsageError unless ``value`` is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise refused(name, value, f"a whole number from {least} up to {most:,}")


def check_number(name: str, value: Any) -> None:
    """Raise a UsageError unless ``value`` is 0 or within the limits above."""
    if not _is_number(value) or not (value == 0 or SMALLEST_NUMBER <= value <= LARGEST_NUMBER):
        raise refused(name, value, f"0, or a number from {SMALLEST_NUMBER} to {LARGEST_NUMBER}")


def check_channels(name: str, value: Any, least: float) -> None:
    """Raise a UsageError unless ``value`` is a tuple of three numbers from ``least`` up."""
    if (
        not isinstance(value, tuple)
        or len(value) != 3
        or not all(_is_number(v) and least <= v <= LARGEST_NUMBER for v in value)
    ):
        raise refused(name, value, f"three numbers from {least} to {LARGEST_NUMBER}")


def check_rates(name: str, value: Any, groups: Iterable[str]) -> None:
    """Raise a UsageError unless ``value`` gives positive numbers to some of ``groups``."""
    if not isinstance(value, Mapping) or not set(value) <= set(groups):
        raise refused(name, value, f"numbers by group, of {', '.join(groups)}")
    for group, rate in value.items():
        check_number(f"{name} of {group}", rate)
        if not rate:
            raise UsageError(f"{name} of {group} is 0; it must be above")


def check_factors(name: str, value: Any, model: "Model") -> None:
    """Raise a UsageError unless ``value`` gives positive numbers to patterns of parameters."""
    from fcifar import random

    if not isinstance(value, Mapping) or not all(isinstance(pattern, str) for pattern in value):
        raise refused(name, value, 'numbers by pattern, such as {"fc*": 10}')
    if not value:
        return
    names = list(model.init(random.key(0, device="meta")).params)
    for pattern, factor in value.items():
        check_number(f"{name} of {shown(pattern)}", factor)
        if not factor:
            raise UsageError(f"{name} of {shown(pattern)} is 0; it must be above, or give freeze")
        if not fnmatch.filter(names, pattern):
            raise UsageError(
                f"{name} has {shown(pattern)}, which matches no parameter; they are "
                f"{names_of(names)}"
            )


def parse_fold(value: Any) -> tuple[int, int]:
    """Return ``"2/5"`` as 2, in [1, 5], and 5, in [2, ``MOST_FOLDS``]; else raise a UsageError."""
    match = _FOLD.fullmatch(value) if isinstance(value, str) else None
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts or not 2 <= parts <= MOST_FOLDS:
        raise refused(
            "fold", value, f"I/N, part I of N, such as 2/5, with N from 2 to {MOST_FOLDS}"
        )
    return part, parts


def check_milestones(value: Any) -> None:
    """Raise a UsageError unless ``value`` is a tuple of rising fractions in (0, 1)."""
    if (
        not isinstance(value, tuple)
        or not all(_is_number(part) and 0 < part < 1 for part in value)
        or list(value) != sorted(set(value))
    ):
        raise refused("milestones", value, "fractions of the run that rise, such as 0.5,0.75")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_seed(seed: int) -> int:
    """Return ``seed``, or raise a UsageError unless it is a whole number in [-2**31, 2**32)."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise refused("--seed", seed, "a whole number")
    if not -(2**31) <= seed < 2**32:
        raise UsageError(f"--seed is {shown(seed)}; it must lie in [-2**31, 2**32)")
    return seed
