"""Every accepted form gives the same data set, and nothing depends on the order of an archive."""

import contextlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcifar import data
from fcifar.data import image_files
from fcifar.data.readers.cifar import CLASSES as CIFAR10
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms


def sources(folder: Path) -> dict[str, Path]:
    folders, official, binary = forms.class_folders(), forms.official(), forms.binary()
    backwards = dict(reversed(folders.items()))
    inside = {f"set/{name}": content for name, content in folders.items()}
    python2 = official | {
        "test_batch": forms.python2_batch(forms.TEST_IMAGES, forms.TEST_LABELS),
    }
    return {
        "folder": forms.write_folder(folder / "folder", folders),
        "zip": forms.write_zip(folder / "a.zip", folders),
        "zip backwards": forms.write_zip(folder / "b.zip", backwards),
        "tar": forms.write_tar(folder / "a.tar", folders),
        "tar.gz backwards": forms.write_tar(folder / "b.tar.gz", backwards),
        "tar.gz in one folder": forms.write_tar(folder / "c.tar.gz", inside),
        "zip with a tar's name": forms.write_zip(folder / "d.tar", inside),
        "python folder": forms.write_folder(folder / "cifar-10-batches-py", official),
        "python tar.gz": forms.write_tar(
            folder / "py.tar.gz", {f"cifar-10-batches-py/{k}": v for k, v in official.items()}
        ),
        "python 2": forms.write_tar(folder / "py2.tar", python2),
        "binary folder": forms.write_folder(folder / "cifar-10-batches-bin", binary),
        "binary tar.gz": forms.write_tar(folder / "bin.tar.gz", dict(reversed(binary.items()))),
        "npz": forms.write_npz(folder / "a.npz"),
        "npz channels last": forms.write_npz(
            folder / "b.npz",
            train_images=forms.TRAIN_IMAGES.transpose(0, 2, 3, 1),
            test_images=forms.TEST_IMAGES.transpose(0, 2, 3, 1),
            train_labels=forms.TRAIN_LABELS[:, None].astype(np.uint8),
        ),
    }


def test_every_form_gives_the_same_data_set(tmp_path: Path, root: Path) -> None:
    digests = set()
    for i, source in enumerate(sources(tmp_path).values()):
        dataset = data.import_source(source, f"set{i}", root)
        assert np.array_equal(dataset.train_images.numpy(), forms.TRAIN_IMAGES), source
        assert np.array_equal(dataset.test_images.numpy(), forms.TEST_IMAGES), source
        assert np.array_equal(dataset.train_labels.numpy(), forms.TRAIN_LABELS), source
        assert np.array_equal(dataset.test_labels.numpy(), forms.TEST_LABELS), source
        assert dataset.train_labels.dtype == torch.int64
        assert dataset.classes == forms.CLASSES
        assert source.name in dataset.source
        digests.add(dataset.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("protocol", range(6))
def test_a_subset_pickled_anew_is_read(tmp_path: Path, root: Path, protocol: int) -> None:
    source = forms.write_folder(tmp_path / "py", forms.official(protocol))
    dataset = data.import_source(source, "set", root)
    assert np.array_equal(dataset.train_images.numpy(), forms.TRAIN_IMAGES)


def test_labels_may_be_an_array_of_either_byte_order(tmp_path: Path, root: Path) -> None:
    files = forms.official()
    for order in "<>":
        rows = forms.TEST_IMAGES.reshape(6, 3072)
        labels = forms.TEST_LABELS.astype(f"{order}i8")
        files["test_batch"] = pickle.dumps({"data": rows, "labels": labels})
        source = forms.write_folder(tmp_path / "py", files)
        dataset = data.import_source(source, "set", root, overwrite=True)
        assert np.array_equal(dataset.test_labels.numpy(), forms.TEST_LABELS)


def test_images_stored_in_columns_keep_their_pixels(tmp_path: Path, root: Path) -> None:
    files = forms.official()
    rows = np.asfortranarray(forms.TEST_IMAGES.reshape(6, 3072))
    files["test_batch"] = pickle.dumps({"data": rows, "labels": forms.TEST_LABELS.tolist()})
    dataset = data.import_source(forms.write_folder(tmp_path / "py", files), "set", root)
    assert np.array_equal(dataset.test_images.numpy(), forms.TEST_IMAGES)


def test_classes_of_an_npz_without_names_are_numbers(tmp_path: Path, root: Path) -> None:
    source = forms.write_npz(tmp_path / "a.npz")
    with np.load(source) as arrays:
        np.savez(source, **{name: arrays[name] for name in arrays if name != "classes"})
    assert data.import_source(source, "set", root).classes == ("0", "1", "2")


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


TRAIN, TEST = (
    (forms.TRAIN_IMAGES, forms.TRAIN_LABELS),
    (forms.TEST_IMAGES, forms.TEST_LABELS),
)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),  # Keras
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("train_data", "train_targets", "test_data", "test_targets"),
        ("train_image", "train_label", "test_image", "test_label"),
        ("training_images", "training_labels", "testing_images", "testing_labels"),
        ("data", "labels", "test_data", "test_labels"),
    ],
)
def test_other_names_of_arrays(tmp_path: Path, root: Path, names: tuple[str, ...]) -> None:
    values = dict(zip(names, (*TRAIN, *TEST), strict=True))
    source = npz(tmp_path / "a.npz", **values, class_names=forms.CLASSES)
    dataset = data.import_source(source, None, root)
    assert (
        dataset.digest == data.import_source(forms.write_npz(tmp_path / "b.npz"), "b", root).digest
    )
    assert dataset.source == "arrays a.npz"


