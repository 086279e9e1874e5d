"""Where the kernel goes into a graph, and where not."""

import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fcifar import grads, kernels, losses, models, optim, random, tree
from fcifar.kernels import backends, build, lowering
from fcifar.kernels.conv_pool import conv_pool, conv_pool_backward, conv_pool_backward_each
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step
from fcifar.step_transforms import compile_pure, compile_step

pytestmark = pytest.mark.skipif(
    kernels.why_not() is not None, reason=f"no kernels here: {kernels.why_not()}"
)

X = random.normal(random.key(1), (2, 3, 12, 12))
W = random.normal(random.key(2), (6, 3, 3, 3))
B = random.normal(random.key(3), (6,))


def traced(f: Callable[..., object], *inputs: object) -> fx.GraphModule:
    return make_fx(f, tracing_mode="fake")(*inputs)


def calls(graph: fx.Graph) -> list[object]:
    ours = (conv_pool, conv_pool_backward, conv_pool_backward_each)
    return [n.target for n in graph.nodes if n.target in ours]


def fused(f: Callable[..., object], *inputs: Tensor) -> int:
    """How often the kernel was put into the graph of ``f``, which must still be ``f``."""
    module = traced(f, *inputs)
    found = lowering.fuse(module.graph)
    module.graph.lint()
    module.recompile()
    before, after = (tree.leaves(g(*inputs)) for g in (f, module))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return found


@pytest.mark.parametrize(("name", "pairs"), [("lenet", 2), ("conv3", 3)])
def test_every_convolution_of_a_training_step_is_found(name: str, pairs: int) -> None:
    model, optimizer = models.MODELS[name](), optim.sgd(0.1)
    state = init_train_state(model, optimizer, key=random.key(0))
    batch = Batch(random.uniform(random.key(1), (2, 3, 32, 32)), torch.tensor([3, 8]))
    module = traced(make_train_step(model, optimizer), state, batch)
    assert lowering.fuse(module.graph) == pairs
    module.graph.lint()
    assert calls(module.graph) == [conv_pool] * pairs + [conv_pool_backward] * pairs
    assert not [n for n in module.graph.nodes if "convolution" in n.name or "max_pool" in n.name]


@pytest.mark.parametrize(("name", "pairs"), [("lenet", 2), ("conv3", 3)])
def test_every_convolution_of_an_evaluation_is_found(name: str, pairs: int) -> None:
    model = models.MODELS[name]()
    variables = model.init(random.key(0))
    batch = Batch(random.uniform(random.key(1), (4, 3, 32, 32)), torch.tensor([3, 8, 0, 1]))
    module = traced(make_eval_step(model), variables, batch)
    assert lowering.fuse(module.graph) == pairs


def test_forward_alone() -> None:
    assert fused(lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2), X, W, B) == 1


def test_forward_and_gradients() -> None:
    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.max_pool2d(F.conv2d(x, w, b, padding=1), 2).square().sum()

    assert fused(grad(loss, argnums=(0, 1, 2)), X, W, B) == 1
    assert fused(grad(loss, argnums=(1, 2)), X, W, B) == 1


