"""The gradient of a wide convolution behind a max-pool, against PyTorch's."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcifar import random
from fcifar.kernels import wide_conv
from fcifar.kernels.wide_conv import Shape, fits, macros, wide_conv_backward

pytestmark = pytest.mark.skipif(
    wide_conv.why_not() is not None, reason=f"no such kernel here: {wide_conv.why_not()}"
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


def kernel(arguments: Arguments) -> tuple[Tensor, ...]:
    y, gradient, x, weight = arguments
    return wide_conv_backward(gradient, greatest(y), x, weight, True, True)


def reference(arguments: Arguments) -> tuple[Tensor, ...]:
    """PyTorch's, in double precision."""
    y, gradient, *inputs = (a.double() for a in arguments)
    y.requires_grad_()
    pooled = F.max_pool2d(y, 2)
    (dy,) = torch.autograd.grad(pooled, y, gradient)
    inputs = [i.requires_grad_() for i in inputs]
    return torch.autograd.grad(F.conv2d(*inputs, padding=1), inputs, dy)


def assert_equal(shape: Shape, count: int, seed: int = 0) -> None:
    """Sums of whole numbers are exact; bfloat16 rounds what is beyond 256, and so does this."""
    arguments = draw(shape, count, whole=True, seed=seed)
    results = zip(("x", "weight"), kernel(arguments), reference(arguments), strict=True)
    for name, ours, theirs in results:
        assert torch.equal(ours, theirs.float().bfloat16()), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("count", [1, 5])
def test_on_whole_numbers_it_is_equal_to_pytorch(shape: Shape, count: int) -> None:
    """Many pooled values are the first of several equals, and many gradients are zero."""
    assert_equal(shape, count)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_as_exact_as_bfloat16_allows(shape: Shape) -> None:
    """One rounding at the end: half a unit in the last of eight places, and float32's own."""
    arguments = draw(shape)
    for ours, truth in zip(kernel(arguments), reference(arguments), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2**-8, atol=1e-4)


shapes = st.builds(
    Shape,
    st.sampled_from([16, 24, 32, 40]),
    st.sampled_from([32, 64, 96]),
    st.integers(2, 12),
    st.integers(2, 12),
)


@settings(deadline=None, max_examples=6)
@given(shapes, st.integers(0, 9), st.integers(0, 99))
def test_any_shape_is_equal_to_pytorch(shape: Shape, count: int, seed: int) -> None:
    assert_equal(shape, count, seed)


def test_more_images_than_are_listed_at_a_time() -> None:
    shape = Shape(16, 64, 15, 15)
    group = macros(shape)["GROUP"]
    assert_equal(shape, group + 3)


@pytest.mark.parametrize(("input_too", "weight_too"), [(True, False), (False, True)])
def test_a_gradient_is_left_out_on_demand(input_too: bool, weight_too: bool) -> None:
    y, gradient, x, weight = draw(SHAPES["64 to 96, odd"])
    which = greatest(y)
    full = wide_conv_backward(gradient, which, x, weight, True, True)
    less = wide_conv_backward(gradient, which, x, weight, input_too, weight_too)
    for wanted, a, b in zip((input_too, weight_too), full, less, strict=True):
        assert torch.equal(a, b) if wanted else b.numel() == 0


def test_how_tensors_lie_in_memory_does_not_matter() -> None:
    arguments = draw(SHAPES["64 to 96, odd"])
    plain = Arguments(*(a.contiguous() for a in arguments))
    assert all(torch.equal(a, b) for a, b in zip(kernel(arguments), kernel(plain), strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = draw(SHAPES["40 to 32, not square"], 7)
        first = kernel(arguments)
        assert all(
            torch.equal(a, b)
            for _ in range(3)
            for a, b in zip(first, kernel(arguments), strict=True)
        )
    finally:
        torch.set_num_threads(before)


def test_it_is_for_wide_convolutions() -> None:
    assert all(fits(shape) for shape in SHAPES.values())
    assert not fits(Shape(8, 64, 15, 15))
    assert not fits(Shape(20, 64, 15, 15))
    assert not fits(Shape(64, 48, 15, 15))
    assert not fits(Shape(64, 0, 15, 15))
    assert not fits(Shape(1024, 64, 15, 15))
    assert not fits(Shape(64, 64, 224, 224))
    assert not fits(Shape(64, 64, 1, 15)), "one row is no cell of a pool"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_tiles_are_made_of_pairs_of_images_and_groups_of_tiles(shape: Shape) -> None:
    made = macros(shape)
    assert made["IMAGES"] % 2 == 0
    assert made["GROUP"] % made["IMAGES"] == 0
    assert made["BAND"] == shape.height // 2 or made["IMAGES"] == 2
    assert made["COUT"] % made["BLOCK"] == 0
