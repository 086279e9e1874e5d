"""The gradient of a wide convolution behind a max-pool, against PyTorch's."""

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcifar import random
from fcifar.kernels import build, wide_conv, winograd
from fcifar.kernels.wide_conv import Shape, library, macros, shape_of, wide_conv_backward
from tests.kernels import emulated

pytestmark = pytest.mark.skipif(
    winograd.why_not() is not None, reason=f"no such kernel here: {winograd.why_not()}"
)

SHAPES = {
    "24 to 64": Shape(24, 64, 31, 31),
    "24 to 64, in two bands": Shape(24, 64, 27, 27),
    "64 to 128": Shape(64, 128, 15, 15),
    "128 to 128, tiny": Shape(128, 128, 4, 4),
    "64 to 96, odd": Shape(64, 96, 7, 6),
    "16 to 32, one cell": Shape(16, 32, 2, 3),
    "40 to 32, not square": Shape(40, 32, 5, 18),
    "more columns than a plane holds": Shape(16, 32, 9, 64),
}


class Arguments(NamedTuple):
    y: Tensor  # the convolution's result: any values, which only say where the greatest is
    gradient: Tensor
    x: Tensor
    weight: Tensor


def draw(shape: Shape, count: int = 3, *, whole: bool = False, seed: int = 0) -> Arguments:
    """Arguments from a key. Whole numbers are small enough for every result to be exact."""
    c, o, h, w = shape
    sizes = ((count, o, h, w), (count, o, h // 2, w // 2), (count, c, h, w), (o, c, 3, 3))
    keys = random.split(random.key(seed), len(sizes))
    if whole:
        parts = [random.randint(key, s, -1, 2).float() for key, s in zip(keys, sizes, strict=True)]
    else:
        parts = [random.normal(key, s) for key, s in zip(keys, sizes, strict=True)]
    return Arguments(*(p.bfloat16().contiguous(memory_format=torch.channels_last) for p in parts))


def greatest(y: Tensor) -> Tensor:
    """Which of the four values of each window is the greatest, uint8 [N, O, H // 2, W // 2]."""
    _, indices = F.max_pool2d(y.float(), 2, return_indices=True)
    row, column = indices // y.shape[3] % 2, indices % y.shape[3] % 2
    return (2 * row + column).to(torch.uint8)


def kernel(arguments: Arguments, float16: bool) -> tuple[Tensor, ...]:
    y, gradient, x, weight = arguments
    results = torch.empty_like(x), torch.empty_like(weight)
    tensors = (gradient, greatest(y), x, weight, *results)
    made = library(shape_of(x, weight), float16)
    assert made(len(x), *(t.data_ptr() if t.numel() else None for t in tensors)) == 0
    return results


def reference(arguments: Arguments) -> tuple[Tensor, ...]:
    """PyTorch's, in double precision."""
    y, gradient, *inputs = (a.double() for a in arguments)
    y.requires_grad_()
    pooled = F.max_pool2d(y, 2)
    (dy,) = torch.autograd.grad(pooled, y, gradient)
    inputs = [i.requires_grad_() for i in inputs]
    return torch.autograd.grad(F.conv2d(*inputs, padding=1), inputs, dy)


FACTORS = [False] + [True] * (winograd.why_not() is None and build.has_float16())
factors = pytest.mark.parametrize("float16", FACTORS, ids=["bfloat16", "float16"][: len(FACTORS)])


def assert_equal(shape: Shape, count: int, float16: bool, seed: int = 0) -> None:
    """Sums of whole numbers are exact; bfloat16 rounds what is beyond 256, and so does this."""
    arguments = draw(shape, count, whole=True, seed=seed)
    results = zip(("x", "weight"), kernel(arguments, float16), reference(arguments), strict=True)
    for name, ours, theirs in results:
        assert torch.equal(ours, theirs.float().bfloat16()), name


@factors
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 5])
def test_on_whole_numbers_it_is_equal_to_pytorch(shape: Shape, count: int, float16: bool) -> None:
    """Many pooled values are the first of several equals, and many gradients are zero."""
    assert_equal(shape, count, float16)


