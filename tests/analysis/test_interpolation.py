"""Sums of models, the plane through three, and the barrier: closed forms."""

import math

import pytest
import torch

from fcifar import averaging, random, tree
from fcifar.analysis import interpolation
from fcifar.analysis.interpolation import barrier, barycentric, combine, corners
from fcifar.models import Variables


def drawn(seed: int) -> Variables:
    keys = random.split(random.key(seed), 3)
    params = {"w": random.normal(keys[0], (4, 5)), "b": random.normal(keys[1], (4,))}
    count = torch.tensor(seed)
    return Variables(params, {"running_mean": random.normal(keys[2], (4,)), "count": count})


def test_a_sum_is_exact_at_its_ends_and_a_mean_between() -> None:
    a, b, c = map(drawn, range(3))
    a.params["b"][0] = -0.0
    assert tree.equal(combine([a, b, c], (1.0, 0.0, 0.0)), a)
    last = combine([a, b, c], (0.0, 0.0, 1.0))
    assert tree.equal(last.params, c.params)
    assert last.buffers["count"] == 0  # of the first
    assert tree.equal(combine([a, b], (0.5, 0.5)), averaging.mean([a, b]))
    wide = tree.map(lambda x: x.double() if x.is_floating_point() else x, [a, b])
    expected = 0.3 * wide[0].params["w"] + 0.7 * wide[1].params["w"]
    assert torch.equal(combine(wide, (0.3, 0.7)).params["w"], expected)
    half = combine([{"w": torch.ones(2, dtype=torch.bfloat16)}] * 2, (0.5, 0.5))
    assert half["w"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="a weight for each tree: 1 for 2"):
        combine([a, b], (1.0,))


def test_the_plane_keeps_distances() -> None:
    """Those of points between models, too: its axes are orthonormal."""
    models = list(map(drawn, range(3)))
    found = corners(models)
    flat = [torch.cat([v.params[n].double().flatten() for n in ("w", "b")]) for v in models]
    for i in range(3):
        for j in range(3):
            distance = (flat[i] - flat[j]).norm()
            torch.testing.assert_close((found[i] - found[j]).norm(), distance)
    assert found[0].tolist() == [0, 0]
    assert found[1, 1] == 0
    points = [(0.4, -1.2), (-3.0, 2.5)]
    at = []
    for point in points:
        weights = barycentric(found, point)
        assert sum(weights) == pytest.approx(1)
        at.append(sum(weight * each for weight, each in zip(weights, flat, strict=True)))
    assert (at[0] - at[1]).norm().item() == pytest.approx(math.dist(*points))
    for i in range(3):
        x, y = found[i].tolist()
        assert barycentric(found, (x, y)) == pytest.approx([float(i == j) for j in range(3)])


def test_models_on_a_line_have_no_plane() -> None:
    a, b = drawn(0), drawn(1)
    for third in (a, b, combine([a, b], (0.3, 0.7))):
        with pytest.raises(ValueError, match="lie on a line"):
            corners([a, b, third])
    with pytest.raises(ValueError, match="lie on a line"):
        corners([a, a, b])


WEIGHTS = [i / 10 for i in range(11)]


def test_the_barrier_of_a_parabola() -> None:
    """A quadratic loss between two minima of other functions: a line and 4 c w (1 - w)."""
    w = torch.tensor(WEIGHTS)[:, None]
    c = 1 + random.normal(random.key(0), (2000,)).double()
    ends = random.normal(random.key(1), (2, 2000)).double()
    values = (1 - w) * ends[0] + w * ends[1] + 4 * c * w * (1 - w)
    found = barrier(values, WEIGHTS, random.key(2))
    assert found.height == pytest.approx(c.mean().item(), rel=1e-5)
    assert found.at == 5
    # At one point of the path, the bootstrap's interval is that of a mean.
    half = 1.96 * c.std().item() / math.sqrt(2000)
    low, high = found.interval95
    assert low == pytest.approx(c.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(c.mean().item() + half, abs=0.1 * half)


def test_there_is_no_barrier_where_the_loss_does_not_rise() -> None:
    w = torch.tensor(WEIGHTS, dtype=torch.float64)[:, None]
    ends = random.normal(random.key(1), (2, 50)).double()
    line = (1 - w) * ends[0] + w * ends[1]
    straight = barrier(line, WEIGHTS, random.key(0))
    assert straight.height == pytest.approx(0, abs=1e-12)
    assert straight.interval95 == pytest.approx((0, 0), abs=1e-12)
    below = barrier(line - 4 * w * (1 - w), WEIGHTS, random.key(0))
    assert (below.height, below.interval95) == (0, (0, 0))
    assert below.at in (0, 10)


def test_the_interval_covers_the_true_barrier() -> None:
    """In most samples of images; the key alone decides the resamples."""
    w = torch.tensor([0.0, 0.5, 1.0])[:, None]
    covered = 0
    for i in range(20):
        c = torch.exp(random.normal(random.key(i), (60,))).double()
        low, high = barrier(4 * c * w * (1 - w), [0, 0.5, 1], random.key(7)).interval95
        covered += low <= math.exp(0.5) <= high
    assert covered >= 16  # 95 % of many images; of a few from a skewed distribution, less
    again = barrier(4 * c * w * (1 - w), [0, 0.5, 1], random.key(7))
    assert again.interval95 == (low, high)
    assert again != barrier(4 * c * w * (1 - w), [0, 0.5, 1], random.key(8))


@pytest.mark.parametrize("weights", [[0, 1], [0, 0.5, 0.9], [0.1, 0.5, 1]])
def test_a_path_begins_and_ends_at_a_model(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"P weights from 0 to 1, not \[3, 4\]"):
        interpolation.barrier(torch.zeros(3, 4), weights, random.key(0))
