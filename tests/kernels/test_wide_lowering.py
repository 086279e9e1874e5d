"""Where the kernels for wide convolutions go into a graph, and where not."""

import functools
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._inductor import config
from torch.func import grad, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fcifar import models, optim, random, tree
from fcifar.kernels import backends, build, lowering, winograd
from fcifar.kernels.wide_conv import wide_conv_backward
from fcifar.precision import BF16
from fcifar.step import Batch, init_train_state, make_train_step

pytestmark = pytest.mark.skipif(
    winograd.why_not() is not None, reason=f"no such kernel here: {winograd.why_not()}"
)
aten = torch.ops.aten
FORWARD = winograd.conv_pool
BACKWARD = wide_conv_backward
OTHERS_OF_WINOGRAD = (winograd.conv, winograd.conv_backward, winograd.conv_pool_backward)
POOLS = (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default)

CONVERT = torch.ops.prims.convert_element_type.default

# Whole numbers, whose sums are exact: else which of two near sums is greater depends on rounding.
X = random.randint(random.key(1), (3, 16, 9, 8), -1, 2).bfloat16()
W = random.randint(random.key(2), (32, 16, 3, 3), -1, 2).float()


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 4x4 are not exact for whole numbers."""
    monkeypatch.setattr(winograd, "kind", lambda _: winograd.Kind(build.has_float16(), 2))
    winograd.library.cache_clear()
    yield
    winograd.library.cache_clear()


def pooled(x: Tensor, w: Tensor) -> Tensor:
    return F.max_pool2d(F.conv2d(x, w.bfloat16(), padding=1), 2)


def loss(x: Tensor, w: Tensor) -> Tensor:
    return pooled(x, w).float().square().sum()


def traced(f: Callable[..., object], *inputs: object) -> fx.GraphModule:
    """The graph of ``f`` as the compiler hands it over, and after our pass."""
    table = {op: rule for op, rule in backends.Decompositions().items() if op in POOLS}
    module = make_fx(f, decomposition_table=table, tracing_mode="fake")(*inputs)
    lowering.fuse(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def calls(module: fx.GraphModule) -> list[object]:
    ours = (FORWARD, BACKWARD, *OTHERS_OF_WINOGRAD, *POOLS)
    return [node.target for node in module.graph.nodes if node.target in ours]


def assert_close(ours: object, theirs: object) -> None:
    for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("wanted", [(0, 1), 0, 1])
def test_the_gradients_of_the_pair_are_found(wanted: int | tuple[int, int]) -> None:
    slopes = grad(loss, argnums=wanted)
    module = traced(slopes, X, W)
    assert calls(module) == [FORWARD, BACKWARD]
    assert_close(module(X, W), slopes(X, W))


def test_two_pairs_in_a_row() -> None:
    def both(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return pooled(pooled(x, w), v).float().square().sum()

    slopes = grad(both, argnums=(0, 1, 2))
    v = random.bernoulli(random.key(4), 0.02, (64, 32, 3, 3)).float()
    module = traced(slopes, X, W, v)
    assert calls(module) == [FORWARD] * 2 + [BACKWARD] * 2
    for ours, theirs in zip(module(X, W, v), slopes(X, W, v), strict=True):
        assert (ours.double() - theirs.double()).norm() <= 0.01 * theirs.double().norm()


def test_behind_a_pool_the_faster_gradient_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 4x4 have few enough products, where there are enough channels and pixels."""
    monkeypatch.setattr(winograd, "kind", lambda _: winograd.Kind(False, 4))
    x, w = torch.zeros(1, 64, 15, 15).bfloat16(), torch.zeros(256, 64, 3, 3)
    for size, expected in ((15, winograd.conv_pool_backward), (7, BACKWARD)):
        module = traced(grad(loss, argnums=1), x[..., :size, :size], w)
        assert calls(module) == [FORWARD, expected]
    module = traced(grad(loss, argnums=1), x[:, :32], w[:, :32])
    assert calls(module) == [FORWARD, BACKWARD]


def test_every_such_convolution_of_a_training_step_is_found() -> None:
    model, optimizer = models.speednet(widths=(32, 32, 64)), optim.sgd(0.1)
    step = make_train_step(model, optimizer, policy=BF16)
    state = init_train_state(model, optimizer, key=random.key(0))
    module = traced(step, state, Batch(torch.zeros(2, 3, 32, 32), torch.tensor([3, 8])))
    group = [BACKWARD, winograd.conv_backward]  # backward, the last first
    assert calls(module) == [FORWARD, winograd.conv] * 3 + group[::-1] * 3


def test_under_vmap_it_is_left_alone_or_right() -> None:
    slopes = vmap(grad(loss, argnums=1))
    module = traced(slopes, X[None], W[None])
    assert_close(module(X[None], W[None]), slopes(X[None], W[None]))


OTHERS = {
    "a bias": grad(
        lambda x, w: (
            F.max_pool2d(F.conv2d(x, (v := w.bfloat16()), v[:, 0, 0, 0], padding=1), 2)
            .float()
            .sum()
        )
    ),
    "no padding": grad(lambda x, w: F.max_pool2d(F.conv2d(x, w.bfloat16()), 2).float().sum()),
    "stride": grad(
        lambda x, w: F.max_pool2d(F.conv2d(x, w.bfloat16(), padding=1, stride=2), 2).float().sum()
    ),
    "pool of 3": grad(
        lambda x, w: F.max_pool2d(F.conv2d(x, w.bfloat16(), padding=1), 3).float().sum()
    ),
    "used twice": grad(
        lambda x, w: (
            (y := F.conv2d(x, w.bfloat16(), padding=1)).sum().float()
            + F.max_pool2d(y, 2).float().square().sum()
        )
    ),
    "a pool alone": grad(lambda x, w: F.max_pool2d(torch.cat([x, x], 1), 2).float().sum()),
    "few channels": grad(
        lambda x, w: F.max_pool2d(F.conv2d(x[:, :8], w[:, :8].bfloat16(), padding=1), 2).sum()
    ),
    "float32": grad(lambda x, w: F.max_pool2d(F.conv2d(x.float(), w, padding=1), 2).sum()),
}


