"""Bytes from strangers: how they are made, and what may come of them."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from fcifar.errors import ExternalError, UsageError

SECONDS = 5.0  # of the processor; what is bounded takes milliseconds


def examples(times: float) -> settings:
    """``times`` as many random cases as the profile has."""
    return settings(max_examples=round(times * settings.default.max_examples))


def ends_well(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What ``function`` returns, or None after an error of ours: one line, and no warnings."""
    started = time.process_time()
    result, message = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*arguments, **named)
        except (UsageError, ExternalError) as error:
            message = str(error)
    assert message.isprintable(), message
    assert len(message) < 10_000, message
    assert not caught, [str(warning.message) for warning in caught]
    assert time.process_time() - started < SECONDS
    return result


def everything(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders below a folder, hidden ones as well."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


# Mutations ----------------------------------------------------------------------------------------

_EDGES = [b"\0", b"\xff", b"\x7f", b"\x80", b"0", b"9", b"-", b" ", b"\n", b".", b"/", b"\xff" * 8]
_pieces = st.one_of(st.binary(max_size=6), st.sampled_from(_EDGES))
_places = st.one_of(st.integers(0, 600), st.integers(-300, -1), st.integers(0, 10**6))


def _flip(data: bytearray, place: int, piece: bytes) -> None:
    data[place] ^= 1 << (len(piece) % 8)


def _overwrite(data: bytearray, place: int, piece: bytes) -> None:
    data[place : place + len(piece)] = piece


def _insert(data: bytearray, place: int, piece: bytes) -> None:
    data[place:place] = piece


def _delete(data: bytearray, place: int, piece: bytes) -> None:
    del data[place : place + len(piece) + 1]


def _truncate(data: bytearray, place: int, piece: bytes) -> None:
    del data[place:]


def _repeat(data: bytearray, place: int, piece: bytes) -> None:
    data[place:place] = data[place : place + 40] * (len(piece) + 1)


_CHANGES = (_flip, _flip, _overwrite, _overwrite, _insert, _delete, _truncate, _repeat)


@st.composite
def mutated(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """One of ``seeds`` with one to six changes, most of them near its two ends."""
    data = bytearray(draw(seeds))
    changes = st.tuples(st.sampled_from(_CHANGES), _places, _pieces)
    for change, place, piece in draw(st.lists(changes, min_size=1, max_size=6)):
        if data:
            change(data, place % len(data), piece)
    return bytes(data)
