"""Find keys that are used twice: ``with fcifar.random.no_reuse(): ...``.

A key is a value, so that it is compared by value: a copy, or a key made again from the same seed,
is the same key. The rules follow from what a draw is, the cipher's outputs from 0 on:

* Two draws from one key are an error, of any shapes and distributions: one is a function of the
  other. Draws of disjoint rows (``from_row``, ``skip_rows``) are parts of one draw, and are fine;
  so is a draw of shape () by several rows, which share it.
* A draw and a ``split``, ``fold_in`` or ``row_keys`` of one key are an error.
* Deriving keys several times is fine: ``fold_in`` with different numbers gives different keys.
  ``split`` twice gives the same children twice, which is an error once a child is drawn from twice.
  JAX (``jax_debug_key_reuse``) already rejects the second split.
* Under ``vmap``, the keys of all examples are compared, those of one call with each other as well.
* ``clone(key)`` declares the second use of a key to be intended, as ``jax.random.clone`` does;
  ``allow_reuse`` excludes a block.

What is not seen: compiled functions, draws in other threads than the one that entered the context,
keys on the meta device, and a key that ``vmap`` does not map over, whose one draw all examples get.
"""

import contextlib
import math
import sys
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from fcifar.errors import relative_to_path
from fcifar.random import threefry

_Words = tuple[int, int]
_HOW = "split it, and use each key once: a, b = fcifar.random.split(key)"


class KeyReuseError(RuntimeError):
    """A key was used twice."""


class _Draw(NamedTuple):
    start: int  # of its counters
    stop: int
    row: int | None  # of a key with a row, if the draw has shape () and is that of all rows
    place: str


class _Record(NamedTuple):
    """The uses of keys so far; its size is proportional to the number of keys."""

    draws: dict[_Words, list[_Draw]]
    derived: dict[_Words, str]  # keys that others were derived from, and where
    parents: dict[_Words, _Words]


