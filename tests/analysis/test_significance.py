"""Paired statistics, against values worked out by hand and another way of computing them."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcifar.analysis.significance import (
    Z95,
    PairedDifference,
    mcnemar,
    paired_difference,
    paired_interval,
)
from fcifar.metrics import wilson_interval

counts = st.integers(0, 400)


def exact_mcnemar(only_first: int, only_second: int) -> Fraction:
    """In whole numbers, as the definition has it."""
    n, low = only_first + only_second, min(only_first, only_second)
    return min(Fraction(1), Fraction(2 * sum(math.comb(n, i) for i in range(low + 1)), 2**n))


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (1, 8, 2 * (1 + 9) / 512),  # 0.0390625
        (0, 5, 2 / 32),
        (2, 3, 1.0),  # twice the tail is 2 * 16 / 32
        (5, 12, 2 * (1 + 17 + 136 + 680 + 2380 + 6188) / 2**17),
        (0, 0, 1.0),
        (7, 7, 1.0),
        (0, 1, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-12)


@given(counts, counts)
def test_mcnemar_is_the_binomial_test(only_first: int, only_second: int) -> None:
    p = mcnemar(only_first, only_second)
    assert p == pytest.approx(float(exact_mcnemar(only_first, only_second)), rel=1e-11)
    assert p == mcnemar(only_second, only_first)
    assert 0 < p <= 1


@given(st.integers(0, 10**5), st.integers(1, 10**5), st.integers(1, 1000))
def test_mcnemar_falls_as_the_counts_move_apart(low: int, apart: int, more: int) -> None:
    near, far = mcnemar(low, low + apart), mcnemar(low, low + apart + more)
    assert far <= near * (1 + 1e-8)


@pytest.mark.parametrize("excess", [0, 200, 600, 1200, 2000])
def test_mcnemar_of_large_counts_is_nearly_normal(excess: int) -> None:
    n = 100_000
    only_first, only_second = (n - excess) // 2, (n + excess) // 2
    # Half a unit of continuity on each side, z as for a sum of n fair coins.
    z = max(0, excess - 1) / math.sqrt(n)
    normal = math.erfc(z / math.sqrt(2))
    assert mcnemar(only_first, only_second) == pytest.approx(normal, rel=2e-3)


def test_mcnemar_of_extreme_counts_is_tiny_or_zero() -> None:
    assert mcnemar(0, 1000) == pytest.approx(2.0**-999, rel=1e-9)
    assert mcnemar(0, 100_000) == 0.0
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar(-1, 3)


# The interval ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 10, 10_000])
def test_intervals_of_the_extremes_by_hand(n: int) -> None:
    # Never apart: the score equation is n d^2 = z^2 d (1 - d).
    end = Z95**2 / (n + Z95**2)
    assert paired_interval(0, 0, n) == pytest.approx((-end, end), rel=1e-9)
    assert end == pytest.approx(wilson_interval(0, n)[1], rel=1e-9)
    # Always apart the same way: it is n (1 - d) = z^2 (1 + d).
    lower = (n - Z95**2) / (n + Z95**2)
    assert paired_interval(0, n, n) == pytest.approx((lower, 1.0), rel=1e-9)
    assert paired_interval(n, 0, n) == pytest.approx((-1.0, -lower), rel=1e-9)


def test_the_interval_of_large_counts_is_nearly_walds() -> None:
    b, c, n = 1500, 1200, 100_000
    middle = (c - b) / n
    half = Z95 * math.sqrt(b + c - (c - b) ** 2 / n) / n
    assert paired_interval(b, c, n) == pytest.approx((middle - half, middle + half), rel=2e-3)


@given(counts, counts, counts)
def test_properties_of_the_interval(only_first: int, only_second: int, other: int) -> None:
    n = only_first + only_second + other
    if not n:
        return
    low, high = paired_interval(only_first, only_second, n)
    difference = (only_second - only_first) / n
    assert -1 <= low <= difference <= high <= 1
    assert paired_interval(only_second, only_first, n) == (-high, -low)
    # It holds 0 exactly when McNemar's chi-squared does not reject it.
    chi = (only_second - only_first) ** 2 / max(1, only_first + only_second)
    if abs(chi - Z95**2) > 1e-6:
        assert (low <= 0 <= high) == (chi < Z95**2)
    narrow = paired_interval(only_first, only_second, n, z=1.0)
    assert low <= narrow[0] <= narrow[1] <= high


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_the_ends_are_where_a_score_test_rejects(
    only_first: int, only_second: int, other: int
) -> None:
    n = only_first + only_second + other
    for end in paired_interval(only_first, only_second, n):
        # The likeliest pair of probabilities (x, x + end), found by search.
        x = most_likely(end, only_first, only_second, other)
        variance = (2 * x + end - end**2) * n
        z = (only_second - only_first - n * end) / math.sqrt(variance)
        assert abs(z) == pytest.approx(Z95, rel=1e-3)


def most_likely(difference: float, only_first: int, only_second: int, other: int) -> float:
    def log_likelihood(x: float) -> float:
        cells = ((only_first, x), (only_second, x + difference), (other, 1 - 2 * x - difference))
        return sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    low, high = max(0.0, -difference), (1 - difference) / 2
    for _ in range(200):  # it is concave: a third of the bracket goes each time
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if log_likelihood(a) < log_likelihood(b) else (low, b)
    return (low + high) / 2


@pytest.mark.parametrize("bad", [(-1, 0, 3), (2, 2, 3), (0, 0, 0)])
def test_impossible_counts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="paired_interval needs"):
        paired_interval(*bad)


# Both together -----------------------------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    # Both right 3 times, both wrong once, only the first right once, only the second 8 times.
    a = torch.tensor([1] * 3 + [0] + [1] + [0] * 8).bool()
    b = torch.tensor([1] * 3 + [0] + [0] + [1] * 8).bool()
    found = paired_difference(a, b)
    assert found == PairedDifference(7 / 13, paired_interval(1, 8, 13), 1, 8, mcnemar(1, 8))
    assert found.difference == pytest.approx((b.double().mean() - a.double().mean()).item())


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_swapping_the_classifiers_turns_the_difference_around(pairs: list) -> None:
    a, b = torch.tensor(pairs).unbind(1)
    here, there = paired_difference(a, b), paired_difference(b, a)
    assert here.difference == -there.difference
    assert here.interval95 == (-there.interval95[1], -there.interval95[0])
    assert (here.only_first, here.only_second) == (there.only_second, there.only_first)
    assert here.p_value == there.p_value
    assert paired_difference(a, a)[2:] == (0, 0, 1.0)


def test_only_paired_answers_are_compared() -> None:
    yes = torch.tensor([True])
    with pytest.raises(ValueError, match="must be bool"):
        paired_difference(yes, yes.long())
    for bad in (yes.repeat(2), yes[:0], yes[None]):
        with pytest.raises(ValueError, match=r"must be \[N\] both"):
            paired_difference(yes if len(bad) else bad, bad)
