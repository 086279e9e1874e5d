"""Mean, standard deviation and confidence interval of a metric over several runs."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Summary statistics of n values."""

    n: int
    mean: float
    std: float  # with n - 1; NaN for one value
    low: float  # ends of the confidence interval of the mean; NaN for one value
    high: float
    least: float
    most: float


def summarize(values: Sequence[float], level: float = 0.95) -> Summary:
    """Return mean, standard deviation, and Student's t interval of the mean at ``level``.

    Student, "The probable error of a mean", 1908. Assumes independent, normally distributed values,
    at least one.

    >>> summary = fcifar.analysis.confidence.summarize([0.90, 0.92, 0.91])
    >>> round(summary.mean, 4), round(summary.low, 4), round(summary.high, 4)
    (0.91, 0.8852, 0.9348)
    """
    n = len(values)
    if not n:
        raise ValueError("summarize needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan, mean, mean)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile((1 + level) / 2, n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half, min(values), max(values))


def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution, by bisection to the precision of float64."""
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(
            f"t_quantile needs a probability in [0.5, 1) and degrees from 1, "
            f"not {probability}, {degrees}"
        )
    low, high = 0.0, 1.0
    while _within(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if _within(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, degrees: int) -> float:
    """Return the probability of [-t, t]: Abramowitz and Stegun, "Handbook", 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