def test_a_gradient_of_a_gradient_is_left_alone_or_right() -> None:
    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.max_pool2d(F.conv2d(x, w, b), 2).square().sum()

    def slope(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return grad(loss, argnums=1)(x, w, b).square().sum()

    fused(grad(slope, argnums=1), X / 9, W / 9, B / 9)


# Gradients of each image --------------------------------------------------------------------------


def example_loss(name: str) -> tuple[grads.Loss, models.Params, Batch]:
    model = models.MODELS[name]()

    def loss(params: models.Params, example: Batch) -> Tensor:
        logits, _ = model.apply(models.Variables(params, {}), example.images[None])
        return losses.cross_entropy(logits[0], example.labels)

    batch = Batch(random.uniform(random.key(1), (4, 3, 32, 32)), torch.tensor([3, 8, 0, 1]))
    return loss, model.init(random.key(0)).params, batch


@pytest.mark.parametrize(("name", "pairs"), [("lenet", 2), ("conv3", 3)])
def test_every_convolution_of_a_gradient_of_each_image_is_found(name: str, pairs: int) -> None:
    loss, params, batch = example_loss(name)
    module = traced(grads.per_example(loss), params, batch)
    assert lowering.fuse(module.graph) == pairs
    module.graph.lint()
    assert calls(module.graph) == [conv_pool] * pairs + [conv_pool_backward_each] * pairs
    assert not [n for n in module.graph.nodes if "convolution" in n.name or "max_pool" in n.name]


def squares(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A loss of one image [C, H, W]."""
    return F.max_pool2d(F.conv2d(x[None], w, b, padding=1), 2).square().sum()


def of_each(loss: Callable[..., Tensor], argnums: tuple[int, ...]) -> Callable[..., object]:
    return vmap(grad(loss, argnums=argnums), in_dims=(0, None, None))


@pytest.mark.parametrize("argnums", [(1, 2), (0, 1, 2), (0, 1), (1,)])
def test_gradients_of_each_image(argnums: tuple[int, ...]) -> None:
    assert fused(of_each(squares, argnums), X, W, B) == 1
    assert fused(of_each(squares, argnums), X[:1], W, B) == 1


def pooled(x: Tensor, w: Tensor, b: Tensor, **settings: int) -> Tensor:
    return F.max_pool2d(F.conv2d(x, w, b, **settings), 2)


def twice(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two gradients behind one pool."""
    y, back = torch.func.vjp(lambda v: pooled(x[None], v, b), w)
    return back(torch.ones_like(y))[0], back(y)[0]


def two_images(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return pooled(torch.stack([x, 0.5 * x]), w, b).square().sum()


def in_steps_of_two(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return pooled(x[None], w, b, stride=2).square().sum()


WS, BS = torch.stack([W, 2 * W]), torch.stack([B, -B])
APART: dict[str, tuple[Callable[..., object], Tensor, Tensor]] = {
    "the biases' alone": (of_each(squares, (2,)), W, B),
    "the images' alone": (of_each(squares, (0,)), W, B),
    "two images an example": (of_each(two_images, (1, 2)), W, B),
    "a stride": (of_each(in_steps_of_two, (1, 2)), W, B),
    "weights of their own": (vmap(grad(squares, argnums=(1, 2))), WS, BS),
    "two gradients": (vmap(twice, in_dims=(0, None, None)), W, B),
}


@pytest.mark.parametrize("name", APART)
def test_other_gradients_under_vmap_are_left_alone_or_right(name: str) -> None:
    """``fused`` compares the results."""
    function, weight, bias = APART[name]
    fused(function, X, weight, bias)


@pytest.mark.slow
def test_compiled_gradients_of_each_image_agree() -> None:
    torch._dynamo.reset()
    loss, params, batch = example_loss("lenet")
    function = grads.per_example(loss)
    found, expected = compile_pure(function)(params, batch), function(params, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


# What is left alone -------------------------------------------------------------------------------

OTHERS = {
    "stride": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b, stride=2), 2),
    "dilation": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b, dilation=2), 2),
    "groups": lambda x, w, b: F.max_pool2d(F.conv2d(x, w[:, :1], b, groups=3), 2),
    "padding of two kinds": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b, padding=(1, 0)), 2),
    "no bias": lambda x, w, b: F.max_pool2d(F.conv2d(x, w), 2) + b[:, None, None],
    "transposed": lambda x, w, b: F.max_pool2d(F.conv_transpose2d(x, w.transpose(0, 1), b), 2),
    "pool of 3": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 3),
    "pool in steps of 1": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2, 1),
    "padded pool": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2, padding=1),
    "ceiling": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2, ceil_mode=True),
    "average": lambda x, w, b: F.avg_pool2d(F.conv2d(x, w, b), 2),
    "ReLU between": lambda x, w, b: F.max_pool2d(F.relu(F.conv2d(x, w, b)), 2),
    "used twice": lambda x, w, b: (y := F.conv2d(x, w, b)).sum() + F.max_pool2d(y, 2).sum(),
    "indices": lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2, return_indices=True),
    "double precision": lambda x, w, b: F.max_pool2d(F.conv2d(*(t.double() for t in (x, w, b))), 2),
    "one dimension": lambda x, w, b: F.max_pool1d(F.conv1d(x[..., 0], w[..., 0], b), 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_exactly_the_pair_is_left_alone(name: str) -> None:
    assert fused(OTHERS[name], X, W, B) == 0


@pytest.mark.slow  # tests/test_contracts.py compiles the same network
@pytest.mark.parametrize("missing", ["a compiler", None])
def test_a_compiled_step_agrees_with_the_step(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kernels, and without them."""
    if missing:
        monkeypatch.setattr(build, "why_not", lambda: f"no {missing}")
    torch._dynamo.reset()
    model, optimizer = models.lenet(), optim.sgd(0.1, momentum=0.9)
    step = make_train_step(model, optimizer)
    compiled = compile_step(step, donate=False)
    state = init_train_state(model, optimizer, key=random.key(0))
    batch = Batch(random.uniform(random.key(1), (4, 3, 32, 32)), torch.tensor([3, 8, 0, 1]))
    for _ in range(2):
        expected, metrics = step(state, batch)
        state, compiled_metrics = compiled(state, batch)
        for a, b in zip(tree.leaves(expected), tree.leaves(state), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(metrics.loss, compiled_metrics.loss)
    torch._dynamo.reset()


POOLED = [
    ((2, 3, 31, 31), 2, {}),
    ((1, 2, 15, 14), 2, {}),
    ((2, 4, 3, 3), 3, {}),
    ((3, 7, 8), (2, 4), {}),
    ((1, 2, 7, 5), 2, {"ceil_mode": True}),
    ((1, 2, 9, 9), (3, 2), {"ceil_mode": True}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "window", "options"), POOLED)
def test_the_gradient_of_a_pool_in_one_pass(shape, window, options, dtype: torch.dtype) -> None:
    x = random.randint(random.key(0), shape, -3, 4).to(dtype).requires_grad_()  # with ties
    pooled, indices = F.max_pool2d(x, window, return_indices=True, **options)
    grad = random.normal(random.key(1), tuple(pooled.shape)).to(dtype)
    (expected,) = torch.autograd.grad(pooled, x, grad)
    sides = [window] * 2 if isinstance(window, int) else list(window)
    ceil = bool(options)
    found = backends.unpool(grad, x, sides, [], [0, 0], [1, 1], ceil, indices)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(backends.unpool(grad, x, sides, sides, [0], [1], ceil, indices), expected)


@pytest.mark.parametrize("changed", [{"stride": [1, 1]}, {"padding": [1, 1]}, {"dilation": [2, 2]}])
def test_overlapping_windows_are_left_to_torch(changed: dict[str, list[int]]) -> None:
    x = torch.zeros(1, 1, 6, 6)
    settings = {"stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], **changed}
    grad, indices = torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.int64)
    assert (
        backends.unpool(grad, x, [2, 2], **settings, ceil_mode=False, indices=indices)
        is NotImplemented
    )


def test_decompositions_of_an_accelerator_use_it_and_can_be_pickled() -> None:
    import torch._inductor.lowering  # which its decomposition of a pool needs

    table = pickle.loads(pickle.dumps(backends.Decompositions(on_cpu=False)))

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: (F.max_pool2d(y, 2) ** 2).sum())(x)

    x = random.normal(random.key(0), (2, 3, 9, 9))
    module = make_fx(gradient, decomposition_table=table)(x)
    called = {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "pool2d_with_indices_backward" in name]
    assert not [name for name in called if "scatter" in name]
    torch.testing.assert_close(module(x), gradient(x), rtol=0, atol=0)