def test_loose_arrays_in_a_folder(tmp_path: Path, root: Path) -> None:
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        (tmp_path / "set" / split).mkdir(parents=True)
        np.save(tmp_path / "set" / split / "images.npy", images)
        np.save(tmp_path / "set" / split / "labels.npy", labels[:, None])
    dataset = data.import_source(tmp_path / "set", None, root)
    assert np.array_equal(dataset.train_images.numpy(), forms.TRAIN_IMAGES)
    assert np.array_equal(dataset.test_labels.numpy(), forms.TEST_LABELS)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_arrays_are_the_given_split(tmp_path: Path, root: Path, name: str) -> None:
    """The form of MedMNIST, whose labels are [N, 1]."""
    labels = forms.TEST_LABELS[::-1, None].astype(np.uint8)
    valid = {f"{name}_images": forms.TEST_IMAGES[::-1], f"{name}_labels": labels}
    dataset = data.import_source(forms.write_npz(tmp_path / "a.npz", **valid), None, root)
    assert np.array_equal(dataset.valid_images.numpy(), forms.TEST_IMAGES[::-1])
    assert dataset.valid_labels.tolist() == forms.TEST_LABELS[::-1].tolist()
    assert dataset.source == "arrays a.npz"
    del valid[f"{name}_labels"]
    with pytest.raises(UsageError, match=r"valid_labels\.npy missing"):
        data.import_source(forms.write_npz(tmp_path / "b.npz", **valid), None, root)


def test_arrays_that_are_left_out_are_named(tmp_path: Path, root: Path) -> None:
    more = {"filenames": np.array(["a"]), "mean": np.zeros(3), "std": np.ones(3), "z": np.ones(1)}
    dataset = data.import_source(forms.write_npz(tmp_path / "a.npz", **more), None, root)
    assert dataset.source == "arrays a.npz, without 4 others: filenames, mean, std, ..."
    assert dataset.preparation["others"] == ["filenames", "mean", "std", "z"]


