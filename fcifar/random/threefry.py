"""The threefry2x32 block cipher with 20 rounds.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

Words are int32: addition wraps modulo 2**32, as threefry requires, at half the memory traffic of
int64.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD1_1BDA

Cipher = Callable[..., tuple[Tensor, Tensor]]
_operation: Cipher | None = None
_compiled: Cipher | None = None


@contextlib.contextmanager
def using(operation: Cipher) -> Iterator[None]:
    """Call ``operation`` for the cipher of int32 tensors on the CPU, such as while recording."""
    global _operation
    before, _operation = _operation, operation
    try:
        yield
    finally:
        _operation = before


def is_replaced() -> bool:
    """Whether ``using`` is in effect."""
    return _operation is not None


def compile_to(operation: Cipher) -> None:
    """Let ``torch.compile`` record ``operation`` for the cipher of int32 tensors on CUDA."""
    global _compiled
    _compiled = operation


def threefry2x32(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the words (x0, x1), of any shape, with the key (k0, k1)."""
    if _operation is not None and k0.is_cpu:
        return _operation(k0, k1, x0, x1)
    if not torch.compiler.is_compiling():
        return in_memory(k0, k1, x0, x1)
    if _compiled is not None and k0.is_cuda:
        return _compiled(k0, k1, x0, x1)
    return rounds(k0, k1, x0, x1, rotate=_rotate, seam=_seam)


def rounds(
    k0: Any,
    k1: Any,
    x0: Any,
    x1: Any,
    *,
    rotate: Callable[[Any, int], Any],
    seam: Callable[[Any], Any],
    number: Callable[[int], Any] = int,
) -> tuple[Any, Any]:
    """The cipher of words that have ``+`` and ``^``.

    Args:
        rotate: rotates a word left by some bits.
        seam: called with the words after every second round.
        number: makes a word of an integer.
    """
    schedule = (k0, k1, k0 ^ k1 ^ number(_PARITY))
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for r, is_end in zip(_ROTATIONS[i % 2], (False, True, False, True), strict=True):
            x0 = x0 + x1
            x1 = rotate(x1, r) ^ x0
            if is_end:
                x0, x1 = seam(x0), seam(x1)
        x0 = x0 + schedule[(i + 1) % 3]
        x1 = x1 + schedule[(i + 2) % 3] + number(i + 1)
    return x0, x1


def in_memory(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The cipher with in-place operations, which halve the number of passes over memory."""
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    x0, x1 = x0 + k0, x1 + k1
    # The first sums allocate new tensors of the broadcast shape, batched under vmap if one word is.
    x0, x1 = x0 + x1, x1 + torch.zeros_like(x0)
    for i in range(5):
        for j, r in enumerate(_ROTATIONS[i % 2]):
            x0 = x0.add_(x1) if i or j else x0
            low = (x1 >> (32 - r)).bitwise_and_((1 << r) - 1)
            x1 = low.add_(x1, alpha=1 << r).bitwise_xor_(x0)  # a sum of disjoint bits
        x0 = x0.add_(schedule[(i + 1) % 3])
        x1 = x1.add_(schedule[(i + 2) % 3] + (i + 1))
    return x0, x1


def _rotate(x: Tensor, r: int) -> Tensor:
    return (x << r) | shift_right(x, 32 - r)


def _seam(x: Tensor) -> Tensor:
    """Return ``x``, and make the compiler start a new expression.

    Inductor inlines elementwise operations by expanding every use of a value. Each round uses its
    input three times, so that without seams expressions grow as 3**n and a draw takes half a minute
    to compile. A view with explicit strides ends the expression; the code remains one fused loop.
    """
    return torch.as_strided(x, x.shape, x.stride())


def shift_right(x: Tensor, r: int) -> Tensor:
    """Shift each word right by ``r`` bits, filling with zeros."""
    return (x >> r) & ((1 << (32 - r)) - 1)  # >> copies the sign bit; the mask clears the copies
