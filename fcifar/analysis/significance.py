"""Paired significance tests of two classifiers on the same examples.

The tests are about two trained classifiers, not about training with other seeds or data: see
Dietterich, "Approximate statistical tests for comparing supervised classification learning
algorithms", Neural Computation 10, 1998. Invalid arguments raise a ValueError.
"""

import itertools
import math
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
SIGNIFICANT = 0.05


class PairedDifference(NamedTuple):
    """The difference in accuracy of two classifiers."""

    difference: float  # accuracy of the second minus accuracy of the first, in [-1, 1]
    interval95: tuple[float, float]  # lower and upper end, see paired_interval
    only_first: int  # examples that only the first gets right
    only_second: int  # examples that only the second gets right
    p_value: float  # see mcnemar


def paired_difference(correct_a: Tensor, correct_b: Tensor) -> PairedDifference:
    """Compare two classifiers by whether each is right, bool [N], on the same examples."""
    if correct_a.dtype != torch.bool or correct_b.dtype != torch.bool:
        raise ValueError(f"correct must be bool, not {correct_a.dtype} and {correct_b.dtype}")
    if correct_a.ndim != 1 or correct_a.shape != correct_b.shape or not len(correct_a):
        raise ValueError(
            f"correct must be [N] both, N at least 1, not {[*correct_a.shape]} and "
            f"{[*correct_b.shape]}"
        )
    count = len(correct_a)
    only_first = int((correct_a & ~correct_b).sum())
    only_second = int((correct_b & ~correct_a).sum())
    return PairedDifference(
        difference=(only_second - only_first) / count,
        interval95=paired_interval(only_first, only_second, count),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test, to about 9 digits.

    It is twice the smaller tail of a binomial distribution with probability 1/2, at most 1.
    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947. Arguments are as in ``PairedDifference``.

    >>> [round(fcifar.analysis.significance.mcnemar(*counts), 6) for counts in ((1, 1), (0, 10))]
    [1.0, 0.001953]
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"mcnemar needs counts of 0 or more, not {only_first}, {only_second}")
    low, count = min(only_first, only_second), only_first + only_second
    log_largest = (
        math.lgamma(count + 1)
        - math.lgamma(low + 1)
        - math.lgamma(count - low + 1)
        - count * math.log(2)
    )
    # The tail relative to its largest term, in decreasing terms.
    total = term = 1.0
    for successes in range(low, 0, -1):
        term *= successes / (count - successes + 1)
        if term < total * 1e-17:
            break
        total += term
    return min(1.0, math.exp(min(0.0, math.log(2) + log_largest + math.log(total))))


def paired_interval(
    only_first: int, only_second: int, count: int, z: float = Z95
) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two paired proportions, second - first.

    Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17, 1998. For a difference of 0 the score test is
    McNemar's without continuity correction; for classifiers that never differ the interval is
    Wilson's.

    Args:
        only_first, only_second: see ``PairedDifference``.
        count: number of all examples, at least 1.
        z: standard normal quantile, for 95 % by default.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > count or count == 0:
        raise ValueError(
            "paired_interval needs 0 <= only_first + only_second <= count > 0, not "
            f"{only_first}, {only_second}, {count}"
        )
    upper = _upper_end(only_first, only_second, count, z)
    return -_upper_end(only_second, only_first, count, z), upper


def _upper_end(only_first: int, only_second: int, count: int, z: float) -> float:
    """Bisect: the score decreases from 0 or more at the estimate to minus infinity at 1."""
    low, high = (only_second - only_first) / count, 1.0
    for _ in range(60):  # to the precision of a float
        middle = (low + high) / 2
        if _score(middle, only_first, only_second, count) >= -z:
            low = middle
        else:
            high = middle
    return low


def _score(difference: float, only_first: int, only_second: int, count: int) -> float:
    """Return the score statistic of the counts, given the difference."""
    distance = only_second - only_first - count * difference
    # The maximum likelihood probability that only the first is right, given the difference, is the
    # larger root of a x^2 + b x + c.
    a = 2 * count
    b = (2 * count + only_first - only_second) * difference - only_first - only_second
    c = -only_first * difference * (1 - difference)
    root = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * root + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def statement(first: str, second: str, difference: PairedDifference) -> str:
    """Return the conclusion at the 5 % level, in words."""
    if difference.p_value >= SIGNIFICANT:
        return "no difference shown"
    return f"{second if difference.difference > 0 else first} is better"


def against_first(names: Sequence[str], correct: Sequence[Tensor], i: int) -> dict[str, Any]:
    """Compare model ``i`` with the first one; return JSON-serializable values.

    ``correct`` has bool [N] for each model, on the same examples.
    """
    difference = paired_difference(correct[0], correct[i])
    return {
        "first": names[0],
        "second": names[i],
        **difference._asdict(),
        "statement": statement(names[0], names[i], difference),
    }


def letters() -> Iterator[str]:
    """Yield A to Z, then AA, AB and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))