def test_arrays_without_a_test_split(tmp_path: Path, root: Path) -> None:
    options = data.ImportOptions(test_fraction=0.4)
    for i, names in enumerate((("data", "labels"), ("train_images", "train_labels"), ("x", "y"))):
        source = npz(tmp_path / f"{i}.npz", **dict(zip(names, TRAIN, strict=True)))
        with pytest.raises(UsageError, match=r"add --test-fraction 0\.1"):
            data.import_source(source, None, root)
        dataset = data.import_source(source, f"set{i}", root, options=options)
        assert torch.bincount(dataset.train_labels).tolist() == [3, 3, 3]
        assert torch.bincount(dataset.test_labels).tolist() == [2, 2, 2]
        assert "0.4 of each class to test with (seed 0)" in dataset.source
    assert data.load("set0", root).digest == data.load("set2", root).digest
    with pytest.raises(UsageError, match="test images already"):
        data.import_source(forms.write_npz(tmp_path / "a.npz"), "a", root, options=options)
    valid = {"train_images": TRAIN[0], "train_labels": TRAIN[1]} | dict(
        zip(("val_images", "val_labels"), TEST, strict=True)
    )
    tested = data.import_source(npz(tmp_path / "v.npz", **valid), None, root)
    assert np.array_equal(tested.test_images.numpy(), forms.TEST_IMAGES)
    assert tested.preparation["test_from"] == "val_images"
    assert len(tested.valid_labels) == 0
    dataset = data.import_source(tmp_path / "v.npz", "w", root, options=options)
    assert (len(dataset.train_labels), len(dataset.valid_labels), len(dataset.test_labels)) == (
        9,
        6,
        6,
    )


def test_test_arrays_alone_are_a_test_set(tmp_path: Path, root: Path) -> None:
    source = npz(tmp_path / "a.npz", x_test=TEST[0], y_test=TEST[1], classes=CIFAR10[:3])
    dataset = data.import_source(source, None, root)
    assert (dataset.name, len(dataset.train_labels), len(dataset.test_labels)) == ("a", 0, 6)
    alone = npz(tmp_path / "b.npz", x_test=TEST[0], y_test=TEST[1], classes=CIFAR10)
    assert data.import_source(alone, None, root).name == "b", "it is not all of CIFAR-10"


@pytest.mark.parametrize("shape", [(6, 32, 32), (6, 32, 32, 1), (6, 1, 32, 32)])
def test_grey_arrays_become_rgb(tmp_path: Path, root: Path, shape: tuple[int, ...]) -> None:
    grey = forms.TEST_IMAGES[:, :1]
    source = forms.write_npz(tmp_path / "a.npz", test_images=grey.reshape(shape))
    dataset = data.import_source(source, None, root)
    assert np.array_equal(dataset.test_images.numpy(), np.repeat(grey, 3, axis=1))
    assert dataset.preparation["converted"] == {"L": 6}


def test_transparent_arrays_are_seen_on_white(tmp_path: Path, root: Path) -> None:
    clear = np.zeros((6, 4, 32, 32), np.uint8)
    clear[0, 3] = 255
    for i, images in enumerate((clear, clear.transpose(0, 2, 3, 1))):
        source = forms.write_npz(tmp_path / f"{i}.npz", test_images=images)
        dataset = data.import_source(source, None, root)
        assert dataset.test_images.amin((1, 2, 3)).tolist() == [0, *[255] * 5]
        assert dataset.preparation["on_white"] == 5


@pytest.mark.parametrize(
    "shape", [(6, 28, 28), (6, 28, 28, 1), (6, 1, 28, 28), (6, 3, 28, 28), (6, 28, 20, 3)]
)
def test_arrays_of_other_sizes_are_told_what_helps(
    tmp_path: Path, root: Path, shape: tuple[int, ...]
) -> None:
    images = np.full(shape, 7, np.uint8)
    source = forms.write_npz(tmp_path / "a.npz", test_images=images)
    with pytest.raises(UsageError, match="so add --resize crop or --resize stretch") as caught:
        data.import_source(source, None, root)
    assert f"the test images are uint8 {list(shape)}" in str(caught.value)
    assert "\n" not in str(caught.value)
    for resize in ("crop", "stretch"):  # the advice works
        dataset = data.import_source(
            source, None, root, options=data.ImportOptions(resize=resize), overwrite=True
        )
        assert dataset.test_images.unique().tolist() == [7]
        assert (dataset.preparation["resized"], dataset.preparation["resize"]) == (6, resize)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_kinds_of_png_become_rgb(tmp_path: Path, root: Path, mode: str) -> None:
    files = forms.class_folders()
    files["test/ant/0000.png"] = content = forms.png(forms.TEST_IMAGES[0], mode)
    dataset = data.import_source(forms.write_zip(tmp_path / "a.zip", files), "set", root)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(dataset.test_images[0].permute(1, 2, 0).numpy(), expected)


