"""The threefry2x32 block cipher with 20 rounds.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.

Words are int32: addition wraps modulo 2**32, as threefry requires, at half the memory traffic of
int64.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD1_1BDA
_WORD = 2**32 - 1
_SMALL = 8  # words, in a third of the time; between 16 and 32 words both take as long

Cipher = Callable[..., tuple[Tensor, Tensor]]
_operation: Cipher | None = None
_compiled: Cipher | None = None


@contextlib.contextmanager
def using(operation: Cipher) -> Generator[None]:
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
        of_numbers = _is_small(k0, k1, x0, x1)
        return (in_python if of_numbers else in_memory)(k0, k1, x0, x1)
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


def in_python(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """The cipher of a few words in the memory of the CPU, with Python's integers.

    PyTorch takes microseconds to begin each of a hundred operations. ``k0`` and ``k1`` are 0-d, and
    ``x0`` and ``x1`` have one shape.
    """
    key = k0.item(), k1.item()
    pairs = zip(x0.flatten().tolist(), x1.flatten().tolist(), strict=True)
    ciphers = [rounds(*key, *pair, rotate=_rotate_number, seam=_same) for pair in pairs]
    words = [list(map(_to_int32, word)) for word in zip(*ciphers, strict=True)] or [[], []]
    y0, y1 = torch.tensor(words, dtype=torch.int32, device=x0.device).reshape(2, *x0.shape)
    return y0, y1


def _is_small(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> bool:
    """Whether ``in_python`` may be called: nothing but Python's numbers needs the words."""
    return (
        k0.dim() == k1.dim() == 0
        and x0.shape == x1.shape
        and x0.numel() <= _SMALL
        and all(type(x) is Tensor and x.is_cpu and not _is_wrapped(x) for x in (k0, k1, x0, x1))
        and not torch._C._len_torch_dispatch_stack()  # modes, which see operations or record them
        and not torch.jit.is_tracing()
    )


def _rotate_number(x: int, r: int) -> int:
    x &= _WORD  # higher bits do not reach lower ones, neither by + nor by ^
    return x << r | x >> (32 - r)


def _same(x: int) -> int:
    return x


def _to_int32(x: int) -> int:
    return ((x & _WORD) ^ 2**31) - 2**31


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
