"""Keys and draws, bit for bit those of ``jax.random``.

A key is a value, not a generator: the same key gives the same draw, for ever and everywhere.
``split`` and ``fold_in`` make new keys out of old ones; nothing here has a state.

The cipher is threefry2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw, "Parallel random
numbers: as easy as 1, 2, 3", 2011), and the counters are laid out as in JAX's partitionable mode:
element ``i`` of a draw, in row-major order, is the cipher's output at counter ``i``. Hence it does
not depend on how many elements are drawn. Everything up to ``uniform`` on [0, 1) is integer
arithmetic, exact on any device and in any version, in eager mode, compiled, or under ``vmap``.

``bits``, ``uniform`` on any bounds, ``bernoulli``, ``randint``, ``permutation``, ``split`` and
``fold_in`` equal ``jax.random`` exactly. ``normal``, ``truncated_normal`` and ``gumbel`` agree to a
few units in the last place, because the logarithm inside is not the same code; in its tails
``truncated_normal`` is the more exact of the two. The draws are float32 or int64 tensors on the
key's device.

A shape is a sequence of sizes, or one integer for one axis. Numbers may be NumPy's, bounds tensors
that broadcast to the shape. What a key, a shape or an axis cannot be raises TypeError (of another
type) or ValueError, as in JAX.

Who holds some rows of a batch, and others the rest, draws for those rows alone: ``from_row`` gives
a key whose draws begin there.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fcifar.random.inverse_erf import CENTRE, erf, erfinv, float32, normal_tails
from fcifar.random.threefry import shift_right, threefry2x32

Key = Tensor  # int64 [2], each word in [0, 2**32); [3] with the row that its draws begin at
Shape = int | Sequence[int]

_WORD = 0xFFFF_FFFF
_SQRT2 = 1.4142135381698608  # the square root of two, rounded to float32
_SQRT1_2 = 0.7071067690849304  # of a half: XLA multiplies by it in place of a division


def key(seed: int, *, device: torch.device | str | None = None) -> Key:
    """The key of an integer seed: int64 [2], holding ``[0, seed mod 2**32]`` as JAX does.

    Raises:
        TypeError: ``seed`` is not an integer.
        ValueError: ``seed`` lies outside [-2**31, 2**32), where distinct seeds would collide.

    >>> fcifar.random.key(7)
    tensor([0, 7])
    """
    seed = _integer("a seed", seed)
    if not -(2**31) <= seed < 2**32:
        raise ValueError(f"seed {seed} is outside [-2**31, 2**32); choose one inside")
    return torch.tensor([0, seed & _WORD], dtype=torch.int64, device=device)


def split(key: Key, num: Shape = 2) -> Tensor:
    """``num`` independent keys: int64 [num, 2], or [*num, 2] for a shape. Row i is fold_in(key, i).

    ``a, b = split(key)`` is the usual way to write it.

    >>> fcifar.random.split(fcifar.random.key(0)).tolist()
    [[1797259609, 2579123966], [928981903, 3453687069]]
    """
    _check_key(key)
    return _child(key, _cipher(key, _count(key, _shape(num))))


def fold_in(key: Key, data: int | Tensor) -> Key:
    """The key for ``data`` under ``key``: int64 [2].

    ``data`` is an integer or a 0-d integer tensor, taken modulo 2**32, as JAX takes arrays; of
    Python's integers it refuses those outside [0, 2**32). ``fold_in(key, step)`` is how a training
    step gets a key that depends on where it is and not on how it came there.

    Raises:
        TypeError: ``data`` is not a single number.

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
    _check_key(key)
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


def bits(key: Key, shape: Shape = ()) -> Tensor:
    """Uniform 32-bit words: int64 tensor of ``shape`` with values in [0, 2**32).

    >>> fcifar.random.bits(fcifar.random.key(0), (2,)).tolist()
    [4070199207, 4202968722]
    """
    return _to_words(_bits(key, _shape(shape)))


def uniform(
    key: Key, shape: Shape = (), minval: float | Tensor = 0.0, maxval: float | Tensor = 1.0
) -> Tensor:
    """Uniform float32 in [minval, maxval): multiples of 2**-23, scaled and shifted.

    Scaling and shifting round once, as in the fused multiply-add that XLA makes of them. As in JAX
    that may round up to ``maxval`` itself, and what is below 2**-126 counts as 0.

    Args:
        minval, maxval: numbers, or tensors that broadcast to ``shape``. The values of tensors are
            not checked: out of order, the draw is ``minval``.

    Raises:
        ValueError: not ``minval < maxval``, or float32 does not hold the difference; or tensors
            that do not broadcast to ``shape``.

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

    ``p`` is a number in [0, 1] or a tensor that broadcasts to ``shape``; ``shape`` defaults to its
    shape.

    Raises:
        ValueError: ``p`` does not broadcast to ``shape``.

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

    Two words make each draw, so the bias of the remainder is below 2**-32 of the span.

    Args:
        minval, maxval: integers, or tensors that broadcast to ``shape``, in [-2**31, 2**31]; a
            fraction is cut off, as in JAX. The values of tensors are not checked: out of order,
            the draw is ``minval``.

    Raises:
        TypeError: bounds that are not numbers.
        ValueError: not ``minval < maxval``, or the bounds do not fit in 32 bits; or tensors that do
            not broadcast to ``shape``.

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
    # Modulo 2**32 as in JAX; the int64 product may wrap, its low word is right all the same.
    return ((high * multiplier + low) & _WORD) % span + minval


def permutation(key: Key, x: int | Tensor, axis: int = 0, independent: bool = False) -> Tensor:
    """A uniformly random order.

    An integer n gives int64 [n], the numbers below n in a random order. A tensor gives its rows
    along ``axis`` in a random order; with ``independent`` each vector along it has an order of its
    own.

    Raises:
        TypeError: ``x`` is neither an integer nor a tensor.
        ValueError: ``x`` has no such axis; or the key begins at a row, see ``from_row``.

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
    # Sorting by random words: enough rounds that ties do not matter (as many as JAX makes).
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
    open_below = -1.0 + 2.0**-24  # the float32 that follows -1
    # uniform on (-1, 1): the span is 2, a product with which is exact.
    return _SQRT2 * erfinv(_unit(key, _shape(shape)) * 2.0 + open_below)


