"""The kernel against PyTorch's own convolution and max-pool."""

import shutil
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcifar import random
from fcifar.kernels import build
from fcifar.kernels.conv_pool import (
    Shape,
    conv_pool,
    conv_pool_backward,
    conv_pool_backward_each,
    fits,
    macros,
)

pytestmark = pytest.mark.skipif(
    not shutil.which(build.compiler()), reason="the kernel needs a C++ compiler"
)

SHAPES = {
    "lenet 1": Shape(3, 6, 32, 32, 5, 5, 0),
    "lenet 2": Shape(6, 16, 14, 14, 5, 5, 0),
    "conv3 1": Shape(3, 16, 32, 32, 3, 3, 1),
    "conv3 2": Shape(16, 32, 16, 16, 3, 3, 1),
    "conv3 3": Shape(32, 64, 8, 8, 3, 3, 1),
    "one of each": Shape(1, 1, 2, 2, 1, 1, 0),
    "odd everything": Shape(5, 7, 9, 11, 2, 3, 2),
    "wider than a vector": Shape(2, 5, 7, 45, 3, 2, 1),
    "odd output, sixteen in": Shape(16, 16, 7, 9, 2, 2, 0),
    "sixteen in, large taps": Shape(16, 3, 12, 10, 5, 5, 2),
    "large taps": Shape(4, 16, 15, 9, 7, 7, 3),
    "nine columns of cells": Shape(3, 48, 20, 18, 3, 3, 1),
}


class Arguments(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    gradient: Tensor


def draw(shape: Shape, count: int = 3, *, whole: bool = False, seed: int = 0) -> Arguments:
    """Arguments from a key. Whole numbers are small enough for every sum to be exact."""
    c, o, h, w, k, l, _ = shape  # noqa: E741
    sizes = ((count, c, h, w), (o, c, k, l), (o,), (count, o, *shape.pooled))
    keys = random.split(random.key(seed), len(sizes))
    if whole:
        parts = [random.randint(key, s, -3, 4).float() for key, s in zip(keys, sizes, strict=True)]
    else:
        parts = [random.normal(key, s) for key, s in zip(keys, sizes, strict=True)]
    return Arguments(*parts)


def kernel(arguments: Arguments, padding: int) -> tuple[Tensor, ...]:
    x, weight, bias, gradient = arguments
    pooled, which = conv_pool(x, weight, bias, padding)
    return pooled, *conv_pool_backward(gradient, which, x, weight, padding, True)


def reference(arguments: Arguments, padding: int) -> tuple[Tensor, ...]:
    """PyTorch's, in the arguments' own dtype."""
    *inputs, gradient = arguments
    inputs = [i.clone().requires_grad_() for i in inputs]
    pooled = F.max_pool2d(F.conv2d(*inputs, padding=padding), 2)
    return pooled.detach(), *torch.autograd.grad(pooled, inputs, gradient)


def assert_equal(shape: Shape, count: int, seed: int = 0) -> None:
    arguments = draw(shape, count, whole=True, seed=seed)
    results = zip(
        ("pooled", "x", "weight", "bias"),
        kernel(arguments, shape.padding),
        reference(arguments, shape.padding),
        strict=True,
    )
    for name, ours, theirs in results:
        assert torch.equal(ours, theirs), name
    assert_each_is_equal(arguments, shape.padding)


def assert_each_is_equal(arguments: Arguments, padding: int) -> None:
    """Of every image by itself, and so that they add up."""
    x, weight, bias, gradient = arguments
    _, which = conv_pool(x, weight, bias, padding)
    whole = conv_pool_backward(gradient, which, x, weight, padding, True)
    each = conv_pool_backward_each(gradient, which, x, weight, padding, True)
    assert torch.equal(each[0], whole[0])
    for i in range(len(x)):
        alone = arguments._replace(x=x[i : i + 1], gradient=gradient[i : i + 1])
        _, _, of_weight, of_bias = reference(alone, padding)
        assert torch.equal(each[1][i], of_weight)
        assert torch.equal(each[2][i], of_bias)
    for of_images, of_all in zip(each[1:], whole[1:], strict=True):
        assert torch.equal(of_images.sum(0), of_all)
    without = conv_pool_backward_each(gradient, which, x, weight, padding, False)
    assert without[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(without[1:], each[1:], strict=True))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 5])
def test_on_whole_numbers_it_is_equal_to_pytorch(shape: Shape, count: int) -> None:
    """Sums are exact, and many pooled values are the first of several equals."""
    assert_equal(shape, count)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_as_exact_as_float32_allows(shape: Shape) -> None:
    arguments = draw(shape)
    exact = reference(Arguments(*(a.double() for a in arguments)), shape.padding)
    for ours, truth in zip(kernel(arguments, shape.padding), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=2e-5)


