"""Data sets as Hugging Face publishes them, written here with pyarrow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcifar import data
from fcifar.data import ImportOptions
from fcifar.data.readers.cifar import CLASSES
from fcifar.errors import UsageError
from tests.helpers import forms

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TRAIN = (forms.TRAIN_IMAGES, forms.TRAIN_LABELS)
TEST = (forms.TEST_IMAGES, forms.TEST_LABELS)
VALID = (forms.TEST_IMAGES[::-1], forms.TEST_LABELS[::-1])


def shard(
    path: Path,
    images: np.ndarray,
    labels: Any,
    *,
    columns: tuple[str, str] = ("img", "label"),
    names: tuple[str, ...] = forms.CLASSES,
    plain: bool = False,
    **more: Any,
) -> Path:
    """A file as ``datasets`` writes it; ``plain`` without the struct and the metadata."""
    image, label = columns
    encoded = [forms.png(each) for each in images]
    rows = encoded if plain else [{"bytes": e, "path": f"{i}.png"} for i, e in enumerate(encoded)]
    values = labels.tolist() if isinstance(labels, np.ndarray) else labels
    table = pa.table({image: rows, label: values, **more})
    if not plain:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        about = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def same(dataset: data.Dataset, split: str, expected: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    assert np.array_equal(images.numpy(), expected[0])
    assert np.array_equal(labels.numpy(), expected[1])


@pytest.mark.parametrize("above", ["", "data/", "plain_text/"])
def test_a_repository(tmp_path: Path, root: Path, above: str) -> None:
    """Two files of training images, in their order; and the given validation split."""
    folder = tmp_path / "pets" / above
    shard(folder / "train-00000-of-00002.parquet", TRAIN[0][:7], TRAIN[1][:7])
    shard(folder / "train-00001-of-00002.parquet", TRAIN[0][7:], TRAIN[1][7:])
    shard(folder / "test-00000-of-00001.parquet", *TEST)
    (tmp_path / "pets" / "README.md").write_text("hello")
    plain = data.import_source(tmp_path / "pets", None, root)
    assert (plain.name, plain.classes, plain.source) == ("pets", forms.CLASSES, "parquet pets")
    assert plain.digest == data.import_source(forms.write_npz(tmp_path / "a.npz"), "a", root).digest
    shard(folder / "validation-00000-of-00001.parquet", *VALID)
    dataset = data.import_source(tmp_path / "pets", None, root, overwrite=True)
    same(dataset, "train", TRAIN)
    same(dataset, "valid", VALID)
    same(dataset, "test", TEST)


@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_an_archive_of_one(tmp_path: Path, root: Path, form: str) -> None:
    shard(tmp_path / "pets/data/train-0.parquet", *TRAIN)
    shard(tmp_path / "pets/data/test-0.parquet", *TEST)
    files = {f"pets/data/{p.name}": p.read_bytes() for p in (tmp_path / "pets/data").iterdir()}
    write = forms.write_zip if form == "zip" else forms.write_tar
    dataset = data.import_source(write(tmp_path / f"b.{form}", files), None, root)
    same(dataset, "train", TRAIN)
    same(dataset, "test", TEST)


def test_splits_by_folder_and_plain_bytes_and_numbers(tmp_path: Path, root: Path) -> None:
    columns = ("image", "labels")
    shard(tmp_path / "set/train/0000.parquet", *TRAIN, columns=columns, plain=True)
    shard(tmp_path / "set/test/0000.parquet", *TEST, columns=columns, plain=True)
    dataset = data.import_source(tmp_path / "set", None, root)
    assert dataset.classes == ("0", "1", "2")
    same(dataset, "train", TRAIN)


def test_labels_that_are_text(tmp_path: Path, root: Path) -> None:
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        names = [forms.CLASSES[label] for label in labels]
        shard(tmp_path / f"set/{split}.parquet", images, names, plain=True)
    dataset = data.import_source(tmp_path / "set", None, root)
    assert dataset.classes == forms.CLASSES
    same(dataset, "test", TEST)


def test_columns_are_found_by_what_hugging_face_says_of_them(tmp_path: Path, root: Path) -> None:
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        path = tmp_path / f"set/{split}-0.parquet"
        shard(path, images, labels, columns=("photo", "digit"), id=list(range(len(labels))))
    same(data.import_source(tmp_path / "set", None, root), "train", TRAIN)


def test_fine_and_coarse_labels(tmp_path: Path, root: Path) -> None:
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        shard(
            tmp_path / f"set/{split}-0.parquet",
            images,
            labels,
            columns=("img", "fine_label"),
            coarse_label=(labels // 2).tolist(),
        )
    same(data.import_source(tmp_path / "set", "fine", root), "test", TEST)
    options = ImportOptions(labels="coarse")
    coarse = data.import_source(tmp_path / "set", "coarse", root, options=options)
    same(coarse, "test", (TEST[0], TEST[1] // 2))
    assert coarse.classes == ("0", "1")


def test_cifar10_is_known_by_its_classes_and_its_test_split_is_a_test_set(
    tmp_path: Path, root: Path
) -> None:
    shard(tmp_path / "hub/train-0.parquet", *TRAIN, names=CLASSES)
    test = shard(tmp_path / "hub/test-0.parquet", *TEST, names=CLASSES)
    assert data.import_source(tmp_path / "hub", None, root).name == "cifar10"
    alone = data.import_source(test, None, root)
    assert (alone.name, alone.classes, len(alone.train_labels)) == ("test-0", CLASSES, 0)
    same(alone, "test", TEST)


def test_without_test_images_a_part_is_held_out(tmp_path: Path, root: Path) -> None:
    source = shard(tmp_path / "images.parquet", *TRAIN)
    with pytest.raises(UsageError, match=r"test images are needed; add --test-fraction 0\.1"):
        data.import_source(source, None, root)
    dataset = data.import_source(source, None, root, options=ImportOptions(test_fraction=0.4))
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (9, 6)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_validation_images_are_tested_with_where_there_are_no_others(
    tmp_path: Path, root: Path, unlabelled: bool
) -> None:
    """Whose labels are published: ImageNet's test images have none, and are -1."""
    shard(tmp_path / "set/train-0.parquet", *TRAIN)
    shard(tmp_path / "set/validation-0.parquet", *VALID)
    if unlabelled:
        shard(tmp_path / "set/test-0.parquet", TEST[0], [-1] * 6)
    dataset = data.import_source(tmp_path / "set", None, root)
    same(dataset, "test", VALID)
    assert len(dataset.valid_labels) == 0
    assert dataset.preparation["test_from"] == "validation"
    assert dataset.preparation["others"] == (["test-0.parquet"] if unlabelled else [])
    if not unlabelled:
        options = ImportOptions(test_fraction=0.4)
        dataset = data.import_source(tmp_path / "set", "b", root, options=options)
        assert (len(dataset.train_labels), len(dataset.test_labels)) == (9, 6)
        same(dataset, "valid", VALID)


