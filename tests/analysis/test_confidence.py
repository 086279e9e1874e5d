"""Student's interval of a mean."""

import math

import pytest

from fcifar.analysis.confidence import summarize, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),  # two-sided 95 %, as tables print them
    [
        *((1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058)),
        *((9, 2.26216), (10, 2.22814), (29, 2.04523), (30, 2.04227), (100, 1.98397)),
        (1000, 1.96234),
    ],
)
def test_quantiles_are_those_of_tables(degrees: int, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, rel=2e-6)
    assert t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)


def test_other_levels() -> None:
    assert t_quantile(0.75, 1) == pytest.approx(1)  # Cauchy's quartile
    assert t_quantile(0.95, 4) == pytest.approx(2.131847, rel=1e-6)


def test_a_summary() -> None:
    s = summarize([90.0, 91.0, 92.0])
    assert (s.n, s.mean, s.std, s.least, s.most) == (3, 91.0, 1.0, 90.0, 92.0)
    assert s.high - s.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert s.mean - s.low == pytest.approx(s.high - s.mean)


def test_one_value_has_no_spread() -> None:
    s = summarize([0.5])
    assert s.mean == 0.5
    assert all(math.isnan(v) for v in (s.std, s.low, s.high))


def test_misuse() -> None:
    with pytest.raises(ValueError, match="at least one"):
        summarize([])
    with pytest.raises(ValueError, match="probability in"):
        t_quantile(1.0, 3)
    with pytest.raises(ValueError, match="degrees from 1"):
        t_quantile(0.9, 0)