def truncated_normal(key: Key, lower: float, upper: float, shape: Shape | None = None) -> Tensor:
    """Standard normal float32 draws conditioned on lying in (lower, upper).

    The inverse of the distribution function, of one uniform draw for each element. Within 2 of the
    centre that is done in float32 and equals JAX to a few units in the last place; beyond it, where
    float32 does not resolve the distribution function, it is done in float64, on its logarithm.

    Args:
        lower, upper: numbers, which may be infinite.

    Raises:
        ValueError: not ``lower < upper``.

    >>> fcifar.random.truncated_normal(fcifar.random.key(0), 6.0, torch.inf, (3,))
    tensor([6.4621, 6.5959, 6.0652])
    """
    shape = _shape(() if shape is None else shape)
    lower, upper = (float(_number("a bound of truncated_normal", v, key)) for v in (lower, upper))
    if not lower < upper:
        raise ValueError(f"truncated_normal needs lower < upper, not {lower} and {upper}")
    unit = _unit(key, shape)
    if key.is_mps:  # which has no float64
        return truncated_normal(key.cpu(), lower, upper, shape).to(key.device)
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
    """Draws from the categorical distributions of ``logits`` along ``axis``: int64.

    ``shape`` defaults to the shape of ``logits`` without ``axis``, which must broadcast to it;
    leading axes are independent draws. The method is the Gumbel-max trick, in float32 at the least.

    Raises:
        TypeError: ``logits`` is not a tensor.
        ValueError: ``logits`` has no such axis, no element along it, or another shape.

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
    axis -= logits.ndim  # counted from the end, because leading axes may come
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
    """A shape as a tuple, of an integer or a sequence of them."""
    try:
        sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        sizes = tuple(n if isinstance(n, torch.SymInt) else operator.index(n) for n in sizes)
    except TypeError as error:
        raise TypeError(f"a shape is an integer or a sequence of integers, not {shape}") from error
    if any(n < 0 for n in sizes):
        raise ValueError(f"the sizes of a shape are 0 or more, not {list(sizes)}")
    return sizes


def _axis(where: str, axis: int, ndim: int) -> int:
    """The axis counted from the front."""
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
    """NumPy's numbers as Python's, arrays as tensors, numbers and tensors as they are."""
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
    """An integer, or what is left of a float without its fraction; a tensor as it is."""
    x = _number(what, x, key)
    return int(x) if isinstance(x, float) else x


def _filled(x: float | Tensor, key: Key, dtype: torch.dtype = torch.float32) -> Tensor:
    """On the key's device, by a fill rather than a copy, which would wait for a GPU."""
    if isinstance(x, Tensor):
        return x.to(key.device, dtype)
    return torch.full((), x, dtype=dtype, device=key.device)


# Counters and words ------------------------------------------------------------------------------


def _cipher(key: Key, counters: Tensor) -> tuple[Tensor, Tensor]:
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
    y0, y1 = _cipher(key, _counters(key, shape))
    return y0 ^ y1


def _to_words(x: Tensor) -> Tensor:
    return x.to(torch.int64) & _WORD


def _unit(key: Key, shape: Sequence[int]) -> Tensor:
    return shift_right(_bits(key, shape), 9).to(torch.float32) * 2.0**-23


def _scale(unit: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``unit * (high - low) + low``, rounded to float32 once.

    In float64 the product is exact, and so is the sum unless ``low`` is smaller than the span by
    2**26 or more. Then the sum would be rounded twice, and wrongly where the first rounding ends
    half-way between two numbers of float32. So ``low`` is first rounded to a grid that leaves the
    sum exact, and then moved off it by less than a step, to the side that it lay on.

    Args:
        unit: a uniform draw, multiples of 2**-23 in [0, 1).
        low, high: float32, broadcast to ``unit``.
    """
    if unit.is_mps:  # which has no float64: two roundings
        return unit * (high - low) + low
    low = _flush(low)
    span = _flush(_flush(high) - low).double().clamp(min=0)
    grid = 4 * span  # float64 numbers of this size lie 2**-50 of the span apart, or closer
    near = (low + grid) - grid
    near = near + torch.sign(low - near) * (span * 2.0**-52)
    return _flush((unit.double() * span + torch.where(unit > 0, near, low)).float())


def _flush(x: Tensor) -> Tensor:
    """Zero in place of a float32 with less than all of its digits, as XLA has it on a CPU."""
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, 0.0 * x, x)
