"""Keys and draws, bit for bit those of ``jax.random``.

A key is a value, not a generator: the same key gives the same draw, for ever and everywhere.
``split`` and ``fold_in`` make new keys out of old ones; nothing here has a state.

The cipher is threefry2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", 2011), and the counters are laid out as in JAX's partitionable mode:
element ``i`` of a draw, in row-major order, is the cipher's output at counter ``i``. Hence it does
not depend on how many elements are drawn. Everything up to ``uniform`` on [0, 1) is integer
arithmetic, exact on any device and in any version, in eager mode, compiled, or under ``vmap``.

``bits``, ``uniform``, ``bernoulli``, ``randint``, ``permutation``, ``split`` and ``fold_in`` equal
``jax.random`` exactly. ``normal`` and ``truncated_normal`` agree to 4 units in the last place, for
the logarithm inside is not the same code. The draws are float32 or int64 tensors on the key's
device.

Who holds some rows of a batch, and others the rest, draws for those rows alone: ``from_row`` gives
a key whose draws begin there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcifar.inverse_erf import erfinv
from fcifar.threefry import shift_right, threefry2x32

Key = Tensor  # int64 [2], each word in [0, 2**32); [3] with the row that its draws begin at

_WORD = 0xFFFF_FFFF
_SQRT2 = 1.4142135381698608  # the square root of two, rounded to float32


def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """The key of an integer seed: int64 [2], holding ``[0, seed mod 2**32]`` as JAX does.

    Raises:
        ValueError: ``seed`` lies outside [-2**31, 2**32), where distinct seeds would collide.

    >>> fcifar.random.key(7)
    tensor([0, 7])
    """
    if not -(2**31) <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside [-2**31, 2**32); choose one inside")
    return torch.tensor([0, seed & _WORD], dtype=torch.int64, device=device)


def split(key: Key, num: int | Sequence[int] = 2) -> Tensor:
    """``num`` independent keys: int64 [num, 2], or [*num, 2] for a shape. Row i is fold_in(key, i).

    ``a, b = split(key)`` is the usual way to write it.

    >>> fcifar.random.split(fcifar.random.key(0)).tolist()
    [[1797259609, 2579123966], [928981903, 3453687069]]
    """
    shape = (num,) if isinstance(num, int) else tuple(num)
    return _child(key, _cipher(key, _count(key, shape)))


def fold_in(key: Key, data: int | Tensor) -> Key:
    """The key for ``data`` under ``key``: int64 [2].

    ``data`` is an integer or a 0-d integer tensor, taken modulo 2**32. ``fold_in(key, step)`` is
    how a training step gets a key that depends on where it is and not on how it came there.

    >>> fcifar.random.fold_in(fcifar.random.key(0), 7).tolist()
    [2716826189, 292468403]
    """
    if not isinstance(data, Tensor):
        data = torch.tensor(data & _WORD, device=key.device)
    return _child(key, _cipher(key, data.to(torch.int32)))


# Rows of a batch ---------------------------------------------------------------------------------


def from_row(key: Key, row: int | Tensor) -> Key:
    """``key``, with all draws from it beginning at ``row``: int64 [3].

    A draw of shape ``(n, ...)`` from it is rows ``row`` to ``row + n`` of a larger draw from
    ``key``, bit for bit. So processes that divide a batch draw for their own rows what one process
    would draw for them. Keys that ``split`` and ``fold_in`` make of it begin at the same row; a
    draw of shape ``()`` belongs to no row, and is the same everywhere.

    Args:
        row: 0 or more, a number or an int64 tensor []; all elements of the larger draw number
            fewer than 2**31.

    >>> key = fcifar.random.key(0)
    >>> whole = fcifar.random.uniform(key, (4, 2))
    >>> torch.equal(fcifar.random.uniform(fcifar.random.from_row(key, 2), (2, 2)), whole[2:])
    True
    """
    row = torch.as_tensor(row, dtype=torch.int64, device=key.device)
    return torch.cat([common(key), row.reshape(1)])


def common(key: Key) -> Key:
    """The key without the row that its draws begin at, for what all rows have in common."""
    return key[:2]


def row_keys(key: Key, count: int) -> Tensor:
    """A key for each of ``count`` rows: int64 [count, 2], which ``split`` gives for a plain key.

    They are rows themselves: those of a key that begins at row r are rows r and on of all.
    """
    return _to_words(torch.stack(_cipher(key, _counters(key, (count,))), dim=-1))


# Draws -------------------------------------------------------------------------------------------


def bits(key: Key, shape: Sequence[int] = ()) -> Tensor:
    """Uniform 32-bit words: int64 tensor of ``shape`` with values in [0, 2**32).

    >>> fcifar.random.bits(fcifar.random.key(0), (2,)).tolist()
    [4070199207, 4202968722]
    """
    return _to_words(_bits(key, shape))


def uniform(
    key: Key, shape: Sequence[int] = (), minval: float = 0.0, maxval: float = 1.0
) -> Tensor:
    """Uniform float32 in [minval, maxval): multiples of 2**-23, scaled and shifted.

    Raises:
        ValueError: not ``minval < maxval``.

    >>> fcifar.random.uniform(fcifar.random.key(0), (3,), -1.0, 1.0)
    tensor([ 0.8953,  0.9572, -0.3354])
    """
    if not minval < maxval:
        raise ValueError(f"uniform needs minval < maxval, not {minval} and {maxval}")
    unit = _unit(key, shape)
    if minval == 0.0 and maxval == 1.0:
        return unit
    low, high = (
        torch.full((), v, dtype=torch.float32, device=key.device) for v in (minval, maxval)
    )
    return torch.maximum(low, unit * (high - low) + low)


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Sequence[int] | None = None) -> Tensor:
    """Boolean draws that are true with probability ``p``.

    ``p`` is a number in [0, 1] or a tensor that broadcasts to ``shape``; ``shape`` defaults to its
    shape.

    >>> fcifar.random.bernoulli(fcifar.random.key(0), 0.5, (4,))
    tensor([False, False,  True,  True])
    """
    p = torch.as_tensor(p, dtype=torch.float32, device=key.device)
    return _unit(key, p.shape if shape is None else shape) < p


def randint(key: Key, shape: Sequence[int], minval: int, maxval: int) -> Tensor:
    """Uniform integers in [minval, maxval): int64 of ``shape``.

    Two words make each draw, so the bias of the remainder is below 2**-32 of the span.

    Raises:
        ValueError: not ``minval < maxval``, or the bounds do not fit in 32 bits.

    >>> fcifar.random.randint(fcifar.random.key(0), (6,), 0, 10)
    tensor([9, 0, 2, 3, 1, 7])
    """
    if not minval < maxval:
        raise ValueError(f"randint needs minval < maxval, not {minval} and {maxval}")
    if minval < -(2**31) or maxval > 2**31:
        raise ValueError(f"randint needs bounds in [-2**31, 2**31], not {minval} and {maxval}")
    span = maxval - minval
    multiplier = ((2**16 % span) ** 2 & _WORD) % span
    high, low = (bits(k, shape) % span for k in split(key))
    # Modulo 2**32 as in JAX; the int64 product may wrap, its low word is right all the same.
    return ((high * multiplier + low) & _WORD) % span + minval


def permutation(key: Key, x: int | Tensor) -> Tensor:
    """A uniformly random order.

    An integer n gives int64 [n], the numbers below n in a random order. A tensor gives its rows
    (first axis) in a random order.

    Raises:
        ValueError: the key begins at a row, see ``from_row``.

    >>> fcifar.random.permutation(fcifar.random.key(0), 8)
    tensor([0, 1, 5, 6, 4, 3, 2, 7])
    """
    if key.shape != (2,):
        raise ValueError("permutation orders all rows; give it random.common(key)")
    values = torch.arange(x, device=key.device) if isinstance(x, int) else x
    n = values.shape[0]
    # Sorting by random words: enough rounds that ties do not matter (as many as JAX makes).
    rounds = math.ceil(3 * math.log(max(n, 1)) / math.log(_WORD))
    order = torch.arange(n, device=key.device)
    for _ in range(rounds):
        key, subkey = split(key)
        order = order[torch.argsort(bits(subkey, (n,)), stable=True)]
    return values[order]


def normal(key: Key, shape: Sequence[int] = ()) -> Tensor:
    """Standard normal float32 draws, by the inverse of the error function.

    >>> fcifar.random.normal(fcifar.random.key(0), (3,))
    tensor([ 1.6226,  2.0253, -0.4336])
    """
    open_below = -1.0 + 2.0**-24  # the float32 that follows -1
    return _SQRT2 * erfinv(uniform(key, shape, open_below, 1.0))


def truncated_normal(key: Key, lower: float, upper: float, shape: Sequence[int] = ()) -> Tensor:
    """Standard normal float32 draws conditioned on lying in (lower, upper).

    Raises:
        ValueError: not ``lower < upper``.
    """
    if not lower < upper:
        raise ValueError(f"truncated_normal needs lower < upper, not {lower} and {upper}")
    a, b = math.erf(lower / math.sqrt(2)), math.erf(upper / math.sqrt(2))
    draws = _SQRT2 * erfinv(uniform(key, shape, a, b))
    low, high = torch.tensor([lower, upper], dtype=torch.float32)
    return draws.clamp(
        float(torch.nextafter(low, high)),
        float(torch.nextafter(high, low)),
    )


def gumbel(key: Key, shape: Sequence[int] = ()) -> Tensor:
    """Standard Gumbel float32 draws, ``-log(-log(u))``."""
    smallest = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(uniform(key, shape, smallest, 1.0)))


def categorical(
    key: Key, logits: Tensor, axis: int = -1, shape: Sequence[int] | None = None
) -> Tensor:
    """Draws from the categorical distributions of ``logits`` along ``axis``: int64.

    ``shape`` defaults to the shape of ``logits`` without ``axis`` and must end in it; leading axes
    are independent draws. The method is the Gumbel-max trick.

    Raises:
        ValueError: ``shape`` does not end so.

    >>> logits = torch.tensor([0.0, -torch.inf, 0.0])
    >>> fcifar.random.categorical(fcifar.random.key(0), logits, shape=(6,))
    tensor([0, 0, 2, 0, 2, 0])
    """
    axis = axis % logits.ndim - logits.ndim  # counted from the end, for leading axes may come
    batch = list(logits.shape)
    batch.pop(axis)
    full = list(batch if shape is None else shape)
    if len(batch) and full[-len(batch) :] != batch:
        raise ValueError(f"categorical needs a shape that ends in {batch}, not {full}")
    full.insert(len(full) + axis + 1, logits.shape[axis])
    return torch.argmax(gumbel(key, full) + logits, dim=axis)


# Counters and words ------------------------------------------------------------------------------


def _cipher(key: Key, counters: Tensor) -> tuple[Tensor, Tensor]:
    if key.shape not in ((2,), (3,)) or key.dtype != torch.int64:
        raise ValueError(
            f"a key is an int64 tensor of shape [2], not {key.dtype} {list(key.shape)}; "
            "use torch.vmap to draw for several keys"
        )
    if key.is_meta:  # shapes alone are asked for, and a cipher is many operations
        return torch.empty_like(counters), torch.empty_like(counters)
    k0, k1 = key[:2].to(torch.int32).unbind()
    return threefry2x32(k0, k1, torch.zeros_like(counters), counters)


def _child(key: Key, words: tuple[Tensor, Tensor]) -> Tensor:
    """Keys of those words [...], with the row of ``key`` if it has one."""
    keys = _to_words(torch.stack(words, dim=-1))
    if key.shape == (2,):
        return keys
    return torch.cat([keys, key[2:].expand(*words[0].shape, -1)], dim=-1)


def _counters(key: Key, shape: Sequence[int]) -> Tensor:
    """Those of a draw, from the row of ``key`` on."""
    counters = _count(key, shape)
    if key.shape == (2,) or not shape:
        return counters
    return counters + (key[2] * math.prod(shape[1:])).to(torch.int32)


def _count(key: Key, shape: Sequence[int]) -> Tensor:
    size = math.prod(shape)
    if size >= 2**31:
        raise ValueError(f"one draw has fewer than 2**31 elements, not {size}; split the key")
    return torch.arange(size, dtype=torch.int32, device=key.device).reshape(tuple(shape))


def _bits(key: Key, shape: Sequence[int]) -> Tensor:
    y0, y1 = _cipher(key, _counters(key, shape))
    return y0 ^ y1


def _to_words(x: Tensor) -> Tensor:
    return x.to(torch.int64) & _WORD


def _unit(key: Key, shape: Sequence[int]) -> Tensor:
    return shift_right(_bits(key, shape), 9).to(torch.float32) * 2.0**-23
