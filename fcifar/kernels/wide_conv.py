"""The gradient of ``max_pool2d(conv2d(x, weight, padding=1), 2)``, 3x3, in bfloat16, without the
products with zeros.

An operation of torch with the arguments of ``winograd.conv_pool_backward``, by ``wide_conv.c``.
Three of four gradients behind the pool are zero, and are skipped. It is used where the instruction
for pairs of bfloat16 is fast: unless ``build.has_float16()``.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("wide_conv.c")
LAST = torch.channels_last
PAIRS = 32  # the number of output channels must be a multiple
WIDEST = 512  # channels; more have not been measured
LARGEST = 64  # rows or columns; more have not been measured
FIRST_CACHE = 26_000  # bytes for pixels
SECOND_CACHE = 600_000  # bytes for lists


class Shape(NamedTuple):
    """The shape of one image of an input, and the channels of the output."""

    channels_in: int
    channels_out: int
    height: int
    width: int


def shape_of(x: Tensor, weight: Tensor) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, 3, 3]."""
    return Shape(x.shape[1], len(weight), *x.shape[2:])


def why_not() -> str | None:
    """Why the kernel cannot be used on this machine; None if it can."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "the processor has no instructions for bfloat16"
    return build.why_not()


def fits(shape: Shape) -> bool:
    """Whether the kernel supports a shape, and is fast for it."""
    channels_in, channels_out, height, width = shape
    return (
        16 <= channels_in <= WIDEST
        and channels_in % 8 == 0
        and 0 < channels_out <= WIDEST
        and channels_out % PAIRS == 0
        and min(height, width) >= 2
        and max(height, width) <= LARGEST
    )


def macros(shape: Shape) -> dict[str, int]:
    """The macros of ``wide_conv.c``: the shape, and tiles that fit into the caches.

    A tile is either all cells of some images, two of which share a plane, or some rows of cells of
    two images; its pixels fit into the first cache. The lists of a group fit into the second.
    """
    _, channels_out, height, width = shape
    rows, columns = height // 2, width // 2
    line = (2 * columns + 2) * 16 * 4  # bytes of a row of pixels
    plane = (2 * rows + 2) * line
    images, band = 2 * max(FIRST_CACHE // plane, 1), rows
    if plane > FIRST_CACHE:
        most = max((FIRST_CACHE // line - 2) // 2, 1)
        band = -(-rows // -(-rows // most))  # bands of nearly equal size
    listed = channels_out * rows * columns * 8
    return {
        **dict(zip(("CIN", "COUT", "H", "W"), shape, strict=True)),
        "IMAGES": images,
        "BAND": band,
        "GROUP": images * max(SECOND_CACHE // (listed * images), 1),
        "BLOCK": 64 if channels_out % 64 == 0 else 32,
    }


@functools.cache
def library(shape: Shape) -> Callable[..., int]:
    """Load the kernel for a shape; raises as ``build.load``."""
    made = build.load(SOURCE, macros(shape)).backward
    made.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 6]
    return made


def _empty(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=LAST) if input_too else x.new_empty(0),
        torch.empty_like(weight, memory_format=LAST) if weight_too else weight.new_empty(0),
    )


def _backward(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    inputs = [t.contiguous(memory_format=LAST) for t in (gradient, which, x, weight)]
    out = _empty(gradient, which, x, weight, input_too, weight_too)
    outputs = (t.data_ptr() if t.numel() else None for t in out)
    pointers = (t.data_ptr() for t in inputs)
    if library(shape_of(x, weight))(len(x), *pointers, *outputs):
        raise MemoryError("no memory for a convolution's scratch")
    return out


_TAGS = (torch.Tag.flexible_layout,)
wide_conv_backward = build.define(
    "wide_conv_backward(Tensor gradient, Tensor which, Tensor x, Tensor weight, bool input_too, "
    "bool weight_too) -> (Tensor, Tensor)",
    *(_backward, _empty, _TAGS),
)
"""gradient, which [N, O, H // 2, W // 2], x [N, C, H, W], weight [O, C, 3, 3] -> the gradients of x
and weight, or empty tensors. All are bfloat16 except ``which`` (uint8), the second result of
``winograd.conv_pool``. Sums are made in float32."""
