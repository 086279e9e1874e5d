"""``max_pool2d(y, 2)`` in bfloat16, channels last, with which of the four values each one was.

An operation of torch (``torch.ops.fcifar``), implemented by ``max_pool.c``. Its gradient is part of
``wide_conv``.
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("max_pool.c")
LANES = 16  # the number of channels must be a multiple
LAST = torch.channels_last


@functools.cache
def library() -> Callable[..., None]:
    """Load the kernel; raises as ``build.load``."""
    made = build.load(SOURCE, {}).max_pool
    made.argtypes = [*[ctypes.c_int64] * 4, *[ctypes.c_void_p] * 3]
    made.restype = None
    return made


def _empty(y: Tensor) -> tuple[Tensor, Tensor]:
    count, channels, height, width = y.shape
    shape = (count, channels, height // 2, width // 2)
    pooled = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=LAST)
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _max_pool(y: Tensor) -> tuple[Tensor, Tensor]:
    y = y.contiguous(memory_format=LAST)
    pooled, which = _empty(y)
    count, channels, height, width = y.shape
    pointers = (tensor.data_ptr() for tensor in (y, pooled, which))
    library()(count, height, width, channels, *pointers)
    return pooled, which


max_pool = build.define(
    "max_pool(Tensor y) -> (Tensor, Tensor)", _max_pool, _empty, (torch.Tag.flexible_layout,)
)
"""y [N, C, H, W] bfloat16, C a multiple of 16 -> pooled (bfloat16), which (uint8)
[N, C, H // 2, W // 2]. As in PyTorch the first of equal values is taken, and NaN is largest."""
