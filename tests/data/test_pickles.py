"""A pickle gives plain values and arrays, or one clear line; it never runs anything."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcifar.data.readers.safe_pickle import load_pickle
from fcifar.errors import UsageError
from tests.helpers import forms

PYTHON2 = forms.python2_batch(forms.TEST_IMAGES, forms.TEST_LABELS)
SEEDS = (PYTHON2, *(forms.official(protocol)["test_batch"] for protocol in range(6)))


def test_what_python_2_wrote_is_read() -> None:
    batch = load_pickle("batch", PYTHON2)
    assert np.array_equal(batch["data"], forms.TEST_IMAGES.reshape(6, 3072))
    assert batch["labels"] == forms.TEST_LABELS.tolist()


class Runs:
    """Asks to be made by calling ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, eval, np.load, np.dtypes.UInt8DType])
def test_code_is_refused_by_name_and_not_run(
    tmp_path: Path, protocol: int, function: Callable[..., Any]
) -> None:
    target = tmp_path / "made"
    data = pickle.dumps({"data": Runs(function, str(target))}, protocol)
    with pytest.raises(UsageError, match=r"batch tries to load '[\w.]+'; it is not an official"):
        load_pickle("batch", data)
    assert not target.exists()


def test_dotted_names_do_not_reach_further() -> None:
    data = b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."
    with pytest.raises(UsageError, match=r"tries to load 'numpy\.ndarray\.tofile'"):
        load_pickle("batch", data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # state for the class itself
        b"\x80\x02cnumpy\nndarray\nN}X\x01\x00\x00\x00aK\x01s\x86b.",  # and for its slots
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8tR.",
        b"\x80\x02cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR.",
        b"\x80\x02\x82\x01.",  # an entry of the extension registry
        b"\x80\x02K\x01Q.",  # a persistent id
    ],
)
def test_doors_that_are_shut(data: bytes) -> None:
    with pytest.raises(UsageError):
        load_pickle("batch", data)


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(UsageError, match="batch"):
        load_pickle("batch", pickle.dumps({"data": np.array([None, "a"], dtype=object)}))


def bomb_of_tuples(levels: int) -> bytes:
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))
    return b"\x80\x02}K\x01\x85" + doubled + b"K\x01s."


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02r\xff\xff\xff\x7f}.",  # a memo of sixteen gigabytes
        b"\x80\x02}" + b"2" * 9 + b".",
        bomb_of_tuples(40),
        b"\x80\x02}K\x01" + b"\x85" * 1_000_000 + b"K\x01s.",
        b"\x80\x02}K\x01" + b"\x85q\x002h\x00\x86" * 40 + b"K\x01s.",
        b"\x80\x02}K\x01\x85" + b"(uq\x00h\x00\x86" * 40 + b"K\x01s.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",
    ],
)
def test_exhaustion_is_refused_quickly(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError):
        load_pickle("batch", data)
    assert time.monotonic() - started < 5


def ends_well(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(load_pickle("batch", data), dict)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_well(data: bytes) -> None:
    ends_well(b"\x80\x02}" + data)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, len(SEEDS) - 1),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), min_size=1, max_size=6),
)
def test_mutated_batches_end_well(seed: int, changes: list[tuple[int, bytes]]) -> None:
    # The pixels are most of a batch and any of them is fine, so change the two ends of it.
    data = SEEDS[seed]
    mutable = bytearray(data)
    for place, change in changes:
        place = place % 300
        start = place if place < 200 else len(data) - (place - 199)
        mutable[start : start + len(change)] = change
    ends_well(bytes(mutable))


def test_damage_that_python_only_warns_of_is_an_error() -> None:
    with pytest.raises(UsageError, match="not a readable pickle"):
        load_pickle("x", b"S'\\u00'\n.")
