"""Batch norm and GELU of bfloat16 images: the kernels, and where they go into a graph."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import grad
from torch.fx.experimental.proxy_tensor import make_fx

from fcifar import layers, models, optim, random
from fcifar.kernels import backends, build, lowering, norm_gelu
from fcifar.kernels.norm_gelu import (
    GELUS,
    MOST,
    moments,
    norm_gelu_backward,
    norm_gelu_sums,
)
from fcifar.precision import BF16
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step

pytestmark = pytest.mark.skipif(
    build.why_not_bfloat16() is not None, reason=f"no such kernel here: {build.why_not_bfloat16()}"
)
aten = torch.ops.aten
OURS = (norm_gelu.norm_gelu, norm_gelu_sums, norm_gelu_backward, moments)
SIZES = [(3, 64, 5, 7), (2, 24, 9, 1), (70, 8, 2, 2), (1, 40, 1, 1), (5, 256, 3, 3), (9, 16, 6, 9)]


def normal(seed: int, *shape: int) -> Tensor:
    return random.normal(random.key(seed), shape)


def images(seed: int, *shape: int) -> Tensor:
    return normal(seed, *shape).bfloat16().contiguous(memory_format=torch.channels_last)


def spread(channels: Tensor) -> Tensor:
    return channels.double()[:, None, None]


def slope(y: Tensor) -> Tensor:
    y = y.detach().requires_grad_()
    return torch.autograd.grad(F.gelu(y).sum(), y)[0]


def all_values() -> Tensor:
    """Every finite bfloat16, [N, 8, 1, 1]."""
    values = torch.arange(2**16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[values.isfinite()].reshape(-1, 8, 1, 1)


def test_gelu_of_every_value_is_within_a_rounding_and_a_little() -> None:
    """A rounding to bfloat16 changes 2^-9; the polynomial at most 4 * 4e-5, near -4."""
    x = all_values()
    one, zero = torch.ones(8), torch.zeros(8)
    ours, truth = norm_gelu.norm_gelu(x, one, zero).double(), F.gelu(x.double())
    assert ((ours - truth).abs() <= 2**-8 * truth.abs() + 1.6e-4).all()
    assert (ours[x > 4] == x[x > 4]).all()
    assert (ours[x < -4] == 0).all()


def test_its_derivative_is_as_near() -> None:
    x = all_values()
    one, zero = torch.ones(8), torch.zeros(8)
    ours = norm_gelu_backward(torch.ones_like(x), x, one, zero, one, zero, zero).double()
    error = (ours - slope(x.double())).abs() - 2**-8 * slope(x.double()).abs()
    assert (error <= 6e-4).all()
    assert (error[x.abs() <= 3.9] <= 5e-5).all()


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_against_double_precision(shape: tuple[int, ...]) -> None:
    x, dz = images(0, *shape), images(1, *shape)
    scale, shift, a, b, c = normal(2, 5, shape[1])
    y = x.double() * spread(scale) + spread(shift)
    ours = norm_gelu.norm_gelu(x, scale, shift).double()
    torch.testing.assert_close(ours, F.gelu(y), rtol=2**-7, atol=2e-4)
    g = dz.double() * slope(y)
    dx = norm_gelu_backward(dz, x, scale, shift, a, b, c).double()
    expected = spread(a) * g + spread(b) * x.double() + spread(c)
    torch.testing.assert_close(dx, expected, rtol=2**-7, atol=2e-3)
    of_g, of_gx = norm_gelu_sums(dz, x, scale, shift)
    size = shape[0] * shape[2] * shape[3]
    torch.testing.assert_close(of_g.double(), g.sum((0, 2, 3)), rtol=1e-4, atol=1e-4 * size)
    products = (g * x.double()).sum((0, 2, 3))
    torch.testing.assert_close(of_gx.double(), products, rtol=1e-4, atol=1e-4 * size)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    for one, truth in zip(moments(x), (var, mean), strict=True):
        torch.testing.assert_close(one.double(), truth, rtol=1e-6, atol=1e-7)


def test_moments_far_from_zero_keep_their_digits() -> None:
    x = (normal(0, 40, 16, 9, 9) + 1000).bfloat16()
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    ours = moments(x)
    torch.testing.assert_close(ours[0].double(), var, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours[1].double(), mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [1, 8, 9])
def test_moments_of_few_channels_are_those_of_each_row(count: int) -> None:
    """Whether or not several rows are taken as one."""
    x = images(0, count, 8, 3, 3) + torch.arange(8.0).bfloat16()[:, None, None]
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(moments(x)[0].double(), var, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments(x)[1].double(), mean, rtol=1e-6, atol=1e-7)


def test_what_is_no_number_stays_none() -> None:
    x, (one, zero) = images(0, 1, 8, 2, 2), (torch.ones(8), torch.zeros(8))
    x[0, 3, 1, 1] = float("nan")
    ours = norm_gelu.norm_gelu(x, one, zero)
    assert ours.isnan().sum() == 1
    assert ours[0, 3, 1, 1].isnan()
    assert moments(x)[0].isnan().tolist() == [i == 3 for i in range(8)]
    dx = norm_gelu_backward(torch.ones_like(x), x, one, zero, one, zero, zero)
    assert dx.isnan().sum() == 1
    assert norm_gelu_sums(torch.ones_like(x), x, one, zero)[0].isnan().sum() == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    x, dz = images(0, 11, 24, 5, 5), images(1, 11, 24, 5, 5)
    scale, shift = normal(2, 2, 24)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, again = ([*norm_gelu_sums(dz, x, scale, shift), *moments(x)] for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_how_images_lie_in_memory_does_not_matter() -> None:
    x, dz = images(0, 3, 24, 5, 4), images(1, 3, 24, 5, 4)
    channels = list(normal(2, 5, 24))
    plain = (dz.contiguous(), x.contiguous(), *channels)
    assert torch.equal(norm_gelu_backward(*plain), norm_gelu_backward(dz, x, *channels))


# In a graph --------------------------------------------------------------------------------------


def traced(f: Callable[..., object], *inputs: object) -> fx.GraphModule:
    """The graph of ``f`` as the compiler hands it over, and after our pass."""
    left = (*GELUS, *lowering.pattern.POOLING)
    table = {op: rule for op, rule in backends.Decompositions().items() if op in left}
    module = make_fx(f, decomposition_table=table, tracing_mode="fake")(*inputs)
    for node in module.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        node.target = torch.ops.prims.convert_element_type.default  # as inductor has it
        node.args, node.kwargs = (node.args[0], node.kwargs["dtype"]), {}
    module.recompile()
    lowering.fuse(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def count(module: fx.GraphModule) -> list[int]:
    return [len(module.graph.find_nodes(op="call_function", target=op)) for op in OURS]


def left_over(module: fx.GraphModule) -> list[str]:
    """Operations on whole images that the kernels should have replaced."""
    slow = (aten.var_mean.correction, aten.mean.dim, *GELUS)
    found = [n.name for op in slow for n in module.graph.find_nodes(op="call_function", target=op)]
    sums = module.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    return found + [n.name for n in sums if n.args[0].meta["val"].dim() == 4]


def test_a_training_step_has_no_other_passes_over_images() -> None:
    model, optimizer = models.speednet(widths=(32, 32, 64)), optim.sgd(0.1)
    step = make_train_step(model, optimizer, policy=BF16)
    state = init_train_state(model, optimizer, key=random.key(0))
    batch = Batch(torch.zeros(2, 3, 32, 32), torch.tensor([3, 8]))
    module = traced(step, state, batch)
    assert count(module) == [7, 6, 7, 6]
    assert left_over(module) == []


def test_an_evaluation_step_has_no_other_passes_over_images() -> None:
    model = models.speednet(widths=(32, 32))
    variables = model.init(random.key(0))
    step = make_eval_step(model, policy=BF16)
    module = traced(step, variables, Batch(torch.zeros(2, 3, 32, 32), torch.tensor([3, 8])))
    assert count(module) == [5, 0, 0, 0]
    assert left_over(module) == []


def block(x: Tensor, weight: Tensor, bias: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
    """A batch norm with its own statistics, and what follows."""
    norm = layers.BatchNorm(x.shape[1])
    values = {"weight": weight, "bias": bias}
    values |= {"running_mean": torch.zeros_like(bias), "running_var": torch.ones_like(bias)}
    y, _ = torch.func.functional_call(norm, values, (x, True))
    return act(y).float()


@pytest.mark.parametrize("shape", [(4, 32, 5, 6), (2, 8, 3, 3)], ids=str)
def test_gradients_through_batch_norm_are_exact(shape: tuple[int, ...]) -> None:
    """All of x, weight and bias, as exact as the plain step, against double precision."""

    def loss(x: Tensor, weight: Tensor, bias: Tensor, factor: Tensor) -> Tensor:
        return (block(x, weight, bias, F.gelu) * factor).sum()

    inputs = (images(0, *shape) * 2 + 1, normal(1, shape[1]) + 2, normal(2, shape[1]))
    inputs = (*inputs, normal(3, *shape))
    slopes = grad(loss, argnums=(0, 1, 2))
    module = traced(slopes, *inputs)
    assert count(module) == [1, 1, 1, 1]
    truth = slopes(*(i.double() for i in inputs))
    for ours, plain, exact in zip(module(*inputs), slopes(*inputs), truth, strict=True):
        size = exact.norm()
        error, usual = ((t.double() - exact).norm() / size for t in (ours, plain))
        assert error <= 1.2 * usual + 1e-4


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "float32": lambda y: F.gelu(y.float()),
    "twice": lambda y: F.gelu(y) * y,
    "of a sum of images": lambda y: F.gelu(y + y.flip(0)),
    "not linear": lambda y: F.gelu(y * y),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_keep_their_meaning(name: str) -> None:
    shape = (4, 16, 5, 6)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return block(x, weight, bias, OTHERS[name]).square().sum()

    inputs = (images(0, *shape), normal(1, 16) + 2, normal(2, 16))
    slopes = grad(loss, argnums=(0, 1, 2))
    module = traced(slopes, *inputs)
    truth = slopes(*(i.double() for i in inputs))
    for ours, plain, exact in zip(module(*inputs), slopes(*inputs), truth, strict=True):
        error, usual = ((t.double() - exact).norm() / exact.norm() for t in (ours, plain))
        assert error <= 1.2 * usual + 1e-3


def test_gelu_elsewhere_is_decomposed() -> None:
    """Of a linear layer's result, or of an odd number of channels."""
    for x in (normal(0, 4, 16).bfloat16(), images(0, 2, 5, 3, 3), images(0, 2, 8, 3, 3) * 2):
        module = traced(lambda t: F.gelu(t + 1), x)
        assert count(module) == [0, 0, 0, 0]
        assert left_over(module) == []
        torch.testing.assert_close(module(x), F.gelu(x + 1))


def test_there_are_as_many_channels_as_the_stack_holds() -> None:
    x = torch.zeros(1, MOST, 1, 1, dtype=torch.bfloat16)
    assert norm_gelu.supports(x)
    assert not norm_gelu.supports(torch.zeros(1, MOST + 8, 1, 1, dtype=torch.bfloat16))
    zero = torch.zeros(MOST)
    assert not norm_gelu.norm_gelu(x, zero, zero).any()