@pytest.mark.skipif(build.has_float16(), reason="all are tested with float16")
def test_emulated_float16_is_equal_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(shape: Shape, float16: bool) -> Callable[..., int]:
        made = emulated.library(wide_conv.SOURCE, tuple(macros(shape, float16).items())).backward
        made.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 6]
        return made

    monkeypatch.setitem(globals(), "library", library)
    assert_equal(SHAPES["64 to 128"], 3, True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_bfloat16_only_the_results_are_rounded(shape: Shape) -> None:
    """Half a unit in the last of eight places, and float32's own rounding."""
    arguments = draw(shape)
    for ours, truth in zip(kernel(arguments, False), reference(arguments), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2**-8, atol=1e-4)


@factors
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_are_those_of_roundings(shape: Shape, float16: bool) -> None:
    """Relative to the norm. A rounding of the result alone is 0.0017."""
    arguments = draw(shape)
    for ours, truth in zip(kernel(arguments, float16), reference(arguments), strict=True):
        bound = 0.0026 if float16 else 0.0018
        assert (ours.double() - truth).norm() <= bound * truth.norm()


@factors
def test_powers_of_two_change_no_digit(float16: bool) -> None:
    """Float16 does not reach as far as bfloat16, so that factors are scaled before."""
    y, gradient, x, weight = draw(SHAPES["64 to 128"])
    dx, dw = kernel(Arguments(y, gradient, x, weight), float16)
    down, up = 2.0**-70, 2.0**60
    small, big = kernel(Arguments(y, gradient * down, x * up, weight * up), float16)
    assert torch.equal(small, dx * 2.0**-10)
    assert torch.equal(big, dw * 2.0**-10)


@factors
def test_no_sum_overflows(float16: bool) -> None:
    """All factors at their largest, just below a power of two, with as many channels as may be."""
    arguments = draw(Shape(512, 512, 4, 4), 9)
    largest = [torch.ones_like(a) * (2 - 2**-7) for a in arguments[1:]]
    arguments = Arguments(arguments.y, *largest)
    for ours, truth in zip(kernel(arguments, float16), reference(arguments), strict=True):
        error = (ours.double() - truth).abs().max()
        assert error <= 64 * 2**-12 * truth.abs().max(), "more than 64 roundings, all one way"


@factors
def test_an_image_does_not_depend_on_the_others(float16: bool) -> None:
    y, gradient, x, weight = draw(SHAPES["64 to 96, odd"], 4)
    dx, _ = kernel(Arguments(y, gradient, x, weight), float16)
    spoilt = gradient.clone()
    spoilt[0] *= 2.0**40
    spoilt[3, 0, 0, 0] = float("nan")
    ours, dw = kernel(Arguments(y, spoilt, x, weight), float16)
    assert torch.equal(ours[1:3], dx[1:3])
    assert ours[3].isnan().any()
    assert dw.isnan().any()


shapes = st.builds(
    Shape,
    st.sampled_from([16, 24, 32, 40]),
    st.sampled_from([32, 64, 96]),
    st.integers(2, 12),
    st.integers(2, 12),
)


@settings(deadline=None, max_examples=6)
@given(shapes, st.integers(0, 9), st.integers(0, 99), st.sampled_from(FACTORS))
def test_any_shape_is_equal_to_pytorch(shape: Shape, count: int, seed: int, float16: bool) -> None:
    assert_equal(shape, count, float16, seed)


@factors
def test_more_images_than_are_listed_at_a_time(float16: bool) -> None:
    shape = Shape(16, 64, 15, 15)
    group = macros(shape, float16)["GROUP"]
    assert_equal(shape, group + 3, float16)


@pytest.mark.parametrize(("input_too", "weight_too"), [(True, False), (False, True)])
def test_a_gradient_is_left_out_on_demand(input_too: bool, weight_too: bool) -> None:
    y, gradient, x, weight = draw(SHAPES["64 to 96, odd"])
    which = greatest(y)
    full = wide_conv_backward(gradient, which, x, weight, True, True)
    less = wide_conv_backward(gradient, which, x, weight, input_too, weight_too)
    for wanted, a, b in zip((input_too, weight_too), full, less, strict=True):
        assert torch.equal(a, b) if wanted else b.numel() == 0


def test_how_tensors_lie_in_memory_does_not_matter() -> None:
    y, *others = draw(SHAPES["64 to 96, odd"])
    which, (gradient, x, weight) = greatest(y), others
    expected = wide_conv_backward(gradient, which, x, weight, True, True)
    plain = (t.contiguous() for t in (gradient, which, x, weight))
    for a, b in zip(wide_conv_backward(*plain, True, True), expected, strict=True):
        assert torch.equal(a, b)


@factors
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_threads_give_the_same_bits(threads: int, float16: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = draw(SHAPES["40 to 32, not square"], 7)
        first = kernel(arguments, float16)
        for _ in range(3):
            again = kernel(arguments, float16)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(before)


@factors
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_are_made_of_images_and_groups_of_tiles(shape: Shape, float16: bool) -> None:
    made, fewest = macros(shape, float16), 1 if float16 else 2
    assert made["IMAGES"] % fewest == 0
    assert made["GROUP"] % made["IMAGES"] == 0
    assert made["BAND"] == shape.height // 2 or made["IMAGES"] == fewest
    assert made["COUT"] % made["BLOCK"] == 0
