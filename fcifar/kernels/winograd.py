"""Wide 3x3 convolutions in bfloat16 and their gradients by Winograd's algorithm, F(2x2, 3x3).

It takes 16 products where the definition has 36. Optionally a 2x2 max-pool follows, whose windows
are what the algorithm computes at a time; the gradient of such a pair is that of ``wide_conv``.
Three operations of torch, by ``winograd.c``, for convolutions with a padding of 1 and no bias.
Images have their channels last.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308. Where factors are float16 (``build.has_float16``), sums are made
in chunks, as in Wang et al., "Training Deep Neural Networks with 8-bit Floating Point Numbers",
https://arxiv.org/abs/1812.08011.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("winograd.c")
LAST = torch.channels_last
COLUMNS = 32  # the number of output channels must be a multiple
WIDEST = 512  # channels; of more, a sum of float16 could overflow
LARGEST = 64  # rows or columns; more have not been measured
CACHE = 800_000  # bytes, of the second cache, for the transformed tiles of some images
WEIGHT_TILES = 384  # tiles that are transformed at a time for the gradient of the weights


class Shape(NamedTuple):
    """The shape of one image of an input, the channels of the output, and whether it is pooled."""

    channels_in: int
    channels_out: int
    height: int
    width: int
    pool: bool


def shape_of(x: Tensor, weight: Tensor, pool: bool) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, 3, 3]."""
    _, channels, height, width = x.shape
    return Shape(channels, len(weight), height, width, pool)


def why_not() -> str | None:
    """Why the kernel cannot be used on this machine, or should not be; None if it can."""
    if torch.cpu._is_amx_tile_supported():
        return "the processor multiplies matrices (AMX), which the library's convolutions use"
    return build.why_not_bfloat16()


def fits(shape: Shape) -> bool:
    """Whether the kernel supports a shape, and is fast for it."""
    channels_in, channels_out, height, width, _ = shape
    return (
        16 <= channels_in <= WIDEST
        and channels_in % 8 == 0
        and 0 < channels_out <= WIDEST
        and channels_out % COLUMNS == 0
        and min(height, width) >= 2
        and max(height, width) <= LARGEST
    )


def macros(shape: Shape, float16: bool | None = None) -> dict[str, int]:
    """The macros of ``winograd.c``.

    Args:
        float16: instead of ``build.has_float16()``.
    """
    channels_in, channels_out, height, width, pool = shape
    tiles = (height // 2) * (width // 2) if pool else -(-height // 2) * -(-width // 2)
    image = 16 * 2 * tiles * max(channels_in, channels_out)  # bytes
    return {
        **dict(zip(("CIN", "COUT", "H", "W", "POOL"), map(int, shape), strict=True)),
        "GROUP": max(CACHE // image, 1),
        "WEIGHT_GROUP": max(round(WEIGHT_TILES / tiles), 1),
        "FP16": int(build.has_float16() if float16 is None else float16),
    }


@functools.cache
def library(shape: Shape, float16: bool | None = None) -> ctypes.CDLL:
    """Load the kernel for a shape; raises as ``build.load``."""
    made = build.load(SOURCE, macros(shape, float16))
    made.forward.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4]
    if not shape.pool:
        made.backward.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5]
    return made


def _call(function: Any, count: int, *tensors: Tensor | None) -> None:
    if function(count, *(None if t is None or not t.numel() else t.data_ptr() for t in tensors)):
        raise MemoryError("no memory for a convolution's scratch")


def _last(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous(memory_format=LAST) for tensor in tensors]


def _empty(x: Tensor, weight: Tensor) -> Tensor:
    count, _, height, width = x.shape
    shape = (count, len(weight), height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)


def _forward(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = _last(x, weight)
    y = _empty(x, weight)
    _call(library(shape_of(x, weight, False)).forward, len(x), x, weight, y, None)
    return y


def _empty_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    count, _, height, width = x.shape
    shape = (count, len(weight), height // 2, width // 2)
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _forward_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = _last(x, weight)
    pooled, which = _empty_pooled(x, weight)
    _call(library(shape_of(x, weight, True)).forward, len(x), x, weight, pooled, which)
    return pooled, which


def empty_gradients(
    x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    """Gradients like x and weight, with channels last; without elements if not wanted."""
    return (
        torch.empty_like(x, memory_format=LAST) if input_too else x.new_empty(0),
        torch.empty_like(weight, memory_format=LAST) if weight_too else weight.new_empty(0),
    )


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    gradient, x, weight = _last(gradient, x, weight)
    out = empty_gradients(x, weight, input_too, weight_too)
    backward = library(shape_of(x, weight, False)).backward
    _call(backward, len(x), gradient, x, weight, *out)
    return out


_TAGS = (torch.Tag.flexible_layout,)
conv = build.define("winograd_conv(Tensor x, Tensor weight) -> Tensor", *(_forward, _empty, _TAGS))
"""x [N, C, H, W], weight [O, C, 3, 3] -> y [N, O, H, W], all bfloat16."""
conv_backward = build.define(
    "winograd_conv_backward(Tensor gradient, Tensor x, Tensor weight, bool input_too, "
    "bool weight_too) -> (Tensor, Tensor)",
    *(_backward, lambda gradient, *rest: empty_gradients(*rest), _TAGS),
)
"""The gradient of y, x, weight -> those of x and weight, or empty tensors."""
conv_pool = build.define(
    "winograd_conv_pool(Tensor x, Tensor weight) -> (Tensor, Tensor)",
    *(_forward_pooled, _empty_pooled, _TAGS),
)
"""x, weight -> pooled (bfloat16), which (uint8) [N, O, H // 2, W // 2]. As in PyTorch the first of
equal values is taken, and NaN is largest; values are compared before they are rounded."""
