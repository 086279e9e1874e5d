"""Whatever became of a prepared file: what is read is what was stored, or one line says no."""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fcifar import data, tree
from fcifar.data import store
from fcifar.errors import ExternalError
from tests.helpers import forms
from tests.helpers.fuzzing import ends_well, examples, mutated

CLASSES = ("ant", "bée", "cow")  # é is written with digits, which may be in either case
DATASET = data.make_dataset(
    "set",
    data.Split(torch.from_numpy(forms.TRAIN_IMAGES[4:6]), torch.tensor([0, 1])),
    data.Split(torch.from_numpy(forms.TEST_IMAGES[:1]), torch.tensor([2])),
    CLASSES,
    "made up, of é and \\",
)
with tempfile.TemporaryDirectory() as folder:
    WHOLE = data.save(DATASET, Path(folder)).read_bytes()
HEAD = 8 + int.from_bytes(WHOLE[:8], "little")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for all cases: making one takes longer than a case."""
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


def check(root: Path, content: bytes) -> None:
    (root / "set.safetensors").write_bytes(content)
    listed = ends_well(data.list_prepared, root)
    assert [entry.name for entry in listed] == ["set", "shapes10"]
    assert listed[0].problem.isprintable()
    assert all(isinstance(name, str) for name in listed[0].classes)
    found = ends_well(data.load, "set", root)
    if ends_well(data.verify, "set", root) is not None:
        assert found.digest == data.content_digest(*found[1:5], found.classes)
    counted = ends_well(data.info, "set", root)
    assert (counted is None) == (found is None)


@examples(15)
@given(position=st.one_of(st.integers(0, 8 * HEAD - 1), st.integers(0, 8 * len(WHOLE) - 1)))
def test_one_flipped_bit_is_noticed_or_changes_nothing(place: Path, position: int) -> None:
    content = bytearray(WHOLE)
    content[position // 8] ^= 1 << position % 8
    (place / "set.safetensors").write_bytes(content)
    if ends_well(data.verify, "set", place) is not None:
        found = data.load("set", place)
        assert tree.equal(found[1:5], DATASET[1:5])
        assert (found.classes, found.digest) == (CLASSES, DATASET.digest)
        assert position // 8 < HEAD


@examples(5)
@given(content=mutated(st.just(WHOLE)))
def test_mutated_files(place: Path, content: bytes) -> None:
    check(place, content)


@examples(2)
@given(length=st.sampled_from([0, 2, 8, 2**20, 2**32, 2**63, 2**64 - 1]), content=st.binary())
def test_random_bytes(place: Path, length: int, content: bytes) -> None:
    check(place, struct.pack("<Q", length) + content)
    check(place, struct.pack("<Q", len(content)) + content)


# Headers that lie ---------------------------------------------------------------------------------

numbers = st.sampled_from(
    [0, 1, 2, 3, 32, 96, 3072, 2**31, 2**62, 2**63, 2**64 - 1, -1, 2**70, 0.5]
)
types = st.sampled_from(
    ["U8", "I8", "I64", "U64", "F64", "BOOL", "BF16", "C64", "F4", "F6_E2M3", "F8_E8M0", "X", ""]
)
shapes = st.one_of(
    st.lists(numbers, max_size=5), st.just([2, 3, 32, 32]), st.just([0, 3, 32, 32]), st.just([2])
)
named = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats(), st.just("\n")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
).map(json.dumps) | st.sampled_from(['["a"]', "", "[", "[" * 100_000, '"abc"', '{"a": 1}', "NaN"])


@examples(10)
@given(draw=st.data())
def test_headers_that_lie(place: Path, draw: st.DataObject) -> None:
    header, end = {}, 0
    for name, tensor in zip(store._TENSORS, DATASET[1:5], strict=True):
        dtype, shape = "U8" if tensor.ndim == 4 else "I64", list(tensor.shape)
        size = tensor.numel() * tensor.element_size()
        if draw.draw(st.integers(0, 3)) == 0:
            dtype, shape = draw.draw(types), draw.draw(shapes)
            size = draw.draw(st.sampled_from([0, size, 16]))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    words = {"format": store.FORMAT, "classes": '["a", "b", "c"]', "source": "", "digest": "\n"}
    if draw.draw(st.booleans()):
        words["classes"] = draw.draw(named)
    for name in draw.draw(st.lists(st.sampled_from(sorted(words)), max_size=1)):
        words[name] = draw.draw(st.text(max_size=5))
    text = json.dumps(header | {"__metadata__": words}).encode()
    check(place, struct.pack("<Q", len(text)) + text + bytes(end))


@pytest.mark.parametrize(
    "classes", ["3", "null", '"ab"', '{"a": 1}', "[1, 2]", "[[]]", "[" * 10**5]
)
def test_class_names_that_are_no_list_of_text(root: Path, classes: str) -> None:
    tensors = {
        name: tensor.clone() for name, tensor in zip(store._TENSORS, DATASET[1:5], strict=True)
    }
    root.mkdir()
    words = {"format": store.FORMAT, "classes": classes, "source": "", "digest": ""}
    save_file(tensors, root / "set.safetensors", words)
    with pytest.raises(ExternalError, match="damaged or not a prepared data set"):
        data.load("set", root)
    assert data.list_prepared(root)[0].problem


def test_a_digest_of_several_lines_is_shown_on_one(root: Path) -> None:
    data.save(DATASET._replace(digest="a\nb" * 1000), root)
    with pytest.raises(ExternalError, match="is damaged: its content has digest") as caught:
        data.verify("set", root)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_what_is_no_file_is_listed_with_its_problem(root: Path) -> None:
    (root / "set.safetensors").mkdir(parents=True)
    assert ends_well(data.list_prepared, root)[0].problem
    assert ends_well(data.load, "set", root) is None
