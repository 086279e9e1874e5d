"""Keys and draws against golden values of jax.random, and against what statistics expects.

The golden files hold what jax 0.10.2 returned; ``source`` in each says how.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fcifar import random

GOLDEN = json.loads((Path(__file__).parent / "golden/jax_random_golden.json").read_text())
MORE = json.loads((Path(__file__).parent / "golden/jax_random_more.json").read_text())
SEEDS = sorted(GOLDEN["seeds"], key=int)


def floats(patterns: list[int]) -> Tensor:
    return torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)


def ulps(a: Tensor, b: Tensor) -> int:
    """The largest distance in units in the last place."""

    def ordered(x: Tensor) -> Tensor:
        i = x.contiguous().view(torch.int32).to(torch.int64)
        return torch.where(i < 0, -(i & 0x7FFF_FFFF), i)

    return int((ordered(a) - ordered(b)).abs().max())


def draws(key: Tensor) -> dict[str, Tensor]:
    """Everything that the golden file holds for a key."""
    order = random.permutation(key, 50_000)
    return {
        "key": key,
        "split_5": random.split(key, 5),
        "split_3x2": random.split(key, (3, 2)),
        "bits_2x3x5": random.bits(key, (2, 3, 5)),
        "uniform_32_f32bits": random.uniform(key, (32,)),
        "uniform_range_-0.3_0.7_32_f32bits": random.uniform(key, (32,), -0.3, 0.7),
        "bernoulli_0.37_64": random.bernoulli(key, 0.37, (64,)),
        "randint_-4_5_64": random.randint(key, (64,), -4, 5),
        "permutation_20": random.permutation(key, 20),
        "permutation_50000_head16": order[:16],
        "permutation_50000_weighted_sum": (
            order * torch.arange(1, 50_001, device=key.device)
        ).sum(),
        "normal_32_f32bits": random.normal(key, (32,)),
    }


def assert_golden(name: str, found: Tensor, golden: list) -> None:
    if name.startswith("normal"):
        assert ulps(found, floats(golden)) <= 4
    elif name.endswith("f32bits"):
        assert torch.equal(found, floats(golden)), name
    else:
        assert torch.equal(found.to(torch.int64), torch.tensor(golden)), name


@pytest.mark.parametrize(
    "mode",
    [
        "eager",
        "vmap",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("compiled", "compiled vmap")),
    ],
)
def test_equals_jax(mode: str) -> None:
    keys = torch.stack([random.key(int(seed)) for seed in SEEDS])
    function = torch.vmap(draws) if "vmap" in mode else draws
    if "compiled" in mode:
        function = torch.compile(function, fullgraph=True)
    if "vmap" in mode:
        found = function(keys)
        rows = [{name: x[i] for name, x in found.items()} for i in range(len(keys))]
    else:
        rows = [function(key) for key in keys]
    for seed, row in zip(SEEDS, rows, strict=True):
        golden = GOLDEN["seeds"][seed]
        assert set(row) | {"fold_in"} == set(golden), "every golden entry has a counterpart"
        for name, x in row.items():
            assert_golden(name, x, golden[name])


@pytest.mark.parametrize("seed", SEEDS)
def test_fold_in_equals_jax(seed: str) -> None:
    key = random.key(int(seed))
    compiled = torch.compile(random.fold_in, fullgraph=True)
    for data, golden in GOLDEN["seeds"][seed]["fold_in"].items():
        number = torch.tensor(int(data))
        assert random.fold_in(key, int(data)).tolist() == golden
        assert random.fold_in(key, number).tolist() == golden
        assert compiled(key, number).tolist() == golden
    assert (
        random.fold_in(random.fold_in(key, 3), 4).tolist() == MORE["seeds"][seed]["fold_in_chain"]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_more_of_jax(seed: str) -> None:
    key, golden = random.key(int(seed)), MORE["seeds"][seed]
    logits = torch.tensor([[0.0, 1, 2, -1], [3, 0, 0, 0]])
    rows = torch.arange(10).reshape(5, 2)
    exact = {
        "categorical_2x4": random.categorical(key, logits, shape=(50, 2)),
        "categorical_axis0": random.categorical(key, logits, axis=0),
        "randint_wide": random.randint(key, (64,), -(2**31), 2**31 - 1),
        "randint_0_100000": random.randint(key, (64,), 0, 100_000),
        "permutation_1": random.permutation(key, 1),
        "permutation_rows_5x2": random.permutation(key, rows),
        "permutation_3000_head16": random.permutation(key, 3000)[:16],
        "bernoulli_half_32": random.bernoulli(key, shape=(32,)).to(torch.int64),
    }
    for name, found in exact.items():
        assert found.tolist() == golden[name], name
    assert ulps(random.normal(key, (1000,)), floats(golden["normal_1000_f32bits"])) <= 4
    for low, high in ((-2.0, 2.0), (0.5, 3.0)):
        jax = floats(golden[f"truncated_normal_{low:g}_{high:g}_200_f32bits"])
        # The bounds go through erf, whose last bit is the platform's: relative, not ulp.
        torch.testing.assert_close(
            random.truncated_normal(key, low, high, (200,)), jax, rtol=2e-6, atol=1e-6
        )
    jax = floats(golden["gumbel_200_f32bits"])
    torch.testing.assert_close(random.gumbel(key, (200,)), jax, rtol=2e-6, atol=1e-6)


def test_negative_seed_equals_jax() -> None:
    assert random.key(-5).tolist() == MORE["negative_seed_key"]


@pytest.mark.parametrize(
    "size", [1023, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 15, 16, 100_003))]
)
def test_compiled_draws_have_the_same_bits(size: int) -> None:
    """Sizes around the vector width: the remainder loop is other code than the vector loop."""
    key = random.key(3)

    def every(key: Tensor) -> tuple[Tensor, ...]:
        return (
            random.bits(key, (size,)),
            random.uniform(key, (size,)),
            random.bernoulli(key, 0.2, (size,)),
            random.randint(key, (size,), -10, 1000),
            random.split(key, size),
        )

    for eager, compiled in zip(every(key), torch.compile(every, fullgraph=True)(key), strict=True):
        assert torch.equal(eager, compiled)


def test_a_draw_does_not_depend_on_how_many_are_drawn() -> None:
    key = random.key(1)
    assert torch.equal(random.bits(key, (1000,))[:10], random.bits(key, (10,)))
    assert torch.equal(random.bits(key, (10, 10)).reshape(-1), random.bits(key, (100,)))
    assert torch.equal(random.split(key, 7)[:2], random.split(key))
    for i in range(7):
        assert torch.equal(random.split(key, 7)[i], random.fold_in(key, i))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(random.key(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cuda
def test_the_same_draws_on_cuda() -> None:
    on_cpu = draws(random.key(42))
    for name, x in draws(random.key(42, device="cuda")).items():
        assert x.is_cuda
        if name.startswith("normal"):
            assert ulps(x.cpu(), on_cpu[name]) <= 4
        else:
            assert torch.equal(x.cpu(), on_cpu[name]), name


# Statistics, with fixed keys: each bound is five standard deviations wide


N = 200_000


@pytest.mark.parametrize("seed", range(3))
def test_moments(seed: int) -> None:
    key = random.key(seed)
    u = random.uniform(key, (N,)).double()
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / N)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / N)
    assert 0 <= u.min() <= u.max() < 1
    z = random.normal(key, (N,)).double()
    assert abs(z.mean()) < 5 / math.sqrt(N)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / N)
    b = random.bernoulli(key, 0.3, (N,)).double()
    assert abs(b.mean() - 0.3) < 5 * math.sqrt(0.21 / N)


def chi_square_in_bounds(counts: Tensor, expected: Tensor) -> bool:
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    return abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("span", [2, 7, 10, 1000])
def test_randint_is_uniform(span: int) -> None:
    x = random.randint(random.key(span), (N,), -3, span - 3)
    assert x.min() >= -3
    assert x.max() < span - 3
    counts = torch.bincount(x + 3, minlength=span).double()
    assert chi_square_in_bounds(counts, torch.full((span,), N / span).double())


def test_every_bit_is_fair() -> None:
    words = random.bits(random.key(9), (N,))
    ones = torch.stack([(words >> i & 1).double().mean() for i in range(32)])
    assert (ones - 0.5).abs().max() < 5 * math.sqrt(0.25 / N)


def test_siblings_are_independent() -> None:
    parent = random.key(5)
    u = torch.stack([random.uniform(k, (N,)).double() for k in (parent, *random.split(parent, 4))])
    correlation = torch.corrcoef(u) - torch.eye(5, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(N)
    # Pairs of neighbours in the plane: a lattice would show as empty or crowded cells.
    cells = (u[1] * 20).long() * 20 + (u[2] * 20).long()
    counts = torch.bincount(cells, minlength=400).double()
    assert chi_square_in_bounds(counts, torch.full((400,), N / 400).double())


def test_permutation_is_a_permutation_and_uniform() -> None:
    assert torch.equal(random.permutation(random.key(0), 1000).sort().values, torch.arange(1000))
    keys = random.split(random.key(2), 6000)
    orders = torch.vmap(lambda key: random.permutation(key, 3))(keys)
    code = orders @ torch.tensor([9, 3, 1])
    counts = torch.unique(code, return_counts=True)[1].double()
    assert len(counts) == 6
    assert chi_square_in_bounds(counts, torch.full((6,), 1000.0).double())


def test_categorical_follows_its_logits() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    x = random.categorical(random.key(4), logits, shape=(N,))
    expected = torch.softmax(logits.double(), 0) * N
    assert chi_square_in_bounds(torch.bincount(x, minlength=4).double(), expected)


def test_truncated_normal_stays_inside_and_has_its_variance() -> None:
    z = random.truncated_normal(random.key(6), -1.0, 1.0, (N,)).double()
    assert -1 < z.min() < z.max() < 1
    variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2))
    assert abs(z.mean()) < 5 * math.sqrt(variance / N)
    assert abs(z.var() - variance) < 0.005


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random.key(2**32), "seed 4294967296 is outside"),
        (lambda: random.uniform(random.key(0), (), 1.0, 1.0), "minval < maxval"),
        (lambda: random.randint(random.key(0), (), 3, 3), "minval < maxval"),
        (lambda: random.randint(random.key(0), (), 0, 2**33), "bounds in"),
        (lambda: random.bits(random.split(random.key(0)), ()), "use torch.vmap"),
        (lambda: random.bits(torch.zeros(2), ()), "int64"),
        (lambda: random.bits(random.key(0), (2**31,)), "split the key"),
        (lambda: random.truncated_normal(random.key(0), 1.0, 0.0), "lower < upper"),
        (lambda: random.categorical(random.key(0), torch.zeros(2, 3), shape=(5,)), "ends in"),
    ],
)
def test_misuse_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_on_the_meta_device_draws_have_shape_and_type_alone() -> None:
    there, here = (draws(random.key(0, device=device)) for device in ("meta", None))
    for name, x in here.items():
        assert there[name].is_meta, name
        assert (there[name].shape, there[name].dtype) == (x.shape, x.dtype), name
