"""``max_pool2d(conv2d(x, weight, bias, padding=p), 2)`` as one operation, and its gradient.

Both are operations of torch (``torch.ops.fcifar``), so that a compiled graph can call them; the
work is done by ``conv_pool.c``. They take float32 tensors on the CPU, and know no derivative of
their own: put them into graphs that autograd has been through.
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
WIDEST = 64  # channels; beyond, libraries are at home
LARGEST = 2**17  # values of an image that must stay in the second cache


class Shape(NamedTuple):
    """One image of an input, and a weight."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    kernel_height: int
    kernel_width: int
    padding: int

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width after pooling; what does not fill a cell of 2x2 is left out."""
        height = self.height + 2 * self.padding - self.kernel_height + 1
        width = self.width + 2 * self.padding - self.kernel_width + 1
        return height // 2, width // 2


def shape_of(x: Tensor, weight: Tensor, padding: int) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, K, L]."""
    _, channels_in, height, width = x.shape
    channels_out, _, kernel_height, kernel_width = weight.shape
    return Shape(channels_in, channels_out, height, width, kernel_height, kernel_width, padding)


def fits(shape: Shape) -> bool:
    """Whether the kernel can do it, and is known to do it well."""
    padded = (shape.height + 2 * shape.padding) * (shape.width + 2 * shape.padding)
    return (
        min(shape[:6]) >= 1
        and max(shape.channels_in, shape.channels_out) <= WIDEST
        and max(shape.kernel_height, shape.kernel_width) <= 7
        and min(shape.pooled) >= 1
        and padded * max(shape.channels_in, shape.channels_out) <= LARGEST
    )


def macros(shape: Shape) -> dict[str, int]:
    """What ``conv_pool.c`` is compiled with: the shape, and tiles that fit into the registers."""
    tile_out = max(_divisors(shape.channels_out, 6))
    rows = shape.kernel_height + 1
    return {
        "CIN": shape.channels_in,
        "COUT": shape.channels_out,
        "H": shape.height,
        "W": shape.width,
        "KH": shape.kernel_height,
        "KW": shape.kernel_width,
        "PAD": shape.padding,
        "TILE_OUT": tile_out,
        "TILE_VECS": min(24 // tile_out, 8),
        "TILE_COLS": _columns(2 * shape.pooled[1]),
        "TILE_IN": max(_divisors(shape.channels_in, max(18 // rows, 1))),
    }


def _divisors(number: int, largest: int) -> Iterable[int]:
    return (d for d in range(1, min(number, largest) + 1) if number % d == 0)


def _columns(width: int) -> int:
    """The even tile, of at most 12 columns, that covers a width with the least to spare."""
    return min(range(12, 0, -2), key=lambda tile: -(-width // tile) * tile)


class Library(NamedTuple):
    """The functions of ``conv_pool.c`` for one shape."""

    forward: Callable[..., int]
    backward: Callable[..., int]
    backward_each: Callable[..., int]


@functools.cache
def library(shape: Shape) -> Library:
    """The kernel for a shape, built where it is not there yet.

    Raises:
        UsageError: the compiler is missing, or refuses.
        ExternalError: the library cannot be written.
    """
    made = build.load(SOURCE, macros(shape))
    pointer = ctypes.c_void_p
    made.forward.argtypes = [ctypes.c_int64, *[pointer] * 5]
    made.backward.argtypes = made.backward_each.argtypes = [ctypes.c_int64, *[pointer] * 7]
    return Library(made.forward, made.backward, made.backward_each)


# The operations. ``which`` (uint8) says which of the four a pooled value was; how it lies in memory
# is the kernel's own affair.

_OPS = torch.library.Library("fcifar", "DEF")
_OPS.define("conv_pool(Tensor x, Tensor weight, Tensor bias, int padding) -> (Tensor, Tensor)")
for _name in ("conv_pool_backward", "conv_pool_backward_each"):
    _OPS.define(
        f"{_name}(Tensor gradient, Tensor which, Tensor x, Tensor weight, int padding, "
        "bool input_too) -> (Tensor, Tensor, Tensor)"
    )


def _empty_forward(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    shape = (len(x), len(weight), *shape_of(x, weight, padding).pooled)
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)


def _empty_backward(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x_shape = x.shape if input_too else (0,)
    return x.new_empty(x_shape), x.new_empty(weight.shape), x.new_empty(len(weight))


def _empty_backward_each(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    of_x, of_weight, of_bias = _empty_backward(gradient, which, x, weight, padding, input_too)
    return of_x, x.new_empty(len(x), *of_weight.shape), x.new_empty(len(x), *of_bias.shape)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    pooled, which = _empty_forward(x, weight, bias, padding)
    run = library(shape_of(x, weight, padding)).forward
    _call(run, len(x), x, weight, bias, pooled, which)
    return pooled, which


def _backward(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
    out = _empty_backward(gradient, which, x, weight, padding, input_too)
    run = library(shape_of(x, weight, padding)).backward
    _call(run, len(x), gradient, which, x, weight, out[0] if input_too else None, *out[1:])
    return out


def _backward_each(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, padding: int, input_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_backward``, with gradients [N, *of the weight] and [N, *of the bias]."""
    gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
    out = _empty_backward_each(gradient, which, x, weight, padding, input_too)
    run = library(shape_of(x, weight, padding)).backward_each
    _call(run, len(x), gradient, which, x, weight, out[0] if input_too else None, *out[1:])
    return out


def _call(run: Callable[..., int], count: int, *tensors: Any) -> None:
    if run(count, *(None if tensor is None else tensor.data_ptr() for tensor in tensors)):
        raise MemoryError("no memory for a convolution's scratch")


_OPS.impl("conv_pool", _forward, "CPU")
_OPS.impl("conv_pool_backward", _backward, "CPU")
_OPS.impl("conv_pool_backward_each", _backward_each, "CPU")
torch.library.register_fake("fcifar::conv_pool", _empty_forward, lib=_OPS)
torch.library.register_fake("fcifar::conv_pool_backward", _empty_backward, lib=_OPS)
torch.library.register_fake("fcifar::conv_pool_backward_each", _empty_backward_each, lib=_OPS)

conv_pool = torch.ops.fcifar.conv_pool.default
conv_pool_backward = torch.ops.fcifar.conv_pool_backward.default
conv_pool_backward_each = torch.ops.fcifar.conv_pool_backward_each.default
