"""Keys and draws against golden values of jax.random, and against what statistics expects.

The golden files hold what jax 0.10.2 returned; ``source`` in each says how. With ``--long`` an
installed JAX (the extra ``jax``) makes many more calls beside them.
"""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcifar import random
from tests.golden.make_jax_random import ARRAYS, NAMES, Case, by_jax, cases

CALLS = json.loads((Path(__file__).parents[1] / "golden/jax_random_calls.json").read_text())[
    "cases"
]
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/jax_random_golden.json").read_text())
MORE = json.loads((Path(__file__).parents[1] / "golden/jax_random_more.json").read_text())
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
        # Beyond 2 JAX's draws are those that float32 resolves: relative, not ulp.
        torch.testing.assert_close(
            random.truncated_normal(key, low, high, (200,)), jax, rtol=2e-6, atol=1e-6
        )
        assert (high > 2) or ulps(random.truncated_normal(key, low, high, (200,)), jax) <= 4
    jax = floats(golden["gumbel_200_f32bits"])
    torch.testing.assert_close(random.gumbel(key, (200,)), jax, rtol=2e-6, atol=1e-6)


# Any seed, shape and bounds -----------------------------------------------------------------------


def called(case: Case) -> Tensor:
    """A call of a golden file, made of fcifar."""
    options = {
        k: torch.tensor(v, dtype=torch.float32 if k in ("p", "logits") else None)
        if k in ARRAYS and isinstance(v, list)
        else v
        for k, v in case["options"].items()
    }
    key = random.key(case["seed"])
    return key if case["call"] == "key" else getattr(random, case["call"])(key, **options)


def check_call(case: Case, golden: dict[str, Any]) -> None:
    name, found = case["call"], called(case)
    assert list(found.shape) == golden["shape"], case
    values = torch.tensor(golden["values"]).reshape(golden["shape"])
    if not found.is_floating_point():
        if name == "categorical":  # by a logarithm, whose last bit may be another
            differing = float((found != values).double().mean()) if found.numel() else 0.0
            assert differing <= 1e-3, case
        else:
            assert torch.equal(found.long(), values.long()), case
    elif name == "uniform":
        assert torch.equal(found.contiguous().view(torch.int32), values.to(torch.int32)), case
    elif name == "gumbel":
        jax = values.to(torch.int32).view(torch.float32)
        torch.testing.assert_close(found, jax, rtol=2e-6, atol=1e-6)
    elif found.numel():
        assert ulps(found, values.to(torch.int32).view(torch.float32)) <= 4, case


