"""The cipher of ``fcifar.random`` as one operation, for compiled graphs.

Its 20 rounds are some 140 elementary operations at every draw, which take seconds to compile. On
the CPU they are compiled once, by ``threefry.c``. On CUDA inductor writes them into the kernel that
uses the draw (``lower``), and sees one operation before: with many hundreds in a graph it would not
choose the layout of convolutions.
"""

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar.kernels import build
from fcifar.random import threefry as cipher

SOURCE = Path(__file__).with_name("threefry.c")


class _Words(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_void_p))


@functools.cache
def library() -> Callable[..., None]:
    """Load the kernel; raises as ``build.load``."""
    made = build.load(SOURCE, {}).threefry2x32
    made.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4]
    made.restype = None
    return made


def _empty(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(k0.shape, k1.shape, x0.shape, x1.shape)
    return k0.new_empty(shape), k0.new_empty(shape)


def _cipher(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    y0, y1 = _empty(k0, k1, x0, x1)
    shape = y0.shape or (1,)
    words = [word.expand(shape) for word in (k0, k1, x0, x1)]
    numbers = ctypes.c_int64 * len(shape)
    strides = [numbers(*word.stride()) for word in words]
    pairs = zip(words, strides, strict=True)
    given = (_Words * 4)(*(_Words(w.data_ptr(), ctypes.addressof(s)) for w, s in pairs))
    library()(len(shape), numbers(*shape), given, y0.data_ptr(), y1.data_ptr())
    return y0, y1


def _batched(info: Any, in_dims: Sequence[int | None], *words: Tensor) -> Any:
    """``vmap``: the mapped axis first, and axes of size 1 behind it."""
    dims = [w.dim() - (d is not None) for w, d in zip(words, in_dims, strict=True)]

    def front(word: Tensor, mapped: int | None, dim: int) -> Tensor:
        if mapped is None:
            return word
        word = word.movedim(mapped, 0)
        return word.reshape(len(word), *[1] * (max(dims) - dim), *word.shape[1:])

    return threefry2x32(*map(front, words, in_dims, dims)), (0, 0)


threefry2x32 = build.define(
    "threefry2x32(Tensor k0, Tensor k1, Tensor x0, Tensor x1) -> (Tensor, Tensor)",
    *(_cipher, _empty),
    vmap=_batched,
    cuda=cipher.in_memory,
)
"""As ``fcifar.random.threefry.threefry2x32``, of int32 tensors that broadcast."""
cipher.compile_to(threefry2x32)


@functools.cache
def lower() -> None:
    """Let inductor write the rounds into the kernels that use a draw."""
    from torch._inductor.ir import Pointwise
    from torch._inductor.lowering import fallback_handler, register_lowering
    from torch._inductor.virtualized import ops

    def word(value: int) -> Any:
        return ops.constant(value, torch.int32)

    def rotate(x: Any, r: int) -> Any:
        # >> copies the sign bit; the mask clears the copies.
        low = ops.bitwise_right_shift(x, word(32 - r)) & word((1 << r) - 1)
        return ops.bitwise_left_shift(x, word(r)) | low

    def lowered(*words: Any) -> tuple[Any, Any]:
        if words[0].get_device().type == "cpu":
            return fallback_handler(threefry2x32)(*words)
        loads = [each.make_loader() for each in words]

        def output(which: int) -> Any:
            def inner(index: Any) -> Any:
                values = (load(index) for load in loads)
                return cipher.rounds(*values, rotate=rotate, seam=lambda x: x, number=word)[which]

            ranges = words[0].get_size()
            return Pointwise.create(
                device=words[0].get_device(), dtype=torch.int32, inner_fn=inner, ranges=ranges
            )

        return output(0), output(1)

    register_lowering(threefry2x32, broadcast=True, type_promotion_kind=None)(lowered)
