"""Writes ``jax_random_calls.json``: what jax.random makes of drawn seeds, shapes and bounds.

    pip install 'fcifar[jax]' && python tests/golden/make_jax_random.py

Each case is a call of a function by its name, with arguments of JSON alone. The same calls of
fcifar are made by ``tests/test_random.py``, and with ``--long`` others of an installed JAX, too. No
other test of it needs jax.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Case = dict[str, Any]  # call, seed, and options; of those, lists in "arrays" are arrays

SHAPES = ((), (1,), (7,), (33,), (2, 3), (3, 1, 4), (0,), (2, 0), (128,))
BOUNDS = (
    *((-math.pi, math.pi), (-0.3, 0.7), (-1 / 3, 1 / 3), (0.0, 3.0), (5.5, 5.75), (1000.1, 1001.3)),
    # A bound so small beside the other that the sum of float64 numbers is rounded twice.
    *((1e-20, 3.0), (-1e-20, 3.0), (2.0**-30 + 2.0**-53, 3.3), (-3e-9, 11.0), (-1e-30, 1.0)),
    *((-1e-38, 1e-38), (-2e-38, 3e-38), (1e-40, 1e-30), (-1e30, 1.0), (0.0, 3e38)),
)
"""For ``uniform``, beside those that are drawn."""


def _number(draw: Random) -> float:
    return draw.choice((-1, 1)) * draw.uniform(1, 10) * 10 ** draw.uniform(-6, 4)


def _ordered(draw: Random, number: Callable[[Random], Any]) -> tuple[Any, Any]:
    a, b = number(draw), number(draw)
    return (min(a, b), max(a, b)) if a != b else _ordered(draw, number)


def _cut(draw: Random, shape: list[int]) -> list[int]:
    """A shape that broadcasts to ``shape``: fewer axes, or some of size 1."""
    kept = shape[draw.randrange(len(shape)) :]
    return [n if draw.random() < 0.7 else 1 for n in kept]


def _array(shape: list[int], make: Callable[[], Any]) -> Any:
    return [_array(shape[1:], make) for _ in range(shape[0])] if shape else make()


def _bounds(draw: Random, shape: list[int], number: Callable[[Random], Any], names: Any) -> Case:
    """Two numbers, or one time in four arrays; those stand in any order."""
    if not shape or 0 in shape or draw.random() < 0.75:
        return dict(zip(names, _ordered(draw, number), strict=True))
    return {n: _array(_cut(draw, shape), lambda: number(draw)) for n in names}


def _logits(draw: Random) -> Case:
    shape = list(draw.choice([s for s in SHAPES if s and 0 not in s]))
    axis = draw.randrange(-len(shape), len(shape))
    batch = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    wide = [n if n > 1 else draw.choice((1, 5)) for n in batch]
    logits = _array(shape, lambda: draw.gauss(0, 2))
    sizes = draw.choice((None, batch, wide, [3, *wide]))
    return {"logits": logits, "axis": axis, "shape": sizes}


def _rows(draw: Random) -> Case:
    if draw.random() < 0.4:
        return {"x": draw.randint(0, 200)}
    shape = list(draw.choice([s for s in SHAPES if s]))
    x = _array(shape, lambda: draw.randrange(1000)) if 0 not in shape else draw.randint(0, 5)
    axis = draw.randrange(-len(shape), len(shape)) if 0 not in shape else 0
    return {"x": x, "axis": axis, "independent": draw.random() < 0.4}


def _options(draw: Random, name: str) -> Case:
    shape = list(draw.choice(SHAPES))
    given: Any = shape[0] if len(shape) == 1 and draw.random() < 0.5 else shape
    if name == "key":
        return {}
    if name == "split":
        return {"num": given}
    if name == "fold_in":
        return {"data": draw.choice((draw.randrange(2**32), draw.randrange(100)))}
    if name == "uniform":
        return {"shape": given} | _bounds(draw, shape, _number, ("minval", "maxval"))
    if name == "randint":
        near = draw.random() < 0.5
        low, high = (-100, 100) if near else (-(2**31), 2**31)
        whole = _bounds(draw, shape, lambda d: d.randrange(low, high), ("minval", "maxval"))
        return {"shape": given} | whole
    if name == "bernoulli":
        if not shape or 0 in shape or draw.random() < 0.6:
            return {"p": draw.random(), "shape": given}
        p = _array(_cut(draw, shape), draw.random)
        return {"p": p, "shape": draw.choice((given, None))}
    if name == "truncated_normal":
        lower, upper = _ordered(draw, lambda d: d.uniform(-2, 2))
        return {"lower": lower, "upper": upper, "shape": given}
    if name == "permutation":
        return _rows(draw)
    if name == "categorical":
        return _logits(draw)
    return {"shape": given}  # bits, normal, gumbel


NAMES = (
    *("key", "split", "fold_in", "bits", "uniform", "bernoulli", "randint", "permutation"),
    *("normal", "truncated_normal", "gumbel", "categorical"),
)


def cases(name: str, number: int, seed: int = 0) -> list[Case]:
    """Some calls of a function, the same ones each time for a seed."""
    draw = Random(f"{name} {seed}")
    found = [
        {
            "call": name,
            "seed": draw.choice((draw.randrange(-(2**31), 2**32), draw.randrange(100))),
            "options": _options(draw, name),
        }
        for _ in range(number)
    ]
    if name == "uniform":
        found += [
            {"call": name, "seed": i, "options": {"shape": [64], "minval": a, "maxval": b}}
            for i, (a, b) in enumerate(BOUNDS)
        ]
    return found


ARRAYS = ("minval", "maxval", "p", "x", "logits")


def by_jax(case: Case) -> dict[str, Any]:
    """The shape of what JAX returns, and its elements; of floats the bit patterns."""
    import jax
    import numpy as np

    options = {
        k: np.asarray(v, np.float32 if k in ("p", "logits") else None)
        if k in ARRAYS and isinstance(v, list)
        else tuple(v)
        if isinstance(v, list)
        else v
        for k, v in case["options"].items()
    }
    key = jax.random.key(case["seed"])
    value = key if case["call"] == "key" else getattr(jax.random, case["call"])(key, **options)
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    words = array.view(np.int32) if array.dtype == np.float32 else array.astype(np.int64)
    return {"shape": list(array.shape), "values": words.ravel().tolist()}


def main() -> None:
    """Write the file."""
    import jax

    golden = {
        "source": f"jax {jax.__version__}, 32-bit mode, on a CPU: tests/golden/make_jax_random.py",
        "float_encoding": "IEEE-754 binary32 bit patterns as signed integers",
        "cases": [{**case, **by_jax(case)} for name in NAMES for case in cases(name, 20)],
    }
    path = Path(__file__).with_name("jax_random_calls.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
