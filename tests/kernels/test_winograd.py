"""Wide convolutions by Winograd's algorithm, their pools and gradients, against PyTorch's."""

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
from fcifar.kernels import build, winograd
from fcifar.kernels.winograd import Kind, Shape, fits, library, macros
from tests.kernels import emulated

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
    "16 to 16": Shape(16, 16, 9, 8, False),
    "40 to 32, not square": Shape(40, 32, 5, 18, False),
    "40 to 32, not square, pooled": Shape(40, 32, 5, 18, True),
}
KINDS = {
    "bfloat16, 2x2": Kind(False, 2),
    "bfloat16, 4x4": Kind(False, 4),
    "float16, 2x2": Kind(True, 2),
}
BOUNDS = {Kind(False, 2): 0.0048, Kind(False, 4): 0.017, Kind(True, 2): 0.0028}
IS_EMULATED = winograd.why_not() is None and not build.has_float16()
FAST = [kind for kind in KINDS.values() if not (kind.float16 and IS_EMULATED)]
EMULATED_OFTEN = ("64 to 96, odd", "16 to 32, one window")


def parameters(most: int) -> pytest.MarkDecorator:
    """Of kinds, with tiles of at most this size; slow with float16 where it is emulated."""
    slow = [pytest.mark.slow] if IS_EMULATED else []
    values = [
        pytest.param(kind, id=name, marks=slow if kind.float16 else [])
        for name, kind in KINDS.items()
        if kind.tile <= most
    ]
    return pytest.mark.parametrize("kind", values)


kinds, exact = parameters(4), parameters(2)  # ``exact`` for whole numbers
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


class Arguments(NamedTuple):
    gradient: Tensor  # of the result
    x: Tensor
    weight: Tensor


class Results(NamedTuple):
    y: Tensor
    which: Tensor  # empty without a pool
    dx: Tensor
    dw: Tensor

    @property
    def values(self) -> dict[str, Tensor]:
        return {"y": self.y, "dx": self.dx, "dw": self.dw}


def draw(shape: Shape, count: int = 3, *, whole: bool = False, seed: int = 0) -> Arguments:
    """Arguments from a key. Whole numbers are small enough for every result to be exact."""
    c, o, h, w, pool, _ = shape
    result = (count, o, h // 2, w // 2) if pool else (count, o, h, w)
    sizes = (result, (count, c, h, w), (o, c, 3, 3))
    keys = random.split(random.key(seed), len(sizes))
    if whole:
        parts = [random.randint(key, s, -1, 2).float() for key, s in zip(keys, sizes, strict=True)]
    else:
        parts = [random.normal(key, s) for key, s in zip(keys, sizes, strict=True)]
    return Arguments(*(p.bfloat16().contiguous(memory_format=LAST) for p in parts))


def function(shape: Shape, kind: Kind) -> Callable[..., int]:
    if not (kind.float16 and IS_EMULATED):
        return library(shape, kind)
    made = emulated.library(winograd.SOURCE, tuple(macros(shape, kind).items()))
    found = made.backward if shape.gradient else made.forward
    found.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * (6 if shape.gradient else 4)]
    return found


def kernel(shape: Shape, arguments: Arguments, kind: Kind) -> Results:
    gradient, x, weight = arguments
    y = torch.empty_like(gradient)
    which = torch.empty_like(y if shape.pool else y[:0], dtype=torch.uint8)
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    at = [t.data_ptr() if t.numel() else None for t in (gradient, which, x, weight, dx, dw, y)]
    assert function(shape, kind)(len(x), at[2], at[3], at[6], at[1]) == 0
    assert function(shape._replace(gradient=True), kind)(len(x), *at[:6]) == 0
    return Results(y, which, dx, dw)


