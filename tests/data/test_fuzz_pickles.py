"""Any pickle gives a dict of harmless values, or one line. What it asks to be called never is."""

import copyreg
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcifar.data.readers.safe_pickle import load_pickle
from fcifar.errors import UsageError
from tests.helpers import forms
from tests.helpers.fuzzing import ends_well, examples, mutated

CALLS: list[tuple[Any, ...]] = []


def canary(*arguments: Any, **options: Any) -> dict[str, Any]:
    """What a pickle must not be able to call."""
    CALLS.append(arguments)
    return {}


class Canary:
    """What a pickle must not be able to make, nor change."""

    touched = False

    def __init__(self, *arguments: Any) -> None:
        canary(*arguments)

    def __setstate__(self, state: Any) -> None:
        canary(state)


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    """The canary has a code of its own, and another unpickler has used it: it is in a cache."""
    copyreg.add_extension(__name__, "canary", 77)
    assert pickle.loads(b"\x82\x4d.") is canary
    yield
    copyreg.remove_extension(__name__, "canary", 77)


def load(data: bytes) -> None:
    found = ends_well(load_pickle, "batch", data)
    assert not CALLS
    assert not Canary.touched
    for key, value in (found or {}).items():
        assert type(key) is str
        assert not callable(value)
        assert not isinstance(value, np.ndarray) or value.dtype.kind in "iu"


# Programs out of steps ----------------------------------------------------------------------------

MODULE = __name__.encode()
GLOBALS = [
    *((b"numpy", b"ndarray"), (b"numpy", b"dtype"), (b"numpy._core.multiarray", b"_reconstruct")),
    *((b"_codecs", b"encode"), (b"numpy._core.numeric", b"_frombuffer")),
    *((MODULE, b"canary"), (MODULE, b"Canary"), (b"os", b"system"), (b"builtins", b"eval")),
    *(
        (b"numpy", b"ndarray.tofile"),
        (b"fcifar.data.readers.safe_pickle", b"_Unpickler"),
        (b"\xff", b"a"),
    ),
]
TEXTS = [b"", b"a", b"u1", b"|", b"latin1", b"data", b"canary", b"touched", MODULE, b"x" * 300]
LENGTHS = [0, 1, 2, 5, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
PLAIN = [pickle.dumps(value, 2)[2:-1] for value in (None, True, 3, 2**40, -1, 0.5, "a", 2**70)]


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


@st.composite
def lengthy(draw: st.DrawFn) -> bytes:
    """A value with its length before it, which may be a lie."""
    code, form = draw(
        st.sampled_from(
            [
                *((b"T", "<I"), (b"U", "B"), (b"B", "<I"), (b"C", "B"), (b"X", "<I")),
                *((b"\x8c", "B"), (b"\x8d", "<Q"), (b"\x8e", "<Q"), (b"\x96", "<Q")),
                *((b"\x8a", "B"), (b"\x8b", "<I"), (b"\x95", "<Q")),
            ]
        )
    )
    content = draw(st.sampled_from(TEXTS))
    length = draw(st.sampled_from([len(content)] * 9 + LENGTHS))
    return code + struct.pack(form, min(length, 256 ** struct.calcsize(form) - 1)) + content


@st.composite
def memo(draw: st.DrawFn) -> bytes:
    index = draw(st.one_of(st.integers(0, 5), st.sampled_from(LENGTHS)))
    kind = draw(st.sampled_from("pgqhrj\x94"))
    if kind in "pg":
        return f"{kind}{index}\n".encode()
    if kind in "qh":
        return kind.encode() + bytes([index % 256])
    return kind.encode() + struct.pack("<I", index % 2**32) if kind in "rj" else b"\x94"


named = st.sampled_from(GLOBALS)
steps = st.one_of(
    st.sampled_from([bytes([code]) for code in b"(012})]tldaesub.RoQN\x81\x85\x86\x87\x88\x89\x8f"])
    | st.sampled_from([bytes([code]) for code in b"\x90\x91\x92\x93\x94\x97\x98RRbb"]),
    st.sampled_from([text(value) for value in TEXTS]),
    st.sampled_from(PLAIN),
    named.map(lambda pair: b"c%s\n%s\n" % pair),
    named.map(lambda pair: b"(i%s\n%s\n" % pair),
    named.map(lambda pair: text(pair[0]) + text(pair[1]) + b"\x93"),
    named.map(lambda pair: b"c%s\n%s\n)R" % pair),
    named.map(lambda pair: b"(c%s\n%s\nK\x01o" % pair),
    st.sampled_from([b"\x82\x4d", b"\x83\x4d\0", b"\x84\x4d\0\0\0", b"\x82\x4d)R", b"P1\n"]),
    st.sampled_from(
        [b"I1\n", b"L1L\n", b"F1\n", b"I1_0\n", b"S'\\x'\n", b"V\\ud800\n", b"\x80\x05"]
    ),
    lengthy(),
    memo(),
    st.binary(max_size=3),
)
programs = st.lists(steps, max_size=30).map(b"".join)


@examples(5)
@given(st.binary(max_size=100), st.sampled_from([b"", b"}", b"\x80\x02}", b"(dp0\n"]))
def test_random_bytes(data: bytes, start: bytes) -> None:
    load(start + data)


@examples(20)
@given(programs, st.sampled_from([b".", b"}.", b"u.", b"s.", b""]))
def test_random_steps(program: bytes, end: bytes) -> None:
    load(b"\x80\x04}(" + program + end)


@examples(10)
@given(programs, programs)
def test_steps_beside_what_is_good(first: bytes, second: bytes) -> None:
    """The state and the arguments of a real array, with other steps in between."""
    array = (
        b"cnumpy._core.multiarray\n_reconstruct\n" + first + b"\x85R(K\x01K\x02\x85cnumpy\ndtype\n"
    )
    state = text(b"u1") + b"\x85R(K\x03" + text(b"|") + second + b"tb\x89C\x02abtb"
    load(b"\x80\x04}" + text(b"data") + array + state + b"s.")


@examples(10)
@given(mutated(st.sampled_from([forms.official(protocol)["test_batch"] for protocol in range(6)])))
def test_mutated_batches(data: bytes) -> None:
    load(data)


@examples(2)
@given(mutated(st.just(forms.python2_batch(forms.TEST_IMAGES, forms.TEST_LABELS))))
def test_mutated_batches_of_python_2(data: bytes) -> None:
    load(data)


# Plain cases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        b"c%s\ncanary\n)R" % MODULE,
        b"(i%s\ncanary\n" % MODULE,
        b"(c%s\ncanary\no" % MODULE,
        b"c%s\nCanary\n)\x81" % MODULE,
        b"c%s\nCanary\n)}\x92" % MODULE,
        b"c%s\nCanary\n}%sI01\nsb" % (MODULE, text(b"touched")),
        text(MODULE) + text(b"canary") + b"\x93)R",
        b"\x82\x4d)R",
        b"\x83\x4d\0)R",
        b"\x84\x4d\0\0\0)R",
    ],
)
def test_no_step_reaches_the_canary(call: bytes) -> None:
    with pytest.raises(UsageError, match="batch"):
        load_pickle("batch", b"\x80\x04" + call + b".")
    assert not CALLS
    assert not Canary.touched


