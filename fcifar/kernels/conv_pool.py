"""``max_pool2d(conv2d(x, weight, bias, padding=p), 2)`` as one operation, and its gradient.

Both are operations of torch (``torch.ops.fcifar``), implemented by ``conv_pool.c``, so that a
compiled graph can call them. They take float32 tensors on the CPU. They have no derivative: they
are inserted into graphs that already contain the gradients.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("conv_pool.c")
LANES = 16  # float32 values in a vector
WIDEST = 64  # channels; beyond, the libraries' kernels are faster
LARGEST = 2**17  # values of an image, which has to stay in the second cache


class Shape(NamedTuple):
    """The shape of one image of an input, and of a weight."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    kernel_height: int
    kernel_width: int
    padding: int

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width after pooling, without incomplete cells."""
        height = self.height + 2 * self.padding - self.kernel_height + 1
        width = self.width + 2 * self.padding - self.kernel_width + 1
        return height // 2, width // 2


def shape_of(x: Tensor, weight: Tensor, padding: int) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, K, L]."""
    _, channels_in, height, width = x.shape
    channels_out, _, kernel_height, kernel_width = weight.shape
    return Shape(channels_in, channels_out, height, width, kernel_height, kernel_width, padding)


def fits(shape: Shape) -> bool:
    """Whether the kernel supports a shape, and is fast for it."""
    padded = (shape.height + 2 * shape.padding) * (shape.width + 2 * shape.padding)
    return (
        min(shape[:6]) >= 1
        and max(shape.channels_in, shape.channels_out) <= WIDEST
        and max(shape.kernel_height, shape.kernel_width) <= 7
        and min(shape.pooled) >= 1
        and padded * max(shape.channels_in, shape.channels_out) <= LARGEST
    )


def macros(shape: Shape) -> dict[str, int]:
    """The macros of ``conv_pool.c``: the shape, and tiles that fit into the registers."""
    tile_out = max(_divisors(shape.channels_out, 6))
    rows = shape.kernel_height + 1
    return {
        **dict(zip(("CIN", "COUT", "H", "W", "KH", "KW", "PAD"), shape, strict=True)),
        "TILE_OUT": tile_out,
        "TILE_VECS": min(24 // tile_out, 8),
        "TILE_COLS": _columns(2 * shape.pooled[1]),
        "TILE_IN": max(_divisors(shape.channels_in, max(18 // rows, 1))),
    }


def _divisors(number: int, largest: int) -> Iterable[int]:
    return (d for d in range(1, min(number, largest) + 1) if number % d == 0)


def _columns(width: int) -> int:
    """The even tile, of at most 12 columns, that covers a width with the least excess."""
    return min(range(12, 0, -2), key=lambda tile: -(-width // tile) * tile)


@functools.cache
def library(shape: Shape) -> ctypes.CDLL:
    """Load the kernel for a shape, with ``forward``, ``backward`` and ``backward_each``.

    Raises as ``build.load``.
    """
    made = build.load(SOURCE, macros(shape))
    pointer = ctypes.c_void_p
    made.forward.argtypes = [ctypes.c_int64, *[pointer] * 5]
    made.backward.argtypes = made.backward_each.argtypes = [ctypes.c_int64, *[pointer] * 7]
    return made


def _empty_forward(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    shape = (len(x), len(weight), *shape_of(x, weight, padding).pooled)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    pooled, which = _empty_forward(x, weight, bias, padding)
    run = library(shape_of(x, weight, padding)).forward
    _call(run, len(x), x, weight, bias, pooled, which)
    return pooled, which


def _make_backward(name: str, *, each: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The gradient and its fake; with ``each``, of weight and bias for each image."""

    def empty(
        gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = (len(x),) if each else ()
        x_shape = x.shape if input_too else (0,)
        of_weight, of_bias = x.new_empty(*count, *weight.shape), x.new_empty(*count, len(weight))
        return x.new_empty(x_shape), of_weight, of_bias

    def backward(
        gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
        out = empty(gradient, which, x, weight, padding, input_too)
        run = getattr(library(shape_of(x, weight, padding)), name)
        _call(run, len(x), gradient, which, x, weight, out[0] if input_too else None, *out[1:])
        return out

    return backward, empty


def _call(run: Callable[..., int], count: int, *tensors: Any) -> None:
    if run(count, *(None if tensor is None else tensor.data_ptr() for tensor in tensors)):
        raise MemoryError("no memory for a convolution's scratch")


# ``which`` (uint8) holds which of the four values each pooled one was, in an order that only the
# kernel knows.
_BACKWARD = (
    "(Tensor gradient, Tensor which, Tensor x, Tensor weight, int padding, bool input_too) -> "
    "(Tensor, Tensor, Tensor)"
)
conv_pool = build.define(
    "conv_pool(Tensor x, Tensor weight, Tensor bias, int padding) -> (Tensor, Tensor)",
    *(_forward, _empty_forward),
)
conv_pool_backward = build.define(
    f"conv_pool_backward{_BACKWARD}", *_make_backward("backward", each=False)
)
conv_pool_backward_each = build.define(
    f"conv_pool_backward_each{_BACKWARD}", *_make_backward("backward_each", each=True)
)