_record: ContextVar[_Record | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def no_reuse() -> Generator[None]:
    """Raise a ``KeyReuseError`` when a key is used twice, with the places of both uses.

    For debugging: it reads the value of each key, hence waits for a GPU, and remembers all of them
    until the end of the context. A context inside another one is a part of it. The rules are those
    of this module, ``fcifar.random.reuse``. Run one or two steps of a program in it, without
    ``torch.compile``.

    Raises:
        KeyReuseError: at the second use.

    >>> key = fcifar.random.key(0)
    >>> with fcifar.random.no_reuse():
    ...     flip = fcifar.random.bernoulli(key, 0.5, (6,))
    ...     shift = fcifar.random.uniform(key, (6, 2))  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    KeyReuseError: key [0, 0] is drawn from twice, first at <doctest>:2 and again at <doctest>:3
    """
    if _record.get() is not None:
        yield
        return
    token = _record.set(_Record({}, {}, {}))
    try:
        yield
    finally:
        _record.reset(token)


@contextlib.contextmanager
def allow_reuse() -> Generator[None]:
    """Do not record the uses of keys in this context, such as a test that calls a step twice.

    >>> key = fcifar.random.key(0)
    >>> with fcifar.random.no_reuse():
    ...     with fcifar.random.allow_reuse():
    ...         a, b = (fcifar.random.uniform(key) for _ in range(2))
    """
    token = _record.set(None)
    try:
        yield
    finally:
        _record.reset(token)


def clone(key: Tensor) -> Tensor:
    """Return ``key``, to use it a second time on purpose: ``no_reuse`` forgets its uses so far.

    Also those of the keys derived from it.

    >>> key = fcifar.random.key(0)
    >>> with fcifar.random.no_reuse():
    ...     a = fcifar.random.uniform(key, (3,))
    ...     b = fcifar.random.uniform(fcifar.random.clone(key), (3,))
    """
    if is_on():
        _forget(key)
    return key


def is_on() -> bool:
    """Whether uses of keys are recorded here. Constant while ``torch.compile`` records.

    Not while the cipher is replaced, such as by one that computes nothing.
    """
    if torch.compiler.is_compiling() or _record.get() is None:
        return False
    return not threefry.is_replaced()


def note_draw(key: Tensor, shape: Sequence[int]) -> None:
    """Record a draw of ``shape``; raise a KeyReuseError if it shares words with an earlier use."""
    record, keys, size = _record.get(), _values(key), math.prod(shape)
    if record is None or keys is None or not size:
        return
    place = _place()
    new: dict[_Words, list[_Draw]] = {}
    for words in keys[0]:
        first = words[2] * math.prod(shape[1:]) if len(words) == 3 and shape else 0
        row = words[2] if len(words) == 3 and not shape else None
        draw, key_words = _Draw(first, first + size, row, place), (words[0], words[1])
        name = _name(record, key_words)
        if key_words in record.derived:
            raise _mixed(
                name, f"split or folded at {record.derived[key_words]}", "drawn from", place
            )
        for earlier in record.draws.get(key_words, ()):
            if _overlap(earlier, draw):
                raise KeyReuseError(
                    f"{name} is drawn from twice, first at {earlier.place} and again "
                    f"{'there' if earlier.place == place else f'at {place}'}: the draws are not "
                    f"independent; {_HOW}"
                )
        if any(_overlap(earlier, draw) for earlier in new.get(key_words, ())):
            raise KeyReuseError(
                f"{name} is the key of two examples under vmap at {place}, which get the same "
                "draw; give each its own: fcifar.random.row_keys(key, count)"
            )
        new.setdefault(key_words, []).append(draw)
    for key_words, draws in new.items():
        record.draws.setdefault(key_words, []).extend(draws)


def note_children(key: Tensor, children: Tensor) -> None:
    """Record that ``children`` [..., 2 or 3] are derived from ``key``.

    Raises a KeyReuseError if ``key`` was drawn from.
    """
    record, keys, derived = _record.get(), _values(key), _values(children)
    if record is None or keys is None or derived is None:
        return
    place = _place()
    for words in keys[0]:
        key_words = (words[0], words[1])
        if earlier := record.draws.get(key_words):
            name = _name(record, key_words)
            raise _mixed(name, f"drawn from at {earlier[0].place}", "split or folded", place)
        record.derived.setdefault(key_words, place)
    if keys[1] in (0, derived[1]):  # else which child is whose depends on the order of the vmaps
        each = max(1, len(derived[0]) // len(keys[0]))
        for i, words in enumerate(derived[0]):
            parent = keys[0][min(i // each, len(keys[0]) - 1)]
            record.parents.setdefault((words[0], words[1]), (parent[0], parent[1]))


# Values and places -------------------------------------------------------------------------------


def _forget(key: Tensor) -> None:
    """Forget the uses of a key, and of all keys derived from it."""
    record, keys = _record.get(), _values(key)
    if record is None or keys is None:
        return
    tops = {(words[0], words[1]) for words in keys[0]}
    for uses in (record.draws, record.derived):
        for used in [k for k in uses if not tops.isdisjoint(_lineage(record, k))]:
            del uses[used]


def _overlap(a: _Draw, b: _Draw) -> bool:
    if a.row is not None and b.row is not None:
        return a.row == b.row
    return a.start < b.stop and b.start < a.stop


def _values(key: Tensor) -> tuple[list[list[int]], int] | None:
    """Return the words of the keys of all examples, and by how many ``vmap`` they are mapped.

    None if they have no values, as while a graph is recorded.
    """
    batch_dims = []
    while functorch.is_functorch_wrapped_tensor(key):
        if functorch.is_batchedtensor(key):
            batch_dims.append(functorch.maybe_get_bdim(key))
        key = functorch.get_unwrapped(key)
    if type(key) is not Tensor or key.is_meta:
        return None
    with temporarily_clear_interpreter_stack():
        for i, dim in enumerate(reversed(batch_dims)):  # each counts the axes of the one inside
            key = key.movedim(dim + i, i)
        return key.reshape(-1, key.shape[-1]).tolist(), len(batch_dims)


def _lineage(record: _Record, key: _Words) -> list[_Words]:
    """Return a key and those that it is derived from, the oldest last."""
    lineage = [key]
    while (key := record.parents.get(key, key)) not in lineage:
        lineage.append(key)
    return lineage


def _name(record: _Record, key: _Words) -> str:
    oldest = _lineage(record, key)[-1]
    return f"key {list(key)}" + (f", derived from {list(oldest)}," if oldest != key else "")


def _mixed(name: str, first: str, second: str, place: str) -> KeyReuseError:
    return KeyReuseError(
        f"{name} is {first}, and {second} at {place}: the draw is made of the words of the derived "
        f"keys; {_HOW}"
    )


def _place() -> str:
    """Return file and line of the call into ``fcifar.random``.

    If that is in this package, with the place that called the package.
    """
    frame, inside = sys._getframe(1), ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).split(".")
        if module[0] != "torch" and module[:2] != ["fcifar", "random"]:
            place = f"{relative_to_path(frame.f_code.co_filename)}:{frame.f_lineno}"
            if module[0] != "fcifar":
                return f"{inside} (called from {place})" if inside else place
            inside = inside or place
        frame = frame.f_back
    return inside or "an unknown place"
