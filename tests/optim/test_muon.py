"""Muon: its iteration against the singular value decomposition, its steps against plain loops."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import models, optim, random, schedules, tree
from fcifar.optim import Optimizer
from fcifar.precision import FP64
from fcifar.step import init_train_state, make_train_step

OPTAX = json.loads((Path(__file__).parents[1] / "golden/optax_muon.json").read_text())
QUINTIC = (3.4445, -4.7750, 2.0315)
CUBIC = (1.5, -0.5, 0.0)
SHAPES = [(5, 5), (4, 9), (9, 4), (1, 7), (7, 1), (16, 27)]


def some(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return random.normal(random.key(seed), shape).to(dtype)


def by_svd(x: Tensor, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """What the iteration comes to: the same singular vectors, the polynomial of the values."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm()
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize("coefficients", [QUINTIC, CUBIC, (3.4576, -4.7391, 2.0843)])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_values_follow_the_polynomial(shape, steps, coefficients) -> None:
    x = some(*shape)
    found = optim.orthogonalize(x, steps, coefficients, torch.float64)
    torch.testing.assert_close(found, by_svd(x, steps, coefficients), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cubic_converges_to_the_nearest_orthogonal_matrix(shape) -> None:
    x = some(*shape)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    found = optim.orthogonalize(x, 40, CUBIC, torch.float64)
    torch.testing.assert_close(found, u @ vh, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_size_of_a_gradient_does_not_matter(scale: float) -> None:
    x = some(6, 10, dtype=torch.float32)
    a, b = optim.orthogonalize(x), optim.orthogonalize(x * scale)
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_equals_its_matrices_one_by_one(dtype: torch.dtype) -> None:
    x = some(2, 3, 8, 5, dtype=torch.float32)
    together = optim.orthogonalize(x, dtype=dtype)
    assert together.shape == x.shape
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    for i in range(2):
        for j in range(3):
            alone = optim.orthogonalize(x[i, j], dtype=dtype)
            torch.testing.assert_close(together[i, j], alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(8, 8), (64, 216), (216, 64), (128, 576)])
def test_bfloat16_is_within_three_percent(shape) -> None:
    """Eight bits of each product, and three steps that enlarge small values forty times."""
    x = some(*shape, dtype=torch.float32)
    exact = optim.orthogonalize(x, dtype=torch.float64)
    rough = optim.orthogonalize(x)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()
    single = optim.orthogonalize(x, dtype=torch.float32)
    torch.testing.assert_close(single, exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_comes_back(given: torch.dtype, computed: torch.dtype) -> None:
    assert optim.orthogonalize(some(3, 4).to(given), dtype=computed).dtype == given


def test_zero_stays_zero_among_others() -> None:
    x = torch.stack([torch.zeros(3, 5), torch.ones(3, 5)])
    found = optim.orthogonalize(x)
    assert torch.equal(found[0], x[0])
    assert found[1].isfinite().all()
    grad = torch.func.grad(lambda y: optim.orthogonalize(y, dtype=torch.float32).sum())(x)
    assert grad.isfinite().all()


# Steps ------------------------------------------------------------------------------------------


def some_params() -> dict[str, Tensor]:
    """Two kernels of one shape, one whose matrix is that shape too, and others."""
    shapes = {
        "a.weight": (4, 3, 2, 2),
        "b.weight": (4, 3, 2, 2),
        "c.weight": (4, 12),
        "tall.weight": (12, 5),
    }
    return {name: some(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def some_grads(step: int) -> dict[str, Tensor]:
    shapes = {name: p.shape for name, p in some_params().items()}
    return {n: some(*s, seed=100 * step + i) for i, (n, s) in enumerate(shapes.items())}


def run(optimizer: Optimizer, params: Any, grads: list[Any]) -> Any:
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        params = optim.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_a_plain_loop(nesterov: bool, renormalize: bool) -> None:
    rates = schedules.linear_schedule(0.24, 0.0, 8)
    optimizer = optim.muon(rates, nesterov=nesterov, dtype=torch.float64, renormalize=renormalize)
    grads = [some_grads(i) for i in range(6)]
    found = run(optimizer, some_params(), grads)
    for name, start in some_params().items():
        p, trace = start.clone(), torch.zeros_like(start)
        for i in range(6):
            g = grads[i][name]
            trace = 0.6 * trace + g
            direction = g + 0.6 * trace if nesterov else trace
            if renormalize:
                p = p * math.sqrt(len(p)) / p.norm()
            update = by_svd(direction.reshape(len(p), -1), 3, QUINTIC).reshape(p.shape)
            p = p - 0.24 * (1 - i / 8) * update
        torch.testing.assert_close(found[name], p, rtol=0, atol=1e-12)


def test_steps_equal_torchs_muon_where_it_means_the_same() -> None:
    """Matrices that are not tall, no weight decay. Torch computes in bfloat16."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    params = {k: p.float() for k, p in some_params().items() if k == "c.weight"}
    grads = [{"c.weight": some_grads(i)["c.weight"].float()} for i in range(5)]
    found = run(optim.muon(0.1, 0.9, ns_steps=5), params, grads)["c.weight"]
    twin = torch.nn.Parameter(params["c.weight"].clone())
    twin_optimizer = torch.optim.Muon([twin], 0.1, weight_decay=0.0, momentum=0.9)
    for g in grads:
        twin.grad = g["c.weight"]
        twin_optimizer.step()
    moved = (found - params["c.weight"]).norm()
    assert (found - twin).norm() < 0.03 * moved


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_updates_equal_optaxs(shape: tuple[int, int]) -> None:
    """Without Nesterov's acceleration, to which optax gives its own correction of a bias."""
    optimizer = optim.scale_by_muon(nesterov=False, dtype=torch.float64)
    w = torch.zeros(shape, dtype=torch.float64)
    state = optimizer.init(w)
    for step, golden in enumerate(OPTAX[f"{shape[0]}x{shape[1]}"]):
        k = torch.arange(w.numel(), dtype=torch.float64)
        update, state = optimizer.update(torch.cos(k * (step + 1)).reshape(shape), state, w)
        expected = torch.tensor(golden, dtype=torch.float64)
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-13)


def test_layers_of_one_shape_share_their_products() -> None:
    """Three leaves are [4, 12] as matrices, one is [12, 5]: three products each, for one step."""
    sizes = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.bmm.default:
                sizes.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    optimizer = optim.scale_by_muon(ns_steps=1)
    params = some_params()
    state = optimizer.init(params)
    with Counting():
        optimizer.update(some_grads(0), state, params)
    assert sorted(sizes) == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_renormalized_weights_have_the_norm_of_their_rows(dtype: torch.dtype) -> None:
    params = {k: p.to(dtype) for k, p in some_params().items()}
    params |= {"bias": torch.ones(4, dtype=dtype), "zero": torch.zeros(2, 2, dtype=dtype)}
    still = tree.zeros_like(params)
    after = run(optim.renormalize_weights(), params, [still])
    for name, p in params.items():
        if p.ndim >= 2 and name != "zero":
            assert math.isclose(after[name].norm(), math.sqrt(len(p)), rel_tol=1e-6)
            torch.testing.assert_close(after[name] / after[name].norm(), p / p.norm())
        else:
            assert torch.equal(after[name], p)
    slope = torch.func.grad(lambda p: run(optim.renormalize_weights(), p, [still])["zero"].sum())(
        params
    )
    assert all(leaf.isfinite().all() for leaf in tree.leaves(slope))


def test_a_zero_gradient_moves_nothing() -> None:
    params = some_params()
    assert tree.equal(run(optim.muon(0.1), params, [tree.zeros_like(params)] * 2), params)


@pytest.mark.parametrize("params", [{"w": torch.ones(2, 2), "b": torch.ones(2)}, torch.ones(3)])
def test_a_vector_is_refused(params) -> None:
    with pytest.raises(ValueError, match="multi_transform"):
        optim.muon(0.1).init(params)


# Transformed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("renormalize", [False, True])
def test_mapped_over_seeds_and_rates(renormalize: bool, dtype: torch.dtype) -> None:
    starts = [tree.map(lambda p, i=i: p + i, some_params()) for i in range(3)]
    grads = [some_grads(i) for i in range(3)]
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)

    def after(params: Any, rate: Tensor) -> Any:
        optimizer = optim.muon(rate, renormalize=renormalize, dtype=dtype)
        return run(optimizer, params, grads)

    together = torch.vmap(after)(tree.map(lambda *xs: torch.stack(xs), *starts), rates)
    for i, start in enumerate(starts):
        alone = after(start, rates[i])
        for name, p in alone.items():
            torch.testing.assert_close(together[name][i], p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_compiles_to_one_graph_and_never_again(dtype: torch.dtype) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    rate = schedules.linear_schedule(0.2, 0.0, 10)
    optimizer = optim.muon(rate, renormalize=True, dtype=dtype)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    compiled = torch.compile(step, backend=counting, fullgraph=True)
    params = some_params()
    state = optimizer.init(params)
    for i in range(4):
        expected = step(params, state, some_grads(i))
        params, state = compiled(params, state, some_grads(i))
        assert tree.equal((params, state), expected)
    assert len(graphs) == 1
    assert all(isinstance(leaf, Tensor) for leaf in tree.leaves(state))


def test_derivative_through_steps_with_respect_to_the_rate(make_batch) -> None:
    """Backward, forward and by difference, through the second step's loss."""
    model, batch = models.lenet(), make_batch()

    def optimizer(rate: float | Tensor) -> Optimizer:
        return optim.muon_and_sgd(rate, dtype=torch.float64)

    start = init_train_state(model, optimizer(0.0), key=random.key(0), policy=FP64)

    def loss_after(rate: Tensor) -> Tensor:
        step = make_train_step(model, optimizer(rate), policy=FP64)
        state, _ = step(start, batch)
        return step(state, batch)[1].loss

    rate, h = torch.tensor(1e-3, dtype=torch.float64), 1e-6
    backward = torch.func.grad(loss_after)(rate)
    _, forward = torch.func.jvp(loss_after, (rate,), (torch.ones_like(rate),))
    difference = (loss_after(rate + h) - loss_after(rate - h)) / (2 * h)
    torch.testing.assert_close(backward, forward, rtol=1e-9, atol=0)
    torch.testing.assert_close(backward, difference, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_matrices_of_several_shapes_in_one_product(dtype: torch.dtype) -> None:
    matrices = [some(3, 8), some(5, 8), some(8, 3), some(4, 4), torch.zeros(2, 6)]
    padded = optim.orthogonalize_each(matrices, dtype=dtype, pad=True)
    alone = optim.orthogonalize_each(matrices, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 0.03
    for x, a, b in zip(matrices, padded, alone, strict=True):
        torch.testing.assert_close(b, optim.orthogonalize(x, dtype=dtype), rtol=0, atol=tolerance)
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_padding_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[torch.Size] = []

    def noting(x: Tensor, *_: object) -> Tensor:
        sizes.append(x.shape)
        return x

    monkeypatch.setattr(sys.modules[optim.orthogonalize.__module__], "orthogonalize", noting)
    shapes = [(64, 216), (64, 576), (256, 576), (256, 2304), (256, 2304), (256, 2304)]  # speed94
    matrices = [torch.zeros(shape) for shape in shapes]
    optim.orthogonalize_each(matrices, pad=True)
    assert sizes == [(4, 256, 2304), (2, 64, 576)]
    sizes.clear()
    optim.orthogonalize_each(matrices)
    assert sizes == [(1, *shape) for shape in shapes[:3]] + [(3, 256, 2304)]
    assert optim.orthogonalize_each([], pad=True) == []