def test_files_beside_the_images_do_not_matter(tmp_path: Path, root: Path) -> None:
    beside = {
        "README.md": b"hello",
        ".DS_Store": b"x",
        "__MACOSX/train/ant/._0000.png": b"x",
        "train/ant/.hidden.png": b"x",
        "train/ant/notes.txt": b"x",
    }
    plain = forms.write_zip(tmp_path / "a.zip", forms.class_folders())
    littered = forms.write_zip(tmp_path / "b.zip", forms.class_folders() | beside)
    first = data.import_source(plain, "a", root)
    assert data.import_source(littered, "b", root).digest == first.digest


def test_progress_is_told_at_a_modest_rate(tmp_path: Path, root: Path) -> None:
    calls = []
    source = forms.write_tar(tmp_path / "a.tar.gz", forms.class_folders())
    data.import_source(source, "set", root, progress=lambda *call: calls.append(call))
    size = source.stat().st_size
    assert calls[-2:] == [("reading a.tar.gz", size, size), ("storing set", 0, 0)]
    assert len(calls) < 21


def test_importing_the_package_imports_nothing_slow() -> None:
    code = (
        "import sys, fcifar.data; "
        "print({'torchvision', 'PIL', 'matplotlib', 'typer', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=8), st.integers(0, 300))
def test_mutated_images_are_decoded_or_refused(change: bytes, place: int) -> None:
    content = bytearray(forms.png(forms.TEST_IMAGES[0]))
    content[place : place + len(change)] = change
    with contextlib.suppress(UsageError):
        assert len(image_files.decode(io.BytesIO(content), "a.png", None).pixels) == 3072


# What goes wrong ----------------------------------------------------------------------------------


def test_a_name_that_is_taken_needs_overwrite(tmp_path: Path, root: Path) -> None:
    source = forms.write_npz(tmp_path / "a.npz")
    first = data.import_source(source, "set", root)
    other = forms.write_npz(tmp_path / "b.npz", train_images=255 - forms.TRAIN_IMAGES)
    with pytest.raises(UsageError, match="--force"):
        data.import_source(other, "set", root)
    assert data.load("set", root).digest == first.digest
    assert data.import_source(other, "set", root, overwrite=True).digest != first.digest


@pytest.mark.parametrize("name", ["shapes10", "../up", "", "A", "a/b", ".a", "a\n", "x" * 65])
def test_names_that_cannot_be(tmp_path: Path, root: Path, name: str) -> None:
    with pytest.raises(UsageError):
        data.import_source(forms.write_npz(tmp_path / "a.npz"), name, root, overwrite=True)
    assert not root.exists()


def without(files: forms.Files, *prefixes: str) -> forms.Files:
    return {name: content for name, content in files.items() if not name.startswith(prefixes)}


FOLDERS, OFFICIAL, BINARY = forms.class_folders(), forms.official(), forms.binary()
BATCH = {"data": forms.TEST_IMAGES.reshape(6, 3072), "labels": [0] * 6}

BAD_FILES = {
    "no test folder": (without(FOLDERS, "test/"), "no test/<class>/ folder"),
    "no train folder": (without(FOLDERS, "train/"), "no train/<class>/ folder"),
    "class not in test": (without(FOLDERS, "test/bee"), "'bee' is in train/ but not in test/"),
    "class not in train": (without(FOLDERS, "train/cow"), "'cow' is in test/ but not in train/"),
    "image outside a class": (FOLDERS | {"train/a.png": b""}, "train/a.png does not lie"),
    "image too deep": (FOLDERS | {"train/ant/b/a.png": b""}, "train/ant/b/a.png does not lie"),
    "unsupported image": (FOLDERS | {"train/ant/a.webp": b""}, "train/ant/a.webp is not an image"),
    "no image": (FOLDERS | {"train/ant/0002.png": b"hello"}, "train/ant/0002.png is not an image"),
    "empty image": (FOLDERS | {"train/ant/0002.png": b""}, "train/ant/0002.png is not an image"),
    "half an image": (
        FOLDERS | {"train/ant/0002.png": FOLDERS["train/ant/0002.png"][:1500]},
        "train/ant/0002.png cannot be read as an image",
    ),
    "large image": (
        FOLDERS | {"test/cow/1.png": forms.png(np.zeros((3, 16, 48), np.uint8))},
        "test/cow/1.png is 48x16; every image must be 32x32",
    ),
    "absurd image": (
        # The size in the header of a PNG is changed; there are no such pixels.
        FOLDERS
        | {
            "test/cow/1.png": FOLDERS["test/cow/0004.png"][:16]
            + b"\x00\x00\x40\x00" * 2
            + FOLDERS["test/cow/0004.png"][24:]
        },
        "test/cow/1.png is",
    ),
    "unprintable class": (
        {name.replace("ant/", "a\nt/"): content for name, content in FOLDERS.items()},
        "names are printable text",
    ),
    "batch missing": (without(OFFICIAL, "data_batch_3"), "data_batch_3 missing"),
    "meta missing": (without(OFFICIAL, "batches.meta"), "batches.meta missing"),
    "no pickle": (OFFICIAL | {"data_batch_2": b"hello"}, "data_batch_2 is not a readable pickle"),
    "pickle cut short": (
        OFFICIAL | {"data_batch_2": OFFICIAL["data_batch_2"][:-100]},
        "data_batch_2 is not a readable pickle",
    ),
    "pickle of a list": (OFFICIAL | {"test_batch": pickle.dumps([1])}, "test_batch holds no dict"),
    "label too high": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"labels": [0, 1, 2, 3, 0, 0]})},
        "test labels run from 0 to 3",
    ),
    "label below zero": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"labels": [-1] * 6})},
        "test labels run from -1 to -1",
    ),
    "label of another kind": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"labels": ["cat"] * 6})},
        "test_batch has no list of whole numbers",
    ),
    "enormous label": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"labels": [2**70] * 6})},
        "test_batch has no list of whole numbers",
    ),
    "labels missing": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"labels": [0] * 5})},
        "6 rows of data and 5 labels",
    ),
    "wrong shape": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"data": np.zeros((6, 3071), np.uint8)})},
        r"uint8 \[6, 3071\] as its data",
    ),
    "wrong type": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"data": np.zeros((6, 3072), np.int8)})},
        r"int8 \[6, 3072\] as its data",
    ),
    "floats": (
        OFFICIAL | {"test_batch": pickle.dumps(BATCH | {"data": np.zeros((6, 3072))})},
        "test_batch is not a readable pickle",
    ),
    "no data": (OFFICIAL | {"test_batch": pickle.dumps({})}, "test_batch has no array"),
    "no class names": (OFFICIAL | {"batches.meta": pickle.dumps({})}, "no list of label_names"),
    "class named twice": (
        OFFICIAL | {"batches.meta": pickle.dumps({"label_names": ["a", "b", "a"]})},
        "each needs its own name",
    ),
    "records cut short": (
        BINARY | {"data_batch_4.bin": BINARY["data_batch_4.bin"][:-1]},
        "data_batch_4.bin has 9218 bytes",
    ),
    "no records": (BINARY | {"test_batch.bin": b""}, "test_batch.bin has 0 bytes"),
    "record of no class": (
        BINARY | {"test_batch.bin": b"\x09" + bytes(3072)},
        "test labels run from 9 to 9",
    ),
    "nothing known": ({"a.txt": b"hello"}, "it accepts an official CIFAR-10 archive"),
}


