"""Wide convolutions by Winograd's algorithm, their pools and gradients, against PyTorch's."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcifar import random
from fcifar.kernels import build, winograd
from fcifar.kernels.winograd import Shape, fits, library, macros

pytestmark = pytest.mark.skipif(
    winograd.why_not() is not None, reason=f"no such kernel here: {winograd.why_not()}"
)
LAST = torch.channels_last

SHAPES = {
    "24 to 64, pooled": Shape(24, 64, 31, 31, True),
    "64 to 64": Shape(64, 64, 15, 15, False),
    "64 to 96, odd, pooled": Shape(64, 96, 7, 6, True),
    "64 to 96, odd": Shape(64, 96, 7, 6, False),
    "128 to 128, tiny": Shape(128, 128, 3, 3, False),
    "128 to 128, tiny, pooled": Shape(128, 128, 4, 4, True),
    "16 to 32, one window": Shape(16, 32, 2, 3, True),
    "40 to 32, not square": Shape(40, 32, 5, 18, False),
    "40 to 32, not square, pooled": Shape(40, 32, 5, 18, True),
}
FACTORS = [False] + [True] * (winograd.why_not() is None and build.has_float16())
factors = pytest.mark.parametrize("float16", FACTORS, ids=["bfloat16", "float16"][: len(FACTORS)])
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


class Arguments(NamedTuple):
    gradient: Tensor  # of the result
    x: Tensor
    weight: Tensor


class Results(NamedTuple):
    """With a pool there are no gradients, which are those of ``wide_conv``; else no choices."""

    y: Tensor
    which: Tensor
    dx: Tensor
    dw: Tensor

    @property
    def values(self) -> dict[str, Tensor]:
        return {n: getattr(self, n) for n in ("y", "dx", "dw") if getattr(self, n).numel()}


def draw(shape: Shape, count: int = 3, *, whole: bool = False, seed: int = 0) -> Arguments:
    """Arguments from a key. Whole numbers are small enough for every result to be exact."""
    c, o, h, w, pool = shape
    result = (count, o, h // 2, w // 2) if pool else (count, o, h, w)
    sizes = (result, (count, c, h, w), (o, c, 3, 3))
    keys = random.split(random.key(seed), len(sizes))
    if whole:
        parts = [random.randint(key, s, -1, 2).float() for key, s in zip(keys, sizes, strict=True)]
    else:
        parts = [random.normal(key, s) for key, s in zip(keys, sizes, strict=True)]
    return Arguments(*(p.bfloat16().contiguous(memory_format=LAST) for p in parts))


def kernel(shape: Shape, arguments: Arguments, float16: bool) -> Results:
    gradient, x, weight = arguments
    y = torch.empty_like(gradient)
    which = torch.empty_like(y if shape.pool else y[:0], dtype=torch.uint8)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    made = library(shape, float16)
    at = [t.data_ptr() if t.numel() else None for t in (gradient, x, weight, dx, dw, y, which)]
    assert made.forward(len(x), at[1], at[2], at[5], at[6]) == 0
    if shape.pool:
        return Results(y, which, dx[:0], dw[:0])
    assert made.backward(len(x), *at[:5]) == 0
    return Results(y, which, dx, dw)


def reference(shape: Shape, arguments: Arguments, which: Tensor | None = None) -> Results:
    """PyTorch's, in double precision; with the given choices of the pool."""
    gradient, *inputs = (a.double() for a in arguments)
    inputs = [i.requires_grad_() for i in inputs]
    y = F.conv2d(*inputs, padding=1)
    if not shape.pool:
        nothing = torch.empty_like(y[:0], dtype=torch.uint8)
        return Results(y.detach(), nothing, *torch.autograd.grad(y, inputs, gradient))
    windows = y.detach()[:, :, : shape.height // 2 * 2, : shape.width // 2 * 2]
    windows = windows.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    if which is None:
        which = windows.argmax(-1).to(torch.uint8)
    y = windows.gather(-1, which.long()[..., None])[..., 0]
    return Results(y, which, inputs[0][:0], inputs[1][:0])


def assert_equal(shape: Shape, count: int, float16: bool, seed: int = 0) -> None:
    """Sums of whole numbers are exact, and bfloat16 rounds what is beyond 256."""
    arguments = draw(shape, count, whole=True, seed=seed)
    ours, theirs = kernel(shape, arguments, float16), reference(shape, arguments)
    for name, value in ours.values.items():
        assert torch.equal(value, getattr(theirs, name).float().bfloat16()), name
    assert torch.equal(ours.which, theirs.which)


@factors
@shapes
@pytest.mark.parametrize("count", [1, 5])
def test_on_whole_numbers_it_is_equal_to_pytorch(shape: Shape, count: int, float16: bool) -> None:
    """Many pooled values are the first of several equals, and many gradients are zero."""
    assert_equal(shape, count, float16)


@factors
@shapes
def test_errors_are_those_of_roundings_of_the_factors(shape: Shape, float16: bool) -> None:
    """Relative to the norm. A rounding of the result alone is 0.0017."""
    arguments = draw(shape)
    ours = kernel(shape, arguments, float16)
    truth = reference(shape, arguments, ours.which)
    best = reference(shape, arguments)
    bound = 0.0028 if float16 else 0.0048
    for name, value in ours.values.items():
        exact = getattr(truth, name)
        assert (value.double() - exact).norm() <= bound * exact.norm(), name
    assert (ours.y.double() - best.y).norm() <= bound * best.y.norm(), "not the greatest was taken"


@factors
@shapes
def test_powers_of_two_change_no_digit(shape: Shape, float16: bool) -> None:
    """Float16 does not reach as far as bfloat16, so that factors are scaled before."""
    gradient, x, weight = draw(shape)
    ours = kernel(shape, Arguments(gradient, x, weight), float16)
    down, up = 2.0**-70, 2.0**60
    scaled = kernel(shape, Arguments(gradient * down, x * up, weight * down), float16)
    assert torch.equal(scaled.y, ours.y * 2.0**-10)
    assert torch.equal(scaled.which, ours.which)
    assert torch.equal(scaled.dw, ours.dw * 2.0**-10)
    small = kernel(shape, Arguments(gradient * down, x, weight * up), float16)
    assert torch.equal(small.dx, ours.dx * 2.0**-10)


@factors
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sum_overflows(pool: bool, sign: float, float16: bool) -> None:
    """All factors at their largest, just below a power of two, with as many channels as may be."""
    shape = Shape(512, 512, 4, 4, pool)
    ones = [torch.ones_like(a) * (2 - 2**-7) for a in draw(shape, 9)]
    arguments = Arguments(ones[0], ones[1] * sign, ones[2])
    # Signs for the largest of the transformed tiles, where pixels are subtracted.
    arguments.x[..., ::2] *= -1
    ours = kernel(shape, arguments, float16)
    theirs = reference(shape, arguments, ours.which)
    for name, value in ours.values.items():
        truth = getattr(theirs, name)
        assert (value.double() - truth).abs().max() <= 0.01 * truth.abs().max(), name


@factors
@shapes
def test_an_image_does_not_depend_on_the_others(shape: Shape, float16: bool) -> None:
    arguments = draw(shape, 4)
    together = kernel(shape, arguments, float16)
    arguments.x[0] *= 2.0**40
    arguments.gradient[0] = float("nan")
    arguments.x[3, 0, 0, 0] = float("nan")
    spoilt = kernel(shape, arguments, float16)
    for name in ("y", "which", "dx"):
        ours, theirs = getattr(spoilt, name)[1:3], getattr(together, name)[1:3]
        assert torch.equal(ours, theirs), name
    assert spoilt.y[3].isnan().any()
    one = kernel(shape, Arguments(*(a[1:2] for a in arguments[:2]), arguments.weight), float16)
    assert torch.equal(one.y[0], together.y[1])
    if not shape.pool:
        assert spoilt.dx[0].isnan().any()
        assert spoilt.dw.isnan().any()
        assert torch.equal(one.dx[0], together.dx[1])


@factors
def test_what_is_no_number_is_greatest(float16: bool) -> None:
    shape = SHAPES["16 to 32, one window"]
    arguments = draw(shape)
    arguments.x[0, 0, 0, 0] = float("nan")
    assert kernel(shape, arguments, float16).y[0].isnan().all()


@factors
@shapes
def test_zeros_and_nothing(shape: Shape, float16: bool) -> None:
    zeros = Arguments(*(torch.zeros_like(a) for a in draw(shape)))
    assert all(not r.any() for r in kernel(shape, zeros, float16))
    nothing = draw(shape, 0)
    assert not kernel(shape, nothing, float16).dw.any()


drawn = st.builds(
    Shape,
    st.sampled_from([16, 24, 32, 40]),
    st.sampled_from([32, 64, 96]),
    st.integers(2, 12),
    st.integers(2, 12),
    st.booleans(),
)


@settings(deadline=None, max_examples=6)
@given(drawn, st.integers(0, 9), st.integers(0, 99), st.sampled_from(FACTORS))
def test_any_shape_is_equal_to_pytorch(shape: Shape, count: int, seed: int, float16: bool) -> None:
    assert_equal(shape, count, float16, seed)


@factors
@pytest.mark.parametrize("pool", [False, True])
def test_more_images_than_are_transformed_at_a_time(pool: bool, float16: bool) -> None:
    shape = Shape(32, 64, 6, 6, pool)
    made = macros(shape)
    assert_equal(shape, max(made["GROUP"], made["WEIGHT_GROUP"]) + 3, float16)


def test_a_gradient_is_left_out_on_demand() -> None:
    gradient, x, weight = draw(SHAPES["64 to 96, odd"])
    both = winograd.conv_backward(gradient, x, weight, True, True)
    for wanted in ((True, False), (False, True)):
        some = winograd.conv_backward(gradient, x, weight, *wanted)
        for is_wanted, a, b in zip(wanted, both, some, strict=True):
            assert torch.equal(a, b) if is_wanted else b.numel() == 0


def test_how_tensors_lie_in_memory_does_not_matter() -> None:
    gradient, x, weight = draw(SHAPES["64 to 96, odd"])
    y = winograd.conv(x, weight)
    assert torch.equal(winograd.conv(x.contiguous(), weight.contiguous()), y)
    expected = winograd.conv_backward(gradient, x, weight, True, True)
    plain = (t.contiguous() for t in (gradient, x, weight))
    for a, b in zip(winograd.conv_backward(*plain, True, True), expected, strict=True):
        assert torch.equal(a, b)


@factors
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_threads_give_the_same_bits(threads: int, float16: bool) -> None:
    """And all but the weights' gradient are the same with any number of threads."""
    shape = SHAPES["40 to 32, not square"]
    arguments, before = draw(shape, 7), torch.get_num_threads()
    alone = kernel(shape, arguments, float16)
    torch.set_num_threads(threads)
    try:
        first = kernel(shape, arguments, float16)
        for _ in range(3):
            again = kernel(shape, arguments, float16)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first[:3], alone[:3], strict=True))
    finally:
        torch.set_num_threads(before)


def test_it_is_for_wide_convolutions() -> None:
    assert all(fits(shape) for shape in SHAPES.values())
    assert not fits(Shape(8, 64, 15, 15, True))
    assert not fits(Shape(20, 64, 15, 15, False))
    assert not fits(Shape(64, 48, 15, 15, False))
    assert not fits(Shape(64, 0, 15, 15, False))
    assert not fits(Shape(1024, 64, 15, 15, False)), "sums of float16 may overflow"
    assert not fits(Shape(64, 64, 224, 224, False))
    assert not fits(Shape(64, 64, 1, 15, False))


def test_where_matrices_are_multiplied_the_library_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    reason = winograd.why_not()
    assert reason is not None
    assert "AMX" in reason