ONCE = text(b"y" * 1_000_000)
ENCODE = text(b"latin1") + b"q\1" + b"0c_codecs\nencode\nq\2" + b"0"
TIMES = b"](" + b"h\2h\0h\1\x86R" * 60 + b"e"
NUMBER = b"\x8b" + struct.pack("<I", 4_000_000) + b"\x7f" * 4_000_000
DTYPE = b"cnumpy\ndtype\n" + text(b"u1") + b"\x85R(K\3" + text(b"|") + b"tb"
STATE = b"(K\1(" + NUMBER * 4 + b"t" + DTYPE + b"\x89C\0t"

BOMBS = {
    "a text, copied many times": ONCE + b"q\0" + b"0" + ENCODE + TIMES,
    "the same without tuples": ONCE + b"q\0" + b"0](" + b"(h\0h\1i_codecs\nencode\n" * 1000 + b"e",
    "bytes, decoded many times": b"B" + ONCE[1:] + b"q\0" + b"0](" + b"h\0" * 1000 + b"e",
    "a list under many keys": b"](" + b"N" * 100_000 + b"eq\0"
    + b"0}(" + b"".join(b"J" + struct.pack("<I", i) + b"h\0" for i in range(50_000)) + b"u",
    "very many sets": b"](" + b"\x8f" * 5_000_000 + b"e",
    "very many steps": b"N0" * 10_000_000,
    "a memo as large as the file": b"Nr" + struct.pack("<I", 16_000_000) + b"C\1a0" * 5_000_000,
    "a shape of enormous numbers": b"}" + text(b"a") + b"cnumpy\nndarray\n)R" + STATE + b"bs",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_multiplies_is_refused(name: str) -> None:
    assert ends_well(load_pickle, "batch", b"\x80\x04" + BOMBS[name] + b".") is None


def test_a_name_of_a_megabyte_is_cut() -> None:
    with pytest.raises(UsageError, match=r"tries to load 'aaa.*aaa'; it is no") as caught:
        load_pickle("batch", b"c" + b"a" * 2**20 + b"\nb" + b"a" * 2**20 + b"\n.")
    assert len(str(caught.value)) < 1000


def test_a_batch_of_no_images_is_read() -> None:
    batch = load_pickle("batch", pickle.dumps({"data": np.zeros((0, 3072), np.uint8)}))
    assert batch["data"].shape == (0, 3072)