def test_what_was_done_to_images_is_recorded(tmp_path: Path, root: Path) -> None:
    encoded = [forms.png(image, mode) for image, mode in zip(TEST[0][:2], "LP", strict=True)]
    table = pa.table({"img": [*encoded, b"hello"], "label": [0, 1, 2]})
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(UsageError, match=r"test\.parquet, image 2 is not an image file"):
        data.import_source(tmp_path / "test.parquet", None, root)
    options = ImportOptions(skip_unreadable=True)
    dataset = data.import_source(tmp_path / "test.parquet", None, root, options=options)
    assert dataset.test_labels.tolist() == [0, 1]
    assert dataset.preparation["converted"] == {"L": 1, "P": 1}
    assert (dataset.preparation["images"], dataset.preparation["unreadable"]) == (2, 1)
    assert "without 1 that cannot be read" in dataset.source


def test_other_sizes_are_resized_when_asked(tmp_path: Path, root: Path) -> None:
    small = np.full((6, 3, 28, 28), 9, np.uint8)
    shard(tmp_path / "set/train-0.parquet", *TRAIN)
    shard(tmp_path / "set/test-0.parquet", small, TEST[1])
    with pytest.raises(UsageError, match=r"test-0\.parquet, image 0.* is 28x28; .*--resize crop"):
        data.import_source(tmp_path / "set", None, root)
    dataset = data.import_source(tmp_path / "set", None, root, options=ImportOptions(resize="crop"))
    same(dataset, "train", TRAIN)
    assert dataset.test_images.unique().tolist() == [9]


