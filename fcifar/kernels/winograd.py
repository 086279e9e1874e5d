"""Wide 3x3 convolutions in bfloat16 and their gradients by Winograd's algorithm.

F(2x2, 3x3) takes 16 products where the definition has 36, and F(4x4, 3x3) 36 where it has 144.
Optionally a 2x2 max-pool follows; the gradient of such a pair is computed here or by ``wide_conv``
(``is_best_behind_pool``). Four operations of torch, by ``winograd.c``, for convolutions with a
padding of 1 and no bias. Images have their channels last.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
https://arxiv.org/abs/1509.09308. Where factors are float16 (``build.has_float16``), sums are made
in chunks, as in Wang et al., "Training Deep Neural Networks with 8-bit Floating Point Numbers",
https://arxiv.org/abs/1812.08011.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("winograd.c")
LAST = torch.channels_last
COLUMNS = 32  # the number of output channels must be a multiple; 16 with float16 and without a pool
WIDEST = 512  # channels; of more, a sum of float16 could overflow
LARGEST = 64  # rows or columns; more have not been measured
CACHE = 800_000  # bytes, of the second cache, for some images' transformed tiles and their products
WEIGHT_TILES = {2: 384, 4: 256}  # that are transformed at a time for the gradient of the weights


class Shape(NamedTuple):
    """The shape of one image of an input, the channels of the output, and whether it is pooled.

    Each has two kernels: the layer's and, with ``gradient``, its gradient's.
    """

    channels_in: int
    channels_out: int
    height: int
    width: int
    pool: bool
    gradient: bool = False


def shape_of(x: Tensor, weight: Tensor, pool: bool, gradient: bool = False) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, 3, 3]."""
    _, channels, height, width = x.shape
    return Shape(channels, len(weight), height, width, pool, gradient)


def why_not() -> str | None:
    """Why the kernel cannot be used on this machine, or should not be; None if it can."""
    if torch.cpu._is_amx_tile_supported():
        return "the processor multiplies matrices (AMX), which the library's convolutions use"
    return build.why_not_bfloat16()


def fits(shape: Shape) -> bool:
    """Whether the kernel supports a shape, and is fast for it."""
    channels_in, channels_out, height, width, pool, _ = shape
    columns = COLUMNS // 2 if build.has_float16() and not pool else COLUMNS
    return (
        16 <= channels_in <= WIDEST
        and channels_in % 8 == 0
        and 0 < channels_out <= WIDEST
        and channels_out % columns == 0
        and min(height, width) >= 2
        and max(height, width) <= LARGEST
    )


def _tiles(shape: Shape, tile: int) -> int:
    """How many tiles cover the result for an image."""
    used = 2 if shape.pool and not shape.gradient else 1  # the pool leaves an odd row out
    height, width = (size // used * used for size in (shape.height, shape.width))
    return -(-height // tile) * -(-width // tile)


class Kind(NamedTuple):
    """How a kernel computes: with float16 or bfloat16 factors, and tiles of 2x2 or 4x4 results."""

    float16: bool
    tile: int


def kind(shape: Shape) -> Kind:
    """The kind with the fewest products; tiles of 4x4, less exact, only if they save some."""
    float16 = build.has_float16()
    two, four = ((tile + 2) ** 2 * _tiles(shape, tile) for tile in (2, 4))
    return Kind(float16, 4 if four < two and not float16 else 2)


def is_best_behind_pool(shape: Shape) -> bool:
    """Whether the gradient of a layer with a pool is computed faster here than by ``wide_conv``.

    Three of four gradients are zero there, and ``wide_conv`` only makes the other products. That is
    slower for each, but where there are few channels, transforms are slower still.
    """
    tile = kind(shape._replace(gradient=True)).tile
    tiles = sum(_tiles(shape._replace(gradient=is_images), tile) for is_images in (True, False))
    made = 2 * 9 * (shape.height // 2) * (shape.width // 2)
    return shape.channels_in >= 64 and (tile + 2) ** 2 * tiles < 1.5 * made


def macros(shape: Shape, of: Kind | None = None) -> dict[str, int]:
    """The macros of ``winograd.c``.

    Args:
        of: instead of ``kind(shape)``.
    """
    float16, tile = of or kind(shape)
    tiles = _tiles(shape, tile)
    ends = (shape.channels_out, shape.channels_in)
    source, result = ends if shape.gradient else ends[::-1]
    wide = 4 if -(-result // 32) % 2 == 0 else 2  # vectors in a row of a block of products
    image = (tile + 2) ** 2 * tiles * (2 * source + (2 if float16 else 4) * 16 * wide)  # bytes
    names = ("CIN", "COUT", "H", "W", "POOL", "GRADIENT")
    return {
        **dict(zip(names, map(int, shape), strict=True)),
        "TILE": tile,
        "GROUP": _group(max(CACHE // image, 1), tiles, 24 // wide),
        "WEIGHT_GROUP": max(round(WEIGHT_TILES[tile] / tiles / 2), 1) * 2,
        "FP16": int(float16),
    }


def _group(most: int, tiles: int, rows: int) -> int:
    """How many images to transform at a time: their tiles should fill blocks of rows."""
    return max(range(-(-most // 2), most + 1), key=lambda n: (n * tiles / -(-n * tiles // rows), n))


@functools.cache
def library(shape: Shape, of: Kind | None = None) -> Callable[..., int]:
    """Load the kernel for a shape; raises as ``build.load``."""
    made = build.load(SOURCE, macros(shape, of))
    function = made.backward if shape.gradient else made.forward
    function.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * (6 if shape.gradient else 4)]
    return function


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
    _call(library(shape_of(x, weight, False)), len(x), x, weight, y, None)
    return y


def _empty_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    count, _, height, width = x.shape
    shape = (count, len(weight), height // 2, width // 2)
    pooled = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=LAST)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _forward_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = _last(x, weight)
    pooled, which = _empty_pooled(x, weight)
    _call(library(shape_of(x, weight, True)), len(x), x, weight, pooled, which)
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
    backward = library(shape_of(x, weight, False, True))
    _call(backward, len(x), gradient, None, x, weight, *out)
    return out


def _backward_pooled(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    gradient, which, x, weight = _last(gradient, which, x, weight)
    out = empty_gradients(x, weight, input_too, weight_too)
    backward = library(shape_of(x, weight, True, True))
    _call(backward, len(x), gradient, which, x, weight, *out)
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
conv_pool_backward = build.define(
    "winograd_conv_pool_backward(Tensor gradient, Tensor which, Tensor x, Tensor weight, "
    "bool input_too, bool weight_too) -> (Tensor, Tensor)",
    *(_backward_pooled, lambda gradient, which, *rest: empty_gradients(*rest), _TAGS),
)
"""The gradient of pooled, which, x, weight -> those of x and weight, or empty tensors."""
