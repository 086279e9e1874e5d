"""Whatever calls itself an array is one of plain numbers and text, or one line says why not."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcifar import data
from fcifar.data.readers import npz
from fcifar.errors import UsageError
from tests.helpers import forms
from tests.helpers.fuzzing import ends_well, examples, mutated


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


ARRAYS = {
    "train_images.npy": forms.TRAIN_IMAGES,
    "train_labels.npy": forms.TRAIN_LABELS,
    "test_images.npy": forms.TEST_IMAGES,
    "test_labels.npy": forms.TEST_LABELS,
    "classes.npy": np.array(forms.CLASSES),
}
ODD_ARRAYS = [
    *(np.zeros(shape, np.uint8) for shape in ((), 0, 6, (0, 3, 32, 32), (6, 32, 32, 3), [1] * 32)),
    *(np.full(6, value) for value in (np.nan, np.inf, 0.5, 10**9, -1, 2**63, 2**64 - 1, True, 1j)),
    *(np.zeros((6, 1), ">i2"), np.zeros((6, 0), np.int8), np.zeros((0, 1), np.int64)),
    *(np.zeros(3, kind) for kind in ("U0", "S3", "M8[s]", "V5", [("a\nb", "u1")], "f2", "O")),
    *(np.array(names) for names in (["a", "a", "b"], ["a\nb", "", "c"], [["a"]], ["é", "x" * 500])),
]  # fmt: skip
header_words = st.sampled_from(
    [
        *("(15, 3, 32, 32)", "(6,)", "()", "(-1,)", "(-1, -6)", "(2**60,)", "(1e3,)", "(True,)"),
        *("(4611686018427387904, 4)", "None", "(6L,)", "(0, 99999999999999999999)", "(1,) * 99"),
        *("'|u1'", "'<i8'", "'|O'", "'|S0'", "'<U3'", "[('a', '|u1')]", "[('a', '|O')]", "'a5'"),
        *("'u1, u1'", "('u1', (3,))", "['u1']", "'(2,)u1'", "'\\n'", "'\\d'", "'<U6'", "'M8[s]'"),
        *("False", "True", "6", "x" * 99, "(" * 300, "-" * 999, "1" * 5000, "{1: 2}", "0x1or 2"),
    ]
)


@st.composite
def odd_npy(draw: st.DrawFn) -> bytes:
    words = [draw(header_words) for _ in range(3)]
    if draw(st.booleans()):
        words[0], words[1] = draw(st.sampled_from(["'|u1'", "'<i8'"])), "False"
    text = "{'descr': %s, 'fortran_order': %s, 'shape': %s, }\n" % tuple(words)  # noqa: UP031
    version = draw(st.sampled_from([b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\0", b"\0\0"]))
    form = "<H" if version == b"\1\0" else "<I"
    length = draw(st.sampled_from([len(text)] * 9 + [0, 65535]))
    head = b"\x93NUMPY" + version + struct.pack(form, length)
    return head + text.encode() + bytes(draw(st.sampled_from([0, 1, 6, 48, 500])))


@examples(10)
@given(st.data())
def test_arrays(draw: st.DataObject) -> None:
    files = {name: npy(array) for name, array in ARRAYS.items()}
    for _ in range(draw.draw(st.integers(1, 2))):
        name = draw.draw(st.sampled_from(sorted(ARRAYS)))
        odd = st.sampled_from(ODD_ARRAYS).map(npy)
        files[name] = draw.draw(st.one_of(odd_npy(), odd, mutated(st.just(files[name]))))
        ends_well(npz.load_array, name, files[name])
    if draw.draw(st.booleans()):
        del files["classes.npy"]
    content = ends_well(npz.read, files)
    if content is not None:
        ends_well(data.make_dataset, "set", content.train, content.test, content.classes, "")


def test_a_header_of_python_2_is_read_without_a_warning() -> None:
    content = npy(np.arange(6)).replace(b"(6,), }  ", b"(6L,), } ")
    assert ends_well(npz.load_array, "a.npy", content).tolist() == list(range(6))


@pytest.mark.parametrize("order", "<>")
def test_letters_that_no_text_has_are_refused(order: str) -> None:
    names = npy(np.array(["ant", "bee", "cow"], f"{order}U3"))
    files = {name: npy(array) for name, array in ARRAYS.items()}
    assert npz.read(files | {"classes.npy": names}).classes == forms.CLASSES
    with pytest.raises(UsageError, match="classes holds letters that are none"):
        npz.read(files | {"classes.npy": names[:-4] + b"\xff" * 4})


def test_labels_below_zero_are_named_without_class_names() -> None:
    files = {name: npy(array) for name, array in ARRAYS.items() if name != "classes.npy"}
    files["train_labels.npy"] = files["test_labels.npy"] = npy(np.full(6, -9))
    assert npz.read(files).classes == ("0",)