@pytest.mark.parametrize("name", NAMES)
def test_every_function_equals_jax(name: str) -> None:
    golden = [case for case in CALLS if case["call"] == name]
    assert [{k: c[k] for k in ("call", "seed", "options")} for c in golden] == cases(name, 20)
    for case in golden:
        check_call(case, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_function_equals_an_installed_jax(name: str) -> None:
    pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    with warnings.catch_warnings():  # of JAX's, about integers of 64 bits
        warnings.simplefilter("ignore")
        for case in cases(name, 200, seed=1):
            check_call(case, by_jax(case))


@pytest.mark.slow
def test_uniform_equals_an_installed_jax_on_a_million_draws() -> None:
    jax = pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    for i, case in enumerate(cases("uniform", 200, seed=2)):
        low, high = (case["options"][name] for name in ("minval", "maxval"))
        if isinstance(low, float):
            theirs = jax.random.uniform(jax.random.key(i), (20_000,), minval=low, maxval=high)
            ours = random.uniform(random.key(i), (20_000,), low, high)
            tensors = (torch.tensor(x, dtype=torch.float64) for x in (low, high))
            assert np.array_equal(np.asarray(theirs).view(np.int32), ours.numpy().view(np.int32))
            assert torch.equal(random.uniform(random.key(i), (20_000,), *tensors), ours)


def test_uniform_rounds_once() -> None:
    """Against integers: to the nearest float32, and half-way to the even one."""
    from fractions import Fraction

    key = random.key(4)
    unit = random.uniform(key, (2000,))
    for low, high in ((-math.pi, math.pi), (1e-20, 3.0), (-1e-20, 3.0), (0.1, 0.3), (-7.0, 1e-12)):
        a, b = (torch.tensor(v, dtype=torch.float32) for v in (low, high))
        span = Fraction(float(b - a))
        drawn = random.uniform(key, (2000,), low, high)
        below, above = (torch.nextafter(drawn, torch.full((), v)) for v in (-math.inf, math.inf))
        for u, *near in zip(unit, drawn, below, above, strict=True):
            exact = Fraction(float(u)) * span + Fraction(float(a))
            x, *others = (abs(Fraction(float(v)) - exact) for v in near)
            assert x <= min(others)
            assert x < min(others) or int(near[0].view(torch.int32)) % 2 == 0


def test_uniform_may_return_its_upper_bound() -> None:
    """By rounding, as in JAX: the docstring says so."""
    below = 1.0 - 2.0**-24
    drawn = random.uniform(random.key(0), (100,), below, 1.0)
    assert set(drawn.tolist()) == {below, 1.0}


def every_bound(key: Tensor) -> tuple[Tensor, ...]:
    tiny = torch.tensor([[1e-20], [-2.0]])
    return (
        random.uniform(key, (513,), -math.pi, math.pi),
        random.uniform(key, (513,), 1e-20, 3.0),
        random.uniform(key, (2, 257), tiny, torch.tensor(3.0)),
        random.randint(key, (2, 257), torch.tensor([[0], [-7]]), 1000),
        random.truncated_normal(key, -math.inf, 5.0, (513,)),
    )


def test_bounds_under_vmap_and_on_the_meta_device() -> None:
    keys = random.split(random.key(1), 3)
    for together, *alone in zip(
        torch.vmap(every_bound)(keys), *(every_bound(key) for key in keys), strict=True
    ):
        assert torch.equal(together, torch.stack(alone))
    there = every_bound(random.key(0, device="meta"))
    for meta, real in zip(there, every_bound(random.key(0)), strict=True):
        assert (meta.device.type, meta.shape, meta.dtype) == ("meta", real.shape, real.dtype)
    low, high = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 9.0])
    mapped = torch.vmap(random.uniform, in_dims=(None, None, 0, 0))(keys[0], (4,), low, high)
    assert torch.equal(mapped[1], random.uniform(keys[0], (4,), 2.0, 9.0))


