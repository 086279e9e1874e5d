"""``max_pool2d(y, 2)`` in bfloat16, channels last, with a note of which of four each value was.

An operation of torch (``torch.ops.fcifar``) like those of ``conv_pool``; ``max_pool.c`` does it.
The gradient goes through the convolution before the pool as well: ``wide_conv`` has it.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("max_pool.c")
LANES = 16  # channels, of which there must be a multiple
LAST = torch.channels_last

_OPS = torch.library.Library("fcifar", "FRAGMENT")
_OPS.define("max_pool(Tensor y) -> (Tensor, Tensor)", tags=(torch.Tag.flexible_layout,))


@functools.cache
def library() -> Callable[..., None]:
    """The kernel, built where it is not there yet; raises as ``build.load`` does."""
    made = build.load(SOURCE, {}).max_pool
    made.argtypes = [*[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 3]
    made.restype = None
    return made


def _empty(y: Tensor) -> tuple[Tensor, Tensor]:
    count, channels, height, width = y.shape
    shape = (count, channels, height // 2, width // 2)
    return (
        torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST),
        torch.empty(shape, dtype=torch.uint8, device=y.device, memory_format=LAST),
    )


def _max_pool(y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.contiguous(memory_format=LAST)
    pooled, which = _empty(y)
    count, channels, height, width = y.shape
    pointers = (tensor.data_ptr() for tensor in (y, pooled, which))
    library()(count, height, width, channels, *pointers)
    return pooled, which


_OPS.impl("max_pool", _max_pool, "CPU")
torch.library.register_fake("fcifar::max_pool", _empty, lib=_OPS)

max_pool = torch.ops.fcifar.max_pool.default
"""y [N, C, H, W] bfloat16, C a multiple of 16 -> pooled (bfloat16), which (uint8)
[N, C, H // 2, W // 2]. As in PyTorch the first of equals is taken, and NaN above all."""