sizes = st.integers(1, 20)
shapes = st.builds(
    Shape,
    st.sampled_from([1, 2, 3, 6, 16, 32]),
    st.sampled_from([1, 3, 5, 6, 16, 32]),
    sizes,
    sizes,
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 3),
)


@settings(suppress_health_check=[HealthCheck.filter_too_much], deadline=None, max_examples=8)
@given(shapes, st.integers(0, 4), st.integers(0, 99))
def test_any_shape_is_equal_to_pytorch(shape: Shape, count: int, seed: int) -> None:
    assume(fits(shape))
    assert_equal(shape, count, seed)


@pytest.mark.parametrize("name", ["lenet 1", "conv3 1"])
def test_a_value_that_is_no_number_stays_one(name: str) -> None:
    shape = SHAPES[name]
    x, weight, bias, _ = draw(shape)
    x[1, 0, 7, 8] = float("nan")
    pooled, _ = conv_pool(x, weight, bias, shape.padding)
    expected = F.max_pool2d(F.conv2d(x, weight, bias, padding=shape.padding), 2)
    assert torch.equal(pooled.isnan(), expected.isnan())
    assert pooled.isnan().any()
    assert not pooled[0].isnan().any()


def test_gradients_of_zero_are_passed_over_without_a_trace() -> None:
    """As ReLU makes them; here every other one, and one channel without any."""
    shape = SHAPES["lenet 2"]
    arguments = draw(shape, whole=True)
    gradient = arguments.gradient * (random.normal(random.key(9), arguments.gradient.shape) > 0)
    gradient[:, 3] = 0
    arguments = arguments._replace(gradient=gradient)
    ours, theirs = kernel(arguments, 0), reference(arguments, 0)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_gradient_of_the_input_is_left_out_on_demand() -> None:
    x, weight, bias, gradient = draw(SHAPES["lenet 1"])
    _, which = conv_pool(x, weight, bias, 0)
    full = conv_pool_backward(gradient, which, x, weight, 0, True)
    less = conv_pool_backward(gradient, which, x, weight, 0, False)
    assert less[0].numel() == 0
    assert all(torch.equal(a, b) for a, b in zip(full[1:], less[1:], strict=True))


def test_how_tensors_lie_in_memory_does_not_matter() -> None:
    x, weight, bias, gradient = draw(SHAPES["lenet 2"])
    plain = kernel(Arguments(x, weight, bias, gradient), 0)
    last = torch.channels_last
    x, weight, gradient = (t.contiguous(memory_format=last) for t in (x, weight, gradient))
    strided = kernel(Arguments(x, weight, bias.repeat(2).reshape(2, -1)[0], gradient), 0)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))
    assert_each_is_equal(draw(SHAPES["lenet 2"], whole=True)._replace(x=x.round()), 0)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = draw(SHAPES["lenet 2"], 7)
        first = kernel(arguments, 0)
        assert all(
            torch.equal(a, b)
            for _ in range(3)
            for a, b in zip(first, kernel(arguments, 0), strict=True)
        )
        assert_each_is_equal(draw(SHAPES["lenet 2"], 7, whole=True), 0)
    finally:
        torch.set_num_threads(before)


def test_an_image_does_not_feel_its_neighbours() -> None:
    shape = SHAPES["conv3 1"]
    x, weight, bias, gradient = draw(shape, 4)
    together, *_ = kernel(Arguments(x, weight, bias, gradient), 1)
    alone, *_ = kernel(Arguments(x[2:3], weight, bias, gradient[2:3]), 1)
    assert torch.equal(together[2:3], alone)


def test_it_is_for_small_convolutions() -> None:
    assert all(fits(shape) for shape in SHAPES.values())
    assert not fits(Shape(128, 16, 8, 8, 3, 3, 1))
    assert not fits(Shape(3, 6, 2048, 2048, 5, 5, 0))
    assert not fits(Shape(3, 6, 32, 32, 9, 3, 0))
    assert not fits(Shape(3, 6, 4, 32, 4, 3, 0)), "one row is no cell of a pool"
    assert not fits(Shape(3, 0, 32, 32, 5, 5, 0))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_divide_what_they_are_tiles_of(shape: Shape) -> None:
    made = macros(shape)
    assert made["COUT"] % made["TILE_OUT"] == 0
    assert made["CIN"] % made["TILE_IN"] == 0
    assert made["TILE_COLS"] % 2 == 0
    assert made["TILE_OUT"] * made["TILE_VECS"] <= 24
