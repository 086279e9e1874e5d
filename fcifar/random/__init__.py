"""Keys and random draws, bit-equal to ``jax.random``.

A key is a value, not a generator: the same key always gives the same draw. ``split`` and
``fold_in`` derive new keys. No function here has state.

The cipher is threefry2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
as easy as 1, 2, 3", 2011), with the counters of JAX's partitionable mode: element ``i`` of a draw,
in row-major order, is the cipher's output at counter ``i``, so that it does not depend on the
number of elements. Up to ``uniform`` on [0, 1), everything is integer arithmetic, exact on any
device and in any version, eager, compiled, or under ``vmap``.

``split``, ``fold_in``, ``bits``, ``uniform``, ``bernoulli``, ``randint`` and ``permutation`` equal
``jax.random`` exactly. ``normal``, ``truncated_normal`` and ``gumbel`` agree to a few units in the
last place, because their logarithms are implemented differently; ``truncated_normal`` is more
accurate than JAX in the tails. Draws are float32 or int64 tensors on the device of the key.

A shape is a sequence of sizes, or an integer for one axis. Numbers may be NumPy's, and bounds may
be tensors that broadcast to the shape. As in JAX, an invalid argument raises TypeError (wrong type)
or ValueError: a bad key, shape or axis, numbers out of range, or shapes that do not broadcast. The
values of tensors are not checked.

``from_row`` gives a key for some rows of a batch that several processes share, and ``skip_rows``
one for later rows. ``no_reuse`` finds keys that are used twice.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fcifar.random import reuse
from fcifar.random.inverse_erf import CENTRE, erf, erfinv, float32, normal_tails
from fcifar.random.reuse import KeyReuseError, allow_reuse, clone, no_reuse  # noqa: F401
from fcifar.random.threefry import shift_right, threefry2x32

Key = Tensor  # int64 [2], each word in [0, 2**32); [3] with the row at which its draws begin
Shape = int | Sequence[int]

_WORD = 0xFFFF_FFFF
_SQRT2 = 1.4142135381698608  # rounded to float32
_SQRT1_2 = 0.7071067690849304  # XLA multiplies by it instead of dividing


def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """Make a key from an integer seed: int64 [2], ``[0, seed mod 2**32]`` as in JAX.

    The seed must be in [-2**31, 2**32), because distinct seeds outside would collide.

    >>> fcifar.random.key(7)
    tensor([0, 7])
    """
    seed = _integer("a seed", seed)
    if not -(2**31) <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside [-2**31, 2**32); choose one inside")
    if device is None or torch.device(device).type == "cpu":
        return torch.tensor([0, seed & _WORD], dtype=torch.int64, device=device)
    words = (torch.full((), word, dtype=torch.int64, device=device) for word in (0, seed & _WORD))
    return torch.stack(list(words))  # fills, because a copy to a GPU would wait for it


def split(key: Key, num: Shape = 2) -> Tensor:
    """Derive ``num`` independent keys: int64 [num, 2], or [*num, 2] for a shape.

    Row i is ``fold_in(key, i)``. The usual call is ``a, b = split(key)``.

    >>> fcifar.random.split(fcifar.random.key(0)).tolist()
    [[1797259609, 2579123966], [928981903, 3453687069]]
    """
    _check_key(key)
    return _child(key, _cipher(key, _count(key, _shape(num))))


def fold_in(key: Key, data: int | Tensor) -> Key:
    """Derive the key for ``data``: int64 [2].

    ``data`` is an integer or a 0-d integer tensor, taken modulo 2**32. (JAX does so for arrays, but
    rejects Python integers outside [0, 2**32).) With ``fold_in(key, step)``, the key of a training
    step depends only on its number.

    >>> fcifar.random.fold_in(fcifar.random.key(0), 7).tolist()
    [2716826189, 292468403]
    """
    _check_key(key)
    data = _whole("the data of fold_in", data, key)
    if not isinstance(data, Tensor):
        data = _filled(data & _WORD, key, torch.int64)
    elif data.ndim:
        raise TypeError(f"fold_in needs one number, not {list(data.shape)}; use torch.vmap")
    return _child(key, _cipher(key, data.to(torch.int32)))


# Rows of a batch ---------------------------------------------------------------------------------


def from_row(key: Key, row: int | Tensor) -> Key:
    """Return ``key`` with all of its draws beginning at ``row``: int64 [3].

    A draw of shape ``(n, ...)`` is rows ``row`` to ``row + n`` of a larger draw from ``key``, bit
    for bit. Processes that share a batch thus draw for their rows what one process would draw. Keys
    derived by ``split`` and ``fold_in`` begin at the same row. A draw of shape ``()`` does not
    depend on the row.

    Args:
        row: 0 or more, a number or an int64 tensor []. The larger draw has fewer than 2**31
            elements.

    >>> key = fcifar.random.key(0)
    >>> whole = fcifar.random.uniform(key, (4, 2))
    >>> torch.equal(fcifar.random.uniform(fcifar.random.from_row(key, 2), (2, 2)), whole[2:])
    True
    """
    _check_key(key)
    return torch.cat([common(key), _filled(row, key, torch.int64).reshape(1)])


def skip_rows(key: Key, count: int) -> Key:
    """Return ``key`` with all of its draws beginning ``count`` rows later: int64 [3].

    For parts of a batch, which may itself be some rows of a larger one: ``key`` may have a row.

    Args:
        count: 0 or more.

    >>> key = fcifar.random.from_row(fcifar.random.key(0), 2)
    >>> fcifar.random.skip_rows(key, 3).tolist()
    [0, 0, 5]
    """
    return from_row(key, key[2] + count if key.shape == (3,) else count)


def common(key: Key) -> Key:
    """Return the key without its row, for draws that all rows share."""
    return key[:2]


def row_keys(key: Key, count: int) -> Tensor:
    """Return one key per row: int64 [count, 2], equal to ``split`` for a key without a row.

    For a key that begins at row r, these are the keys of rows r to r + count.
    """
    keys = _to_words(torch.stack(_cipher(key, _counters(key, (count,))), dim=-1))
    if reuse.is_on():
        reuse.note_children(key, keys)
    return keys


# Draws -------------------------------------------------------------------------------------------


def bits(key: Key, shape: Shape = ()) -> Tensor:
    """Uniform 32-bit words: int64 of ``shape`` in [0, 2**32).

    >>> fcifar.random.bits(fcifar.random.key(0), (2,)).tolist()
    [4070199207, 4202968722]
    """
    return _to_words(_bits(key, _shape(shape)))


def uniform(
    key: Key, shape: Shape = (), minval: float | Tensor = 0.0, maxval: float | Tensor = 1.0
) -> Tensor:
    """Uniform float32 in [minval, maxval): multiples of 2**-23, scaled and shifted.

    Scaling and shifting round once, like XLA's fused multiply-add. As in JAX, this may round up to
    ``maxval`` itself, and subnormal numbers (below 2**-126) count as 0.

    Args:
        minval, maxval: numbers with a difference in the range of float32, or tensors that broadcast
            to ``shape``. If tensors are out of order, the draw is ``minval``.

    >>> fcifar.random.uniform(fcifar.random.key(0), (3,), -1.0, 1.0)
    tensor([ 0.8953,  0.9572, -0.3354])
    """
    shape = _shape(shape)
    minval, maxval = (_number("a bound of uniform", v, key) for v in (minval, maxval))
    if isinstance(minval, Tensor) or isinstance(maxval, Tensor):
        low, high = (_filled(v, key) for v in (minval, maxval))
        _check_broadcast("uniform", shape, low.shape, high.shape)
        return _scale(_unit(key, shape), low, high)
    if not minval < maxval:
        raise ValueError(f"uniform needs minval < maxval, not {minval} and {maxval}")
    if not maxval - minval <= torch.finfo(torch.float32).max:
        raise ValueError(f"uniform needs bounds that float32 holds, not {minval} and {maxval}")
    unit = _unit(key, shape)
    if minval == 0 and maxval == 1:
        return unit
    low, high = float32(minval), float32(maxval)
    span = float32(high - low)
    if (low == 0 or abs(low) >= 2.0**-24 * span) and span >= 2.0**-64 and not key.is_mps:  # _scale
        return (unit.double() * span + low).float()
    return _scale(unit, _filled(low, key), _filled(high, key))


def bernoulli(key: Key, p: float | Tensor = 0.5, shape: Shape | None = None) -> Tensor:
    """Boolean draws that are true with probability ``p``.

    ``p`` is a number in [0, 1] or a tensor that broadcasts to ``shape``. ``shape`` defaults to the
    shape of ``p``.

    >>> fcifar.random.bernoulli(fcifar.random.key(0), 0.5, (4,))
    tensor([False, False,  True,  True])
    """
    _check_key(key)
    p = _filled(_number("the p of bernoulli", p, key), key)
    shape = tuple(p.shape) if shape is None else _shape(shape)
    _check_broadcast("bernoulli", shape, p.shape)
    return _unit(key, shape) < p


def randint(key: Key, shape: Shape, minval: int | Tensor, maxval: int | Tensor) -> Tensor:
    """Uniform integers in [minval, maxval): int64 of ``shape``.

    Each draw uses two words, so that the bias of the remainder is below 2**-32 of the span.

    Args:
        minval, maxval: integers in [-2**31, 2**31], or tensors that broadcast to ``shape``.
            Fractions are truncated, as in JAX. If tensors are out of order, the draw is ``minval``.

    >>> fcifar.random.randint(fcifar.random.key(0), (6,), 0, 10)
    tensor([9, 0, 2, 3, 1, 7])
    """
    shape = _shape(shape)
    minval, maxval = (_whole("a bound of randint", v, key) for v in (minval, maxval))
    if isinstance(minval, Tensor) or isinstance(maxval, Tensor):
        low, high = (_filled(v, key, torch.int64) for v in (minval, maxval))
        _check_broadcast("randint", shape, low.shape, high.shape)
        minval, span = low, (high - low).clamp(min=1)
    else:
        if not minval < maxval:
            raise ValueError(f"randint needs minval < maxval, not {minval} and {maxval}")
        if minval < -(2**31) or maxval > 2**31:
            raise ValueError(f"randint needs bounds in [-2**31, 2**31], not {minval} and {maxval}")
        span = maxval - minval
    multiplier = ((2**16 % span) ** 2 & _WORD) % span
    high, low = (bits(k, shape) % span for k in split(key))
    # Modulo 2**32 as in JAX. The int64 product may wrap, but its low word is correct.
    return ((high * multiplier + low) & _WORD) % span + minval


def permutation(key: Key, x: int | Tensor, axis: int = 0, independent: bool = False) -> Tensor:
    """Random permutation of integers or of a tensor.

    An integer n gives int64 [n], the integers below n in random order. A tensor gives its rows
    along ``axis`` in random order; with ``independent``, each vector along the axis has its own
    order. The key must not have a row (see ``from_row``).

    >>> fcifar.random.permutation(fcifar.random.key(0), 8)
    tensor([0, 1, 5, 6, 4, 3, 2, 7])
    """
    _check_key(key)
    if key.shape == (3,):
        raise ValueError("permutation orders all rows; give it random.common(key)")
    x = _number("what permutation orders", x, key)
    if not (isinstance(x, Tensor) and x.ndim):
        x = torch.arange(max(0, _integer("what permutation orders", x)), device=key.device)
    axis = _axis("permutation", axis, x.ndim)
    if not independent:
        order = _shuffle(key, torch.arange(x.shape[axis], device=key.device), 0)
        return x[order] if axis == 0 else x.movedim(axis, 0)[order].movedim(0, axis)
    return _shuffle(key, x, axis)


def _shuffle(key: Key, x: Tensor, axis: int) -> Tensor:
    # Sort by random words, in enough rounds that ties do not matter (as many as in JAX).
    rounds = math.ceil(3 * math.log(max(x.numel(), 1)) / math.log(_WORD))
    for _ in range(rounds):
        key, subkey = split(key)
        x = x.gather(axis, torch.argsort(bits(subkey, x.shape), dim=axis, stable=True))
    return x


def normal(key: Key, shape: Shape = ()) -> Tensor:
    """Standard normal float32 draws, by the inverse of the error function.

    >>> fcifar.random.normal(fcifar.random.key(0), (3,))
    tensor([ 1.6226,  2.0253, -0.4336])
    """
    open_below = -1.0 + 2.0**-24  # the next float32 after -1
    # Uniform on (-1, 1). The span is 2, so the product is exact.
    return _SQRT2 * erfinv(_unit(key, _shape(shape)) * 2.0 + open_below)


def truncated_normal(key: Key, lower: float, upper: float, shape: Shape | None = None) -> Tensor:
    """Standard normal float32 draws conditioned on lying in (lower, upper), which may be infinite.

    Inverts the distribution function at one uniform draw per element. Within 2 of the centre this
    is done in float32 and agrees with JAX to a few units in the last place. Beyond, where float32
    does not resolve the distribution function, it is done in float64 on the logarithm.

    >>> fcifar.random.truncated_normal(fcifar.random.key(0), 6.0, torch.inf, (3,))
    tensor([6.4621, 6.5959, 6.0652])
    """
    shape = _shape(() if shape is None else shape)
    lower, upper = (float(_number("a bound of truncated_normal", v, key)) for v in (lower, upper))
    if not lower < upper:
        raise ValueError(f"truncated_normal needs lower < upper, not {lower} and {upper}")
    _check_key(key)
    if key.is_mps:  # which has no float64
        return truncated_normal(key.cpu(), lower, upper, shape).to(key.device)
    unit = _unit(key, shape)
    left, right = lower < -CENTRE, upper > CENTRE
    if upper <= -CENTRE or lower >= CENTRE:
        draws = normal_tails(unit, lower, upper, left)
    else:
        a, b = (erf(float32(min(max(v, -9.0), 9.0)) * _SQRT1_2) for v in (lower, upper))
        u = _scale(unit, _filled(a, key), _filled(b, key))
        draws = _SQRT2 * erfinv(u)
        if left or right:
            tails = normal_tails(unit, lower, upper, u < 0 if left and right else left)
            draws = torch.where(draws.abs() < CENTRE, draws, tails)
    most = torch.finfo(torch.float32).max
    low, high = (_filled(min(max(v, -most), most), key) for v in (lower, upper))
    return draws.clamp(torch.nextafter(low, high), torch.nextafter(high, low))


def gumbel(key: Key, shape: Shape = ()) -> Tensor:
    """Standard Gumbel float32 draws, ``-log(-log(u))``."""
    smallest = torch.finfo(torch.float32).tiny
    return -torch.log(-torch.log(_unit(key, _shape(shape)).clamp(min=smallest)))


def categorical(key: Key, logits: Tensor, axis: int = -1, shape: Shape | None = None) -> Tensor:
    """Draw from the categorical distributions of ``logits`` along ``axis``: int64.

    ``shape`` defaults to the shape of ``logits`` without ``axis``, which must broadcast to it;
    leading axes are independent draws. Uses the Gumbel-max trick, in at least float32.

    >>> logits = torch.tensor([0.0, -torch.inf, 0.0])
    >>> fcifar.random.categorical(fcifar.random.key(0), logits, shape=(6,))
    tensor([0, 0, 2, 0, 2, 0])
    """
    _check_key(key)
    if not isinstance(logits := _number("categorical's logits", logits, key), Tensor):
        raise TypeError(f"categorical needs logits as a tensor, not {type(logits).__name__}")
    axis = _axis("categorical", axis, logits.ndim)
    batch = [size for i, size in enumerate(logits.shape) if i != axis]
    if not logits.shape[axis]:
        raise ValueError(f"categorical has no category along axis {axis} of {list(logits.shape)}")
    full = list(batch if shape is None else _shape(shape))
    _check_broadcast("categorical", full, batch)
    axis -= logits.ndim  # count from the end, because of leading axes
    full.insert(len(full) + axis + 1, logits.shape[axis])
    return torch.argmax(gumbel(key, full) + logits, dim=axis)


# Arguments ---------------------------------------------------------------------------------------


def _check_key(key: Key) -> None:
    if not isinstance(key, Tensor):
        raise TypeError(f"a key is an int64 tensor of shape [2], not {type(key).__name__}")
    if key.shape not in ((2,), (3,)) or key.dtype != torch.int64:
        raise ValueError(
            f"a key is an int64 tensor of shape [2], not {key.dtype} {list(key.shape)}; "
            "use torch.vmap to draw for several keys"
        )


def _shape(shape: Shape) -> tuple[int, ...]:
    """Convert an integer or a sequence of integers to a tuple of sizes."""
    try:
        sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        sizes = tuple(n if isinstance(n, torch.SymInt) else operator.index(n) for n in sizes)
    except TypeError as error:
        raise TypeError(f"a shape is an integer or a sequence of integers, not {shape}") from error
    if any(n < 0 for n in sizes):
        raise ValueError(f"the sizes of a shape are 0 or more, not {list(sizes)}")
    return sizes


def _axis(where: str, axis: int, ndim: int) -> int:
    """Count the axis from the front."""
    if not -ndim <= _integer(f"the axis of {where}", axis) < ndim:
        raise ValueError(f"{where} has no axis {axis} in an input of {ndim} dimensions")
    return axis % ndim


def _check_broadcast(where: str, shape: Sequence[int], *arguments: Sequence[int]) -> None:
    for given in arguments:
        fits = all(n in (1, m) for n, m in zip(reversed(given), reversed(shape), strict=False))
        if len(given) > len(shape) or not fits:
            raise ValueError(
                f"{where} has an argument of shape {list(given)}, which does not broadcast to "
                f"{list(shape)}"
            )


def _number(what: str, x: Any, key: Key) -> Any:
    """Convert NumPy scalars to numbers and arrays to tensors; return others unchanged."""
    if isinstance(x, float | int | torch.SymInt | torch.SymFloat | Tensor):
        return x
    if not hasattr(x, "__array__"):
        raise TypeError(f"{what} is a number or a tensor, not {x!r}")
    return torch.as_tensor(x, device=key.device) if x.ndim else x.item()


def _integer(what: str, x: Any) -> Any:
    try:
        return x if isinstance(x, torch.SymInt) else operator.index(x)
    except TypeError as error:
        raise TypeError(f"{what} is an integer, not {x!r}") from error


def _whole(what: str, x: Any, key: Key) -> Any:
    """Truncate a float to an integer; return a tensor unchanged."""
    x = _number(what, x, key)
    return int(x) if isinstance(x, float) else x


def _filled(x: float | Tensor, key: Key, dtype: torch.dtype = torch.float32) -> Tensor:
    """Put a number or tensor on the device of the key. A fill, unlike a copy, does not wait for a
    GPU.
    """
    if isinstance(x, Tensor):
        return x.to(key.device, dtype)
    return torch.full((), x, dtype=dtype, device=key.device)


# Counters and words ------------------------------------------------------------------------------


def _cipher(key: Key, counters: Tensor) -> tuple[Tensor, Tensor]:
    if key.is_meta:  # only shapes are needed
        return torch.empty_like(counters), torch.empty_like(counters)
    k0, k1 = key[:2].to(torch.int32).unbind()
    return threefry2x32(k0, k1, torch.zeros_like(counters), counters)


def _child(key: Key, words: tuple[Tensor, Tensor]) -> Tensor:
    """Make keys of words [...], with the row of ``key`` if it has one."""
    keys = _to_words(torch.stack(words, dim=-1))
    if reuse.is_on():
        reuse.note_children(key, keys)
    if key.shape == (2,):
        return keys
    return torch.cat([keys, key[2:].expand(*words[0].shape, -1)], dim=-1)


def _counters(key: Key, shape: Sequence[int]) -> Tensor:
    """Return the counters of a draw, beginning at the row of ``key``."""
    _check_key(key)
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
    counters = _counters(key, shape)
    if counters.is_meta:
        return counters
    y0, y1 = _cipher(key, counters)
    if reuse.is_on():
        reuse.note_draw(key, shape)
    return y0 ^ y1


def _to_words(x: Tensor) -> Tensor:
    return x.to(torch.int64) & _WORD


def _unit(key: Key, shape: Sequence[int]) -> Tensor:
    bits = _bits(key, shape)
    if bits.is_meta:
        return bits.to(torch.float32)
    return shift_right(bits, 9).to(torch.float32) * 2.0**-23


def _scale(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``unit * (high - low) + low``, rounded to float32 once.

    In float64 the product is exact, and so is the sum unless ``low`` is smaller than the span by a
    factor of 2**26 or more. In that case the sum would be rounded twice, which is wrong if the
    first rounding gives a midpoint between two float32 numbers. ``low`` is therefore rounded to a
    grid on which the sum is exact, and then moved by less than a grid step towards its original
    value.

    Args:
        unit: uniform draws, multiples of 2**-23 in [0, 1).
        low, high: float32, broadcast to ``unit``.
    """
    if unit.is_meta:
        return unit.expand(torch.broadcast_shapes(unit.shape, low.shape, high.shape))
    if unit.is_mps:  # no float64: round twice
        return unit * (high - low) + low
    low = _flush(low)
    span = _flush(_flush(high) - low).double().clamp(min=0)
    grid = 4 * span  # the spacing of float64 at this size is at most 2**-50 of the span
    near = (low + grid) - grid
    near = near + torch.sign(low - near) * (span * 2.0**-52)
    return _flush((unit.double() * span + torch.where(unit > 0, near, low)).float())


def _flush(x: Tensor) -> Tensor:
    """Flush subnormal float32 numbers to zero, as XLA does on a CPU."""
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0 * x, x)