def reference(shape: Shape, arguments: Arguments, which: Tensor | None = None) -> Results:
    """PyTorch's, in double precision; with the given choices of the pool."""
    gradient, *inputs = (a.double() for a in arguments)
    inputs = [i.requires_grad_() for i in inputs]
    y = F.conv2d(*inputs, padding=1)
    if shape.pool:
        windows = y[:, :, : shape.height // 2 * 2, : shape.width // 2 * 2]
        windows = windows.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        if which is None:
            which = windows.argmax(-1).to(torch.uint8)
        y = windows.gather(-1, which.long()[..., None])[..., 0]
    else:
        which = torch.empty_like(y[:0], dtype=torch.uint8)
    return Results(y.detach(), which, *torch.autograd.grad(y, inputs, gradient))


def assert_equal(shape: Shape, count: int, kind: Kind, seed: int = 0) -> None:
    """Sums of whole numbers are exact, and bfloat16 rounds what is beyond 256."""
    arguments = draw(shape, count, whole=True, seed=seed)
    ours, theirs = kernel(shape, arguments, kind), reference(shape, arguments)
    for name, value in ours.values.items():
        assert torch.equal(value, getattr(theirs, name).float().bfloat16()), name
    assert torch.equal(ours.which, theirs.which)


@exact
@shapes
@pytest.mark.parametrize("count", [1, 5])
def test_on_whole_numbers_it_is_equal_to_pytorch(shape: Shape, count: int, kind: Kind) -> None:
    """Many pooled values are the first of several equals, and many gradients are zero."""
    assert_equal(shape, count, kind)


@pytest.mark.skipif(not IS_EMULATED, reason="all are tested with float16")
@pytest.mark.parametrize("name", EMULATED_OFTEN)
def test_emulated_float16_is_equal_to_pytorch(name: str) -> None:
    assert_equal(SHAPES[name], 3, Kind(True, 2))


@kinds
@shapes
def test_errors_are_those_of_roundings_of_the_factors(shape: Shape, kind: Kind) -> None:
    """Relative to the norm. A rounding of the result alone is 0.0017."""
    arguments = draw(shape)
    ours = kernel(shape, arguments, kind)
    truth = reference(shape, arguments, ours.which)
    best = reference(shape, arguments)
    bound = BOUNDS[kind]
    for name, value in ours.values.items():
        exact = getattr(truth, name)
        assert (value.double() - exact).norm() <= bound * exact.norm(), name
    assert (ours.y.double() - best.y).norm() <= bound * best.y.norm(), "not the greatest was taken"


@kinds
@shapes
def test_powers_of_two_change_no_digit(shape: Shape, kind: Kind) -> None:
    """Float16 does not reach as far as bfloat16, so that factors are scaled before."""
    gradient, x, weight = draw(shape)
    ours = kernel(shape, Arguments(gradient, x, weight), kind)
    down, up = 2.0**-70, 2.0**60
    scaled = kernel(shape, Arguments(gradient * down, x * up, weight * down), kind)
    assert torch.equal(scaled.y, ours.y * 2.0**-10)
    assert torch.equal(scaled.which, ours.which)
    assert torch.equal(scaled.dw, ours.dw * 2.0**-10)
    small = kernel(shape, Arguments(gradient * down, x, weight * up), kind)
    assert torch.equal(small.dx, ours.dx * 2.0**-10)


@kinds
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sum_overflows(pool: bool, sign: float, kind: Kind) -> None:
    """All factors at their largest, just below a power of two, with as many channels as may be."""
    shape = Shape(512, 512, 4, 4, pool)
    ones = [torch.ones_like(a) * (2 - 2**-7) for a in draw(shape, 9)]
    arguments = Arguments(ones[0], ones[1] * sign, ones[2])
    # Signs for the largest of the transformed tiles, where pixels are subtracted.
    arguments.x[..., ::2] *= -1
    ours = kernel(shape, arguments, kind)
    theirs = reference(shape, arguments, ours.which)
    bound = 0.01 if kind.tile == 2 else 0.02
    for name, value in ours.values.items():
        truth = getattr(theirs, name)
        assert (value.double() - truth).abs().max() <= bound * truth.abs().max(), name


@kinds
@shapes
def test_an_image_does_not_depend_on_the_others(shape: Shape, kind: Kind) -> None:
    arguments = draw(shape, 4)
    together = kernel(shape, arguments, kind)
    arguments.x[0] *= 2.0**40
    arguments.gradient[0] = float("nan")
    arguments.x[3, 0, 0, 0] = float("nan")
    spoilt = kernel(shape, arguments, kind)
    for name in ("y", "which", "dx"):
        ours, theirs = getattr(spoilt, name)[1:3], getattr(together, name)[1:3]
        assert torch.equal(ours, theirs), name
    assert spoilt.y[3].isnan().any()
    one = kernel(shape, Arguments(*(a[1:2] for a in arguments[:2]), arguments.weight), kind)
    assert torch.equal(one.y[0], together.y[1])
    assert spoilt.dx[0].isnan().any()
    assert spoilt.dw.isnan().any()
    assert torch.equal(one.dx[0], together.dx[1])


@kinds
def test_what_is_no_number_is_greatest(kind: Kind) -> None:
    shape = SHAPES["16 to 32, one window"]
    arguments = draw(shape)
    arguments.x[0, 0, 0, 0] = float("nan")
    assert kernel(shape, arguments, kind).y[0].isnan().all()


@kinds
@shapes
def test_zeros_and_nothing(shape: Shape, kind: Kind) -> None:
    zeros = Arguments(*(torch.zeros_like(a) for a in draw(shape)))
    assert all(not r.any() for r in kernel(shape, zeros, kind))
    nothing = draw(shape, 0)
    assert not kernel(shape, nothing, kind).dw.any()


drawn = st.builds(
    Shape,
    st.sampled_from([16, 24, 32, 40]),
    st.sampled_from([32, 64, 96]),
    st.integers(2, 12),
    st.integers(2, 12),
    st.booleans(),
    st.just(False),
)


@settings(deadline=None, max_examples=6)
@given(
    drawn,
    st.integers(0, 9),
    st.integers(0, 99),
    st.sampled_from([kind for kind in FAST if kind.tile == 2]),
)
def test_any_shape_is_equal_to_pytorch(shape: Shape, count: int, seed: int, kind: Kind) -> None:
    assert_equal(shape, count, kind, seed)


@exact
@pytest.mark.parametrize("pool", [False, True])
def test_more_images_than_are_transformed_at_a_time(pool: bool, kind: Kind) -> None:
    shape = Shape(32, 64, 6, 6, pool)
    both = (macros(s, kind) for s in (shape, shape._replace(gradient=True)))
    count = max(max(made["GROUP"], made["WEIGHT_GROUP"]) for made in both)
    assert_equal(shape, count + 3, kind)


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


@kinds
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["40 to 32, not square, pooled", "64 to 96, odd"])
def test_any_number_of_threads_gives_the_same_bits(name: str, threads: int, kind: Kind) -> None:
    """Sums over the images are made in parts where they are small; those of 96 x 64 are not."""
    shape = SHAPES[name]
    arguments, before = draw(shape, 21), torch.get_num_threads()
    alone = kernel(shape, arguments, kind)
    torch.set_num_threads(threads)
    try:
        first = kernel(shape, arguments, kind)
        for _ in range(3):
            again = kernel(shape, arguments, kind)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(first, alone, strict=True))
    finally:
        torch.set_num_threads(before)


def test_it_is_for_wide_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(fits(shape) for name, shape in SHAPES.items() if name != "16 to 16")
    assert not fits(Shape(8, 64, 15, 15, True))
    assert not fits(Shape(20, 64, 15, 15, False))
    assert not fits(Shape(64, 40, 15, 15, False))
    assert not fits(Shape(64, 48, 15, 15, True))
    assert not fits(Shape(64, 0, 15, 15, False))
    assert not fits(Shape(1024, 64, 15, 15, False)), "sums of float16 may overflow"
    assert not fits(Shape(64, 64, 224, 224, False))
    assert not fits(Shape(64, 64, 1, 15, False))
    for has_float16 in (True, False):
        monkeypatch.setattr(build, "has_float16", lambda has=has_float16: has)
        assert fits(SHAPES["16 to 16"]) == has_float16
        assert fits(Shape(64, 48, 15, 15, False)) == has_float16


def test_where_matrices_are_multiplied_the_library_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    reason = winograd.why_not()
    assert reason is not None
    assert "AMX" in reason
