"""The gradient of ``max_pool2d(conv2d(x, weight, padding=1), 2)``, 3x3, in bfloat16, without the
products with zeros.

An operation of torch, by ``wide_conv.c``. Three of four gradients behind the pool are zero, and are
skipped. That is faster than Winograd's algorithm, unless ``winograd.is_best_behind_pool``.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar.kernels import build, winograd

SOURCE = Path(__file__).with_name("wide_conv.c")
LAST = torch.channels_last
FIRST_CACHE = {False: 26_000, True: 40_000}  # bytes for pixels, with bfloat16 and with float16
SECOND_CACHE = 600_000  # bytes for lists


class Shape(NamedTuple):
    """The shape of one image of an input, and the channels of the output.

    Those that ``winograd`` supports are supported.
    """

    channels_in: int
    channels_out: int
    height: int
    width: int


def shape_of(x: Tensor, weight: Tensor) -> Shape:
    """The shape of a convolution of ``x`` [N, C, H, W] with ``weight`` [O, C, 3, 3]."""
    return Shape(x.shape[1], len(weight), *x.shape[2:])


def macros(shape: Shape, float16: bool | None = None) -> dict[str, int]:
    """The macros of ``wide_conv.c``: the shape, and tiles that fit into the caches.

    ``float16`` is instead of ``build.has_float16()``.

    A tile is either all cells of some images, or some rows of cells of as few as may be; its pixels
    fit into the first cache. The lists of a group fit into the second. With bfloat16, two images
    share a plane of pixels.
    """
    float16 = build.has_float16() if float16 is None else float16
    _, channels_out, height, width = shape
    rows, columns = height // 2, width // 2
    line = (2 * columns + 2) * 16 * 4  # bytes of a row of pixels
    plane = (2 * rows + 2) * line
    cache = FIRST_CACHE[float16]
    images, band = (1 if float16 else 2) * max(cache // plane, 1), rows
    if plane > cache:
        most = max((cache // line - 2) // 2, 1)
        band = -(-rows // -(-rows // most))  # bands of nearly equal size
    listed = channels_out * rows * columns * 8
    return {
        **dict(zip(("CIN", "COUT", "H", "W"), shape, strict=True)),
        "IMAGES": images,
        "BAND": band,
        "GROUP": images * max(SECOND_CACHE // (listed * images), 1),
        "BLOCK": 64 if channels_out % 64 == 0 else 32,
        "FP16": int(float16),
    }


@functools.cache
def library(shape: Shape, float16: bool | None = None) -> Callable[..., int]:
    """Load the kernel for a shape; raises as ``build.load``."""
    made = build.load(SOURCE, macros(shape, float16)).backward
    made.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 6]
    return made


def _empty(
    gradient: Tensor, which: Tensor, x: Tensor, weight: Tensor, input_too: bool, weight_too: bool
) -> tuple[Tensor, Tensor]:
    return winograd.empty_gradients(x, weight, input_too, weight_too)


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
``winograd.conv_pool``."""