@pytest.mark.slow
def test_compiled_bounds_have_the_same_bits() -> None:
    compiled = torch.compile(every_bound, fullgraph=True)
    for seed in range(3):
        found = compiled(random.key(seed))
        for a, b in zip(found, every_bound(random.key(seed)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.cuda
def test_the_same_bounds_on_cuda() -> None:
    *exact, tails = every_bound(random.key(42, device="cuda"))
    *here, tails_here = every_bound(random.key(42))
    for a, b in zip(exact, here, strict=True):
        assert torch.equal(a.cpu(), b)
    assert ulps(tails.cpu(), tails_here) <= 4


def test_negative_seed_equals_jax() -> None:
    assert random.key(-5).tolist() == MORE["negative_seed_key"]


def test_compiled_draws_have_the_same_bits() -> None:
    key = random.key(3)
    compiled = torch.compile(random.uniform, fullgraph=True)
    assert torch.equal(random.uniform(key, (1023,)), compiled(key, (1023,)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 15, 16, 1023, 100_003])
def test_every_compiled_draw_has_the_same_bits(size: int) -> None:
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


INTERVALS = (
    *((-1.0, 1.0), (-2.0, 2.0), (0.0, math.inf), (-math.inf, math.inf), (-math.inf, 0.5), (-3, 5)),
    *((2, math.inf), (4, 5), (6, 7), (-40, -30), (-math.inf, -3), (8, math.inf), (30, 30.5)),
    *((-1e3, -1e2), (100, math.inf), (-0.5, 30), (1.9, 2.1), (37, 39), (-2.5, -1.5)),
)


@pytest.mark.parametrize(("lower", "upper"), INTERVALS)
def test_truncated_normal_is_the_inverse_of_its_distribution(lower: float, upper: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    key = random.key(1)
    unit = random.uniform(key, (20_000,)).double().numpy()
    found = random.truncated_normal(key, lower, upper, (20_000,)).double()
    expected = torch.from_numpy(stats.truncnorm.ppf(unit, lower, upper))
    torch.testing.assert_close(found, expected, rtol=4e-7, atol=1e-6 if lower < 2 else 0.0)
    assert lower < found.min()
    assert found.max() < upper


def test_truncated_normal_of_a_draw_of_nothing_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest draw is 0, one in eight million; beside an infinite bound it stands for more."""
    monkeypatch.setattr(random, "_unit", lambda key, shape: torch.zeros(shape))
    for lower, upper, least in ((-math.inf, 0.0, -5.6), (-math.inf, -8.0, -9.9), (2.0, 3.0, 2.0)):
        found = float(random.truncated_normal(random.key(0), lower, upper, ()))
        assert least <= found < least + 0.4
        assert found < upper


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (lambda: random.key(np.int32(-5)), lambda: random.key(-5)),
        (lambda: random.key(np.uint32(2**32 - 1)), lambda: random.key(2**32 - 1)),
        (lambda: random.key(np.array(7)), lambda: random.key(7)),
        (lambda: random.split(K, np.int64(3)), lambda: random.split(K, 3)),
        (lambda: random.split(K, (np.int32(3), 2)), lambda: random.split(K, (3, 2))),
        (lambda: random.fold_in(K, np.uint8(7)), lambda: random.fold_in(K, 7)),
        (lambda: random.fold_in(K, np.int64(-1)), lambda: random.fold_in(K, 2**32 - 1)),
        (lambda: random.fold_in(K, -1), lambda: random.fold_in(K, 2**32 - 1)),
        (lambda: random.fold_in(K, 2**40 + 3), lambda: random.fold_in(K, 3)),
        (lambda: random.bits(K, 3), lambda: random.bits(K, (3,))),
        (lambda: random.normal(K, (np.int64(3),)), lambda: random.normal(K, (3,))),
        (
            lambda: random.uniform(K, 3, np.float32(-1), np.float64(2)),
            lambda: random.uniform(K, (3,), -1.0, 2.0),
        ),
        (
            lambda: random.uniform(K, (2, 2), np.zeros(2), np.array([[1.0], [1.0]])),
            lambda: random.uniform(K, (2, 2)),
        ),
        (
            lambda: random.randint(K, 3, np.int8(-4), np.uint8(7)),
            lambda: random.randint(K, (3,), -4, 7),
        ),
        (lambda: random.randint(K, 3, -1.7, 2.2), lambda: random.randint(K, (3,), -1, 2)),
        (lambda: random.permutation(K, np.int64(5)), lambda: random.permutation(K, 5)),
        (lambda: random.permutation(K, torch.tensor(5)), lambda: random.permutation(K, 5)),
        (lambda: random.permutation(K, -3), lambda: random.permutation(K, 0)),
        (
            lambda: random.bernoulli(K, np.float32(0.25), 4),
            lambda: random.bernoulli(K, 0.25, (4,)),
        ),
        (
            lambda: random.truncated_normal(K, np.float32(-1), np.int64(1), 4),
            lambda: random.truncated_normal(K, -1.0, 1.0, (4,)),
        ),
        (
            lambda: random.categorical(K, np.array([1.0, 2.0], np.float32), shape=4),
            lambda: random.categorical(K, torch.tensor([1.0, 2.0]), shape=(4,)),
        ),
        # Arrays of bounds are not looked at; out of order they give the lower one, as in JAX.
        (lambda: random.uniform(K, 2, torch.ones(2), 0.0), lambda: torch.ones(2)),
        (lambda: random.randint(K, 2, torch.tensor(3), 3), lambda: torch.tensor([3, 3])),
    ],
)
def test_numbers_of_other_kinds(given: Callable[[], Tensor], plain: Callable[[], Tensor]) -> None:
    assert torch.equal(given(), plain())


K = random.key(0)
WRONG_KEYS = (
    *(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), torch.zeros(2)),
    *(torch.tensor(0), torch.zeros(2, dtype=torch.int32), None, 0, [0, 0], np.zeros(2, np.int64)),
)


@pytest.mark.parametrize("key", WRONG_KEYS, ids=str)
def test_a_key_of_another_kind_is_named(key: Any) -> None:
    """By each function, in the same words."""
    for call in (
        lambda: random.split(key),
        lambda: random.fold_in(key, 1),
        lambda: random.from_row(key, 1),
        lambda: random.row_keys(key, 2),
        lambda: random.bits(key, (2,)),
        lambda: random.uniform(key, (2,), -1.0, 2.0),
        lambda: random.bernoulli(key, 0.5, (2,)),
        lambda: random.randint(key, (2,), 0, 5),
        lambda: random.permutation(key, 3),
        lambda: random.normal(key),
        lambda: random.truncated_normal(key, 0.0, 1.0),
        lambda: random.gumbel(key),
        lambda: random.categorical(key, torch.zeros(3)),
    ):
        with pytest.raises((TypeError, ValueError), match=r"a key is an int64 tensor of shape"):
            call()


@pytest.mark.parametrize("shape", [(2.0,), 2.5, "ab", (-1,), (2, -3), -1, ("a",), ((2,),)])
def test_a_shape_of_another_kind_is_named(shape: Any) -> None:
    for call in (
        lambda: random.split(K, shape),
        lambda: random.bits(K, shape),
        lambda: random.uniform(K, shape),
        lambda: random.uniform(K, shape, 2.0, 3.0),
        lambda: random.bernoulli(K, 0.5, shape),
        lambda: random.randint(K, shape, 0, 5),
        lambda: random.normal(K, shape),
        lambda: random.truncated_normal(K, 0.0, 1.0, shape),
        lambda: random.gumbel(K, shape),
        lambda: random.categorical(K, torch.zeros(3), shape=shape),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^(a shape is|the sizes of a shape)"):
            call()


REFUSED: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "bernoulli, 3 of 2": (lambda r, k, x: r.bernoulli(k, x([0.1, 0.9]), (3,)), "broadcast"),
    "bernoulli, () of 2": (lambda r, k, x: r.bernoulli(k, x([0.1, 0.9]), ()), "broadcast"),
    "bernoulli, 1 of 2": (lambda r, k, x: r.bernoulli(k, x([0.1, 0.9]), (1,)), "broadcast"),
    "randint, 3 of 2": (lambda r, k, x: r.randint(k, (3,), 0, x([5, 10])), "broadcast"),
    "randint, () of 1": (lambda r, k, x: r.randint(k, (), x([0]), x([5])), "broadcast"),
    "uniform, 3 of 2": (lambda r, k, x: r.uniform(k, (3,), maxval=x([5.0, 1.0])), "broadcast"),
    "categorical, 3 of 2": (
        lambda r, k, x: r.categorical(k, x([[0.0, 1.0, 2.0]] * 2), shape=(3,)),
        "broadcast",
    ),
    "categorical, axis 1": (lambda r, k, x: r.categorical(k, x([0.0, 1.0]), 1), "no axis 1"),
    "categorical, axis -2": (lambda r, k, x: r.categorical(k, x([0.0, 1.0]), -2), "no axis -2"),
    "categorical, 0-d": (lambda r, k, x: r.categorical(k, x(0.0)), "no axis -1"),
    "categorical, empty": (lambda r, k, x: r.categorical(k, x([[], []])), "no category"),
    "categorical, a list": (
        lambda r, k, x: r.categorical(k, [0.0, 1.0]),
        "logits is a number or a tensor, not",
    ),
    "permutation, axis 2": (lambda r, k, x: r.permutation(k, x([[1], [2]]), 2), "no axis 2"),
    "permutation, axis -3": (lambda r, k, x: r.permutation(k, x([[1], [2]]), -3), "no axis -3"),
    "permutation, axis 1": (lambda r, k, x: r.permutation(k, 5, 1), "no axis 1"),
    "permutation, a float": (lambda r, k, x: r.permutation(k, 5.0), "is an integer, not 5.0"),
    "permutation, a list": (lambda r, k, x: r.permutation(k, [1, 2]), "a number or a tensor, not"),
    "permutation, 0-d": (lambda r, k, x: r.permutation(k, x(5.0)), "is an integer, not"),
    "fold_in, a text": (lambda r, k, x: r.fold_in(k, "a"), "a number or a tensor, not 'a'"),
    "uniform, a text": (lambda r, k, x: r.uniform(k, (), maxval="a"), "a number or a tensor"),
    "bernoulli, a text": (lambda r, k, x: r.bernoulli(k, "a"), "a number or a tensor, not 'a'"),
    "bernoulli, a list": (lambda r, k, x: r.bernoulli(k, [0.1]), "a number or a tensor, not"),
    "truncated_normal, None": (
        lambda r, k, x: r.truncated_normal(k, None, 1.0),
        "a bound of truncated_normal is a number or a tensor, not None",
    ),
    "fold_in, an array": (lambda r, k, x: r.fold_in(k, x([1, 2])), r"one number, not \[2\]"),
    "key, a float": (lambda r, k, x: r.key(5.0), "a seed is an integer, not 5.0"),
    "key, a text": (lambda r, k, x: r.key("a"), "a seed is an integer, not 'a'"),
    "key, an array": (lambda r, k, x: r.key(np.array([7])), "a seed is an integer, not"),
    "split, a float": (lambda r, k, x: r.split(k, 3.0), "a shape is an integer or a sequence"),
    "randint, a text": (lambda r, k, x: r.randint(k, (), 0, "a"), "a number or a tensor, not 'a'"),
}
"""What JAX refuses; and our words for it."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_refuses_is_named(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call(random, K, torch.tensor)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_an_installed_jax_refuses_it(name: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    with pytest.raises(Exception):  # noqa: B017, PT011 (of kinds of its own)
        REFUSED[name][0](jax.random, jax.random.key(0), jax.numpy.asarray)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random.key(2**32), "seed 4294967296 is outside"),
        (lambda: random.uniform(random.key(0), (), -3e38, 3e38), "bounds that float32 holds"),
        (lambda: random.uniform(random.key(0), (), 0.0, math.inf), "bounds that float32 holds"),
        (lambda: random.uniform(random.key(0), (), math.nan, 1.0), "minval < maxval"),
        (lambda: random.truncated_normal(random.key(0), math.nan, 1.0), "lower < upper"),
        (lambda: random.permutation(random.from_row(random.key(0), 1), 3), "random.common"),
        (lambda: random.uniform(random.key(0), (), 1.0, 1.0), "minval < maxval"),
        (lambda: random.randint(random.key(0), (), 3, 3), "minval < maxval"),
        (lambda: random.randint(random.key(0), (), 0, 2**33), "bounds in"),
        (lambda: random.bits(random.split(random.key(0)), ()), "use torch.vmap"),
        (lambda: random.bits(torch.zeros(2), ()), "int64"),
        (lambda: random.bits(random.key(0), (2**31,)), "split the key"),
        (lambda: random.truncated_normal(random.key(0), 1.0, 0.0), "lower < upper"),
        (lambda: random.categorical(random.key(0), torch.zeros(2, 3), shape=(5,)), "broadcast"),
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
