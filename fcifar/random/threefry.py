"""The cipher behind all draws: threefry2x32 with 20 rounds.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

Words are int32 in here: additions wrap, which is the arithmetic modulo 2**32 that threefry wants,
and half the memory traffic of int64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD1_1BDA


def threefry2x32(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The words that the key (k0, k1) makes of the words (x0, x1), of any shape."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, x1 + k1
    if not torch.compiler.is_compiling():
        return _in_memory(schedule, x0, x1)
    for i in range(5):
        for r, seam in zip(_ROTATIONS[i % 2], (False, True, False, True), strict=True):
            x0 = x0 + x1
            x1 = ((x1 << r) | shift_right(x1, 32 - r)) ^ x0
            if seam:
                x0, x1 = _seam(x0), _seam(x1)
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + (i + 1)
    return x0, x1


def _in_memory(schedule: Sequence[Tensor], x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The rounds, written over their own words: half as many passes over memory."""
    # The first sums are new tensors, of the shape of both words and mapped over where one is.
    x0, x1 = x0 + x1, x1 + torch.zeros_like(x0)
    for i in range(5):
        for j, r in enumerate(_ROTATIONS[i % 2]):
            x0 = x0.add_(x1) if i or j else x0
            low = (x1 >> (32 - r)).bitwise_and_((1 << r) - 1)
            x1 = low.add_(x1, alpha=1 << r).bitwise_xor_(x0)  # a sum of bits that do not meet
        x0 = x0.add_(schedule[(i + 1) % 3])
        x1 = x1.add_(schedule[(i + 2) % 3] + (i + 1))
    return x0, x1


def _seam(x: Tensor) -> Tensor:
    """``x`` itself, and a place where the compiler stops to name an intermediate result.

    Inductor inlines a chain of elementwise operations by expanding every use of a value anew. Each
    round uses its input three times, so that rounds left to it grow as 3**n and a draw takes half a
    minute to compile. A view with explicit strides makes it begin a new expression; the machine
    code stays one fused loop.
    """
    return torch.as_strided(x, x.shape, x.stride())


def shift_right(x: Tensor, r: int) -> Tensor:
    """Each word moved ``r`` bits to the right, with zeros coming in."""
    return (x >> r) & ((1 << (32 - r)) - 1)  # >> copies the sign; the mask takes the copies away