def test_files_of_no_split_are_named(tmp_path: Path, root: Path) -> None:
    for name, part in (("train", TRAIN), ("test", TEST), ("unsupervised", TEST)):
        shard(tmp_path / f"set/{name}-0.parquet", *part)
    dataset = data.import_source(tmp_path / "set", None, root)
    assert dataset.source == "parquet set, without 1 other: unsupervised-0.parquet"


def test_beside_class_folders_they_do_not_matter(tmp_path: Path, root: Path) -> None:
    folder = forms.write_folder(tmp_path / "set", forms.class_folders())
    (folder / "train" / "ant" / "metadata.parquet").write_bytes(b"hello")
    np.save(folder / "features.npy", np.zeros(3))
    same(data.import_source(folder, None, root), "train", TRAIN)


# What goes wrong ----------------------------------------------------------------------------------


def test_pyarrow_is_an_extra(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shard(tmp_path / "train.parquet", *TRAIN)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"needs pyarrow, .* pip install 'fcifar\[parquet\]'"
    ) as caught:
        data.import_source(source, None, root)
    assert "\n" not in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


BAD = {
    "cut short": ({}, cut, "test-0.parquet cannot be read as a parquet file"),
    "no label column": ({"columns": ("img", "kind"), "plain": True}, None, "no column label or"),
    "no image column": ({"columns": ("x", "label"), "plain": True}, None, "has no column img or"),
    "other class names": ({"names": ("a", "b", "c")}, None, "different class names"),
    "unlabelled": ({"labels": [None] * 6}, None, "image 0 has None in column label"),
    "without labels": ({"labels": [-1] * 6}, None, "test-0.parquet are all -1, and test images"),
    "below zero": ({"labels": [-2] * 6}, None, "test labels run from -2 to -2"),
    "no number": ({"labels": [0.5] * 6}, None, "image 0 has 0.5 in column label"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line(tmp_path: Path, root: Path, case: str) -> None:
    changes, damage, message = BAD[case]
    shard(tmp_path / "set/train-0.parquet", *TRAIN)
    options = {"labels": TEST[1], **changes}
    path = shard(tmp_path / "set/test-0.parquet", TEST[0], **options)
    if damage is not None:
        damage(path)
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(tmp_path / "set", None, root)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_images_that_are_elsewhere(tmp_path: Path, root: Path) -> None:
    rows = [{"bytes": None, "path": "images/0.png"}]
    for value, message in ((rows, "is a path, images/0.png"), ([3], "holds int, and bytes of PNG")):
        pq.write_table(pa.table({"img": value, "label": [0]}), tmp_path / "test.parquet")
        with pytest.raises(UsageError, match=message):
            data.import_source(tmp_path / "test.parquet", None, root)


def test_several_data_sets_in_a_folder(tmp_path: Path, root: Path) -> None:
    for name in ("cropped_digits", "full_numbers"):
        shard(tmp_path / f"svhn/{name}/train-0.parquet", *TRAIN)
        shard(tmp_path / f"svhn/{name}/test-0.parquet", *TEST)
    with pytest.raises(
        UsageError, match="in cropped_digits/, full_numbers/; give the folder of one"
    ):
        data.import_source(tmp_path / "svhn", None, root)
    same(data.import_source(tmp_path / "svhn/cropped_digits", None, root), "test", TEST)


def test_a_damaged_image_is_named(tmp_path: Path, root: Path) -> None:
    rows = [{"bytes": b"hello", "path": "0.png"}]
    pq.write_table(pa.table({"img": rows, "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(UsageError, match=r"test\.parquet, image 0"):
        data.import_source(tmp_path / "test.parquet", None, root)