def expect_user_error(source: Path, root: Path, message: str) -> None:
    """The import fails with one line, and not even the folder of the store is made."""
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(source, "set", root)
    assert "\n" not in str(caught.value)
    assert not root.exists()


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_bad_content_is_refused(tmp_path: Path, root: Path, case: str, form: str) -> None:
    files, message = BAD_FILES[case]
    source = tmp_path / f"source.{form}"
    (forms.write_zip if form == "zip" else forms.write_tar)(source, files)
    expect_user_error(source, root, message)


def test_an_empty_class_folder_is_refused(tmp_path: Path, root: Path) -> None:
    source = forms.write_folder(tmp_path / "set", FOLDERS)
    for split in ("train", "test"):
        (source / split / "dog").mkdir()
    expect_user_error(source, root, "train/dog/ has no image")
    files = FOLDERS | {"train/dog/": b"", "test/dog/0.png": FOLDERS["test/ant/0000.png"]}
    expect_user_error(forms.write_zip(tmp_path / "a.zip", files), root, "train/dog/ has no image")


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path, root: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(stream, "PNG")
    source = forms.write_zip(tmp_path / "a.zip", FOLDERS | {"test/ant/0.png": stream.getvalue()})
    expect_user_error(source, root, "more than 8 bits")


BAD_ARRAYS = {
    "floats": ({"train_images": np.zeros((15, 3, 32, 32))}, "they must be uint8"),
    "rows of pixels": ({"train_images": np.zeros((15, 3072), np.uint8)}, r"3072\]; they must be"),
    "two channels": ({"train_images": np.zeros((15, 32, 32, 2), np.uint8)}, "1, 3 or 4 channels"),
    "one name twice": ({"x_train": forms.TRAIN_IMAGES}, "are the same by their names; keep"),
    "shape": ({"train_images": np.zeros((15, 3, 28, 28), np.uint8)}, r"uint8 \[15, 3, 28, 28\]"),
    "rows": ({"train_labels": np.zeros(14, np.int64)}, "15 images and 14 labels"),
    "label kind": ({"train_labels": np.zeros(15)}, "must be whole numbers"),
    "label range": ({"train_labels": np.full(15, 3)}, "run from 3 to 3"),
    "label shape": ({"train_labels": np.zeros((15, 2), np.int64)}, "must be integers"),
    "classes": ({"classes": np.zeros(3)}, "classes is float64"),
    "empty": (
        {"test_images": forms.TEST_IMAGES[:0], "test_labels": forms.TEST_LABELS[:0]},
        "test split is empty",
    ),
    "objects": ({"classes": np.array(["a", 1, None], dtype=object)}, "could run code"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path: Path, root: Path, case: str) -> None:
    changes, message = BAD_ARRAYS[case]
    expect_user_error(forms.write_npz(tmp_path / "a.npz", **changes), root, message)


def test_a_missing_array_is_named(tmp_path: Path, root: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=forms.TRAIN_IMAGES)
    expect_user_error(tmp_path / "a.npz", root, "train_labels.npy, test_images.npy")


def test_sources_that_are_none(tmp_path: Path, root: Path) -> None:
    expect_user_error(tmp_path / "nowhere", root, "does not exist")
    (tmp_path / "zero").touch()
    expect_user_error(tmp_path / "zero", root, "is empty")
    (tmp_path / "text").write_text("hello " * 1000)
    expect_user_error(tmp_path / "text", root, "holds no images")
    (tmp_path / "folder").mkdir()
    expect_user_error(tmp_path / "folder", root, "holds no images")
    os.mkfifo(tmp_path / "pipe")
    expect_user_error(tmp_path / "pipe", root, "neither a file nor a folder")


@pytest.mark.skipif(os.name == "nt" or not os.geteuid(), reason="this user may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path, root: Path) -> None:
    source = forms.write_npz(tmp_path / "a.npz")
    source.chmod(0)
    with pytest.raises(ExternalError, match="permissions"):
        data.import_source(source, "set", root)