ALONE = [winograd.conv, winograd.conv_backward]
CONVOLUTIONS = {"pool of 3": ALONE, "used twice": ALONE, "a bias": ALONE[1:]}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_exactly_the_pair_is_left_to_the_compiler(name: str) -> None:
    """And as the compiler would have it: its own form of the pool. The convolution may be ours."""
    module = traced(OTHERS[name], X, W)
    assert calls(module) == (list(POOLS) if name == "float32" else CONVOLUTIONS.get(name, []))
    if name != "float32":
        assert_close(module(X, W), OTHERS[name](X, W))


def test_forward_alone() -> None:
    module = traced(pooled, X, W)
    assert calls(module) == [FORWARD]
    assert_close(module(X, W), pooled(X, W))


def test_images_of_few_channels_are_written_before_they_are_permuted() -> None:
    def last(x: Tensor) -> Tensor:
        return (x * 2 + 1).permute(0, 2, 3, 1).contiguous()

    for channels, expected in ((3, 1), (32, 0)):
        x = random.normal(random.key(0), (2, channels, 4, 5))
        module = traced(last, x)
        forced = [n for n in module.graph.nodes if "force_stride_order" in str(n.target)]
        assert len(forced) == expected
        assert torch.equal(module(x), last(x))
    # Those that are given are not computed.
    module = traced(lambda x: x.permute(0, 2, 3, 1).contiguous(), torch.ones(2, 3, 4, 5))
    assert not [n for n in module.graph.nodes if "force_stride_order" in str(n.target)]


def test_matrices_are_multiplied_in_float32_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b)

    a, b = (random.normal(random.key(i), (2, 16, 16)).bfloat16() for i in (1, 2))
    for has_float16 in (True, False):
        monkeypatch.setattr(build, "has_float16", lambda has=has_float16: has)
        module = traced(product, a, b)
        (node,) = module.graph.find_nodes(op="call_function", target=aten.bmm.default)
        wide = torch.float32 if has_float16 else torch.bfloat16
        assert node.meta["val"].dtype == wide
        result = module(a, b)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.double(), a.double() @ b.double(), rtol=2**-7, atol=0.05)


def test_other_convolutions_are_computed_in_float32_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of few channels, or with a stride; forward, and each gradient alone or both."""
    x = random.normal(random.key(1), (2, 3, 9, 9)).bfloat16()
    weight = (random.normal(random.key(2), (32, 3, 3, 3)) / 4).bfloat16()
    dy = random.normal(random.key(3), (2, 32, 5, 5)).bfloat16()
    settings = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)

    def forward(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return aten.convolution(x, weight, None, *settings)

    def backward(mask: list[bool], dy: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
        parts = aten.convolution_backward(dy, x, weight, None, *settings, mask)
        return [part for part in parts if part is not None]

    masks = ([True, True, False], [True, False, False], [False, True, False])
    cases = [forward, *(functools.partial(backward, mask) for mask in masks)]
    arguments = (dy, x, weight)
    for has_float16, function in itertools.product((True, False), cases):
        monkeypatch.setattr(build, "has_float16", lambda has=has_float16: has)
        module = traced(function, *arguments)
        converted = [n for n in module.graph.nodes if n.target is CONVERT]
        assert bool(converted) == has_float16
        ours = tree.leaves(module(*arguments))
        assert all(part.dtype == torch.bfloat16 for part in ours)
        assert_close(ours, tree.leaves(function(*(a.double() for a in arguments))))


def test_a_compiled_step_is_as_exact_as_the_step() -> None:
    """Which of two near values is greatest depends on rounding, so that the two are not close."""

    def step(params: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        def cost(p: dict[str, Tensor]) -> Tensor:
            a, b = (weight.bfloat16().to(x.dtype) for weight in p.values())
            y = F.gelu(F.conv2d(x, a, padding=1))
            y = F.gelu(F.max_pool2d(F.conv2d(y, b, padding=1), 2))
            return y.to(torch.promote_types(y.dtype, torch.float32)).square().mean()

        gradients, value = grad_and_value(cost)(params)
        return gradients, value

    params = {"a": random.normal(random.key(5), (24, 3, 3, 3)) / 3}
    params["b"] = random.normal(random.key(6), (32, 24, 3, 3)) / 8
    x = random.normal(random.key(7), (4, 3, 11, 10)).bfloat16()
    torch._dynamo.reset()
    seen: list[fx.Graph] = []
    original = lowering.fuse
    with pytest.MonkeyPatch.context() as patch, config.patch(fx_graph_cache=False):
        patch.setattr(lowering, "fuse", lambda g, prepare: seen.append(g) or original(g, prepare))
        compiled = torch.compile(step, backend=backends.step_backend)(params, x)
    found = [n.target for graph in seen for n in graph.nodes]
    assert {FORWARD, BACKWARD} <= set(found)
    truth = tree.leaves(step(params, x.double()))
    for ours, plain, exact in zip(
        *map(tree.leaves, (compiled, step(params, x))), truth, strict=True
    ):
        error = (ours.double() - exact.double()).norm() / exact.double().norm()
        assert (
            error <= 1.2 * (plain.double() - exact.double()).norm() / exact.double().norm() + 1e-3
        )
    torch._dynamo.reset()
