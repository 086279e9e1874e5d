"""Folders as other people lay them out, and what is counted and named of what is not taken."""

import io
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcifar import data
from fcifar.data import ImportOptions, image_files
from fcifar.data.readers import folder
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms

HALF = ImportOptions(test_fraction=0.5)


def image(number: int, form: str = "PNG", size: tuple[int, int] = (32, 32)) -> bytes:
    """An image of one colour, by which it is known again."""
    stream = io.BytesIO()
    Image.new("RGB", size, (number, 255 - number, 7)).save(stream, form)
    return stream.getvalue()


def images(*paths: str, form: str = "PNG", size: tuple[int, int] = (32, 32)) -> forms.Files:
    return {path: image(row, form, size) for row, path in enumerate(paths)}


def numbered(pattern: str, count: int) -> list[str]:
    return [pattern.format(i) for i in range(count)]


def classes(above: str = "", names: Iterable[str] = ("cat", "dog"), count: int = 3) -> list[str]:
    return [f"{above}{name}/{i}.png" for name in names for i in range(count)]


BOTH = images(*classes("train/"), *classes("test/"))


def colours(rows: torch.Tensor) -> list[int]:
    return rows[:, 0, 0, 0].tolist()


@pytest.fixture(autouse=True)
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without pillow-heif."""
    found = tuple(name for name in image_files.readable_formats() if name != "HEIF")
    monkeypatch.setattr(image_files, "readable_formats", lambda: found)


# Layouts ------------------------------------------------------------------------------------------


def moved(files: Mapping[str, bytes], *changes: tuple[str, str]) -> forms.Files:
    for old, new in changes:
        files = {name.replace(old, new): content for name, content in files.items()}
    return dict(files)


SAME = {
    "upper case": moved(BOTH, ("train/", "Train/"), ("test/", "TEST/")),
    "training and testing": moved(BOTH, ("train/", "Training/"), ("test/", "Testing/")),
    "sets": moved(BOTH, ("train/", "training_set/"), ("test/", "test_set/")),
    "two folders down": {f"Pets/archive/{name}": content for name, content in BOTH.items()},
    "each twice": moved(BOTH, ("train/", "train/train/"), ("test/", "test/test/")),
    "a folder in each split": moved(BOTH, ("train/", "train/Pets/"), ("test/", "test/Pets/")),
    "images under the class": moved(BOTH, ("cat/", "cat/images/"), ("dog/", "dog/images/")),
    "val to test with": moved(BOTH, ("test/", "val/")),
    "validation, and a test without labels": {
        **moved(BOTH, ("test/", "Validation/")),
        **images(*numbered("test/images/{}.png", 4)),
    },
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_other_names_and_depths_are_the_same_data_set(
    tmp_path: Path, root: Path, case: str, form: str
) -> None:
    write = forms.write_folder if form == "folder" else forms.write_zip
    plain = data.import_source(forms.write_zip(tmp_path / "a.zip", BOTH), "plain", root)
    for options in (ImportOptions(), ImportOptions(resize="crop")):
        source = write(tmp_path / f"b.{form}", SAME[case])
        found = data.import_source(source, "found", root, options=options, overwrite=True)
        assert found.digest == plain.digest
    assert found.preparation["test_from"] == {"val": "val/", "validation,": "Validation/"}.get(
        case.split(" ")[0], ""
    )


def test_pet_images(tmp_path: Path, root: Path) -> None:
    """Kaggle's zip of cats and dogs: a folder in a folder, beside a text."""
    files = images(*classes("PetImages/PetImages/", ("Cat", "Dog")))
    for more in ({}, {"PetImages/readme[1].txt": b"x", "notes.pdf": b"%PDF"}):
        source = forms.write_zip(tmp_path / "pets.zip", files | more)
        dataset = data.import_source(source, None, root, options=HALF, overwrite=True)
        assert dataset.classes == ("Cat", "Dog")
        assert dataset.preparation["other_files"] == len(more)
        assert dataset.preparation["left_out"] == {}


def test_a_class_that_is_called_train(tmp_path: Path, root: Path) -> None:
    source = forms.write_folder(tmp_path / "v", images(*classes("", ("bus", "car", "train"))))
    assert data.import_source(source, None, root, options=HALF).classes == ("bus", "car", "train")


def test_a_single_class_folder_is_no_wrapper(tmp_path: Path, root: Path) -> None:
    source = forms.write_folder(tmp_path / "one", images(*classes("", ("cat",))))
    assert data.import_source(source, None, root, options=HALF).classes == ("cat",)


def test_three_splits_are_known(tmp_path: Path, root: Path) -> None:
    paths = [*classes("Train/"), *classes("test/"), *classes("valid/", count=2), "cover.png"]
    found = folder.layout(paths)
    assert found.tops == {"train": "Train", "test": "test", "valid": "valid"}
    assert set(found.images) == {
        *(folder.Labelled("train", path.split("/")[1], path) for path in paths[:6]),
        *(folder.Labelled("test", path.split("/")[1], path) for path in paths[6:12]),
        *(folder.Labelled("valid", path.split("/")[1], path) for path in paths[12:16]),
        folder.Labelled("", "", "cover.png"),
    }
    source = forms.write_zip(tmp_path / "three.zip", images(*paths))
    dataset = data.import_source(source, None, root)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (6, 6)
    assert dataset.valid_labels.tolist() == [0, 0, 1, 1]
    assert dataset.preparation["left_out"] == {"no folder": 1}
    twice = images(*paths, *classes("val/", count=2))
    with pytest.raises(UsageError, match="are both of the valid split; keep one"):
        data.import_source(forms.write_zip(tmp_path / "four.zip", twice), "four", root)


def test_both_spellings_of_a_name_are_one_class(tmp_path: Path, root: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Épée") for form in ("NFC", "NFD"))
    assert composed != apart
    digests = set()
    for one, other in ((composed, apart), (apart, composed), (composed, composed)):
        files = images(f"train/{one}/0.png", "train/b/0.png", f"test/{other}/0.png", "test/b/0.png")
        source = forms.write_zip(tmp_path / "a.zip", files)
        dataset = data.import_source(source, "set", root, overwrite=True)
        assert dataset.classes == ("b", composed)
        digests.add(dataset.digest)
    assert len(digests) == 1
    files = images(f"{composed}/0.png", f"{apart}/1.png", *classes("", ("b",)))
    source = forms.write_folder(tmp_path / "two", files)
    dataset = data.import_source(source, "set", root, options=HALF, overwrite=True)
    assert dataset.classes == ("b", composed)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 5


parts = st.sampled_from(["train", "Test", "val", "images", "cat", "dog", "é", "e\u0301", "set"])


@given(st.lists(st.lists(parts, max_size=4), min_size=1, max_size=8), st.randoms())
def test_every_image_has_one_place_in_any_order(rows: list[list[str]], order: Random) -> None:
    paths = [f"{'/'.join([*row, ''])}{i}.png" for i, row in enumerate(rows)]
    try:
        found = folder.layout(paths)
    except UsageError:  # two folders of one split
        return
    assert sorted(place.path for place in found.images) == sorted(paths)
    assert {place.split for place in found.images} <= {"", "train", "test", "valid"}
    order.shuffle(paths)
    assert folder.layout(paths) == found


def test_files_outside_of_two_folders_around_the_classes_are_not_of_a_class() -> None:
    paths = [*classes("train/a/b/"), *classes("test/")]
    found = folder.layout(paths, ["train/other/1.heic", "train/a/b/emu/1.heic"])
    assert found.empty == [folder.Labelled("train", "emu", "train/a/b/emu/1.heic")]
    assert {image.label for image in found.images} == {"cat", "dog"}


# Tables of labels ---------------------------------------------------------------------------------

KAGGLE = {
    **images(*numbered("train/{}.png", 20)),
    **images(*numbered("test/{}.png", 30)),
    "trainLabels.csv": "id,label\r\n".encode("utf-8-sig")
    + b"".join(b"%d,%s\r\n" % (i, b"frog" if i % 3 else b"truck") for i in range(20)),
    "sampleSubmission.csv": b"id,label\n1,cat\n",
}


@pytest.mark.parametrize("form", ["folder", "zip", "a zip of a folder"])
def test_kaggles_cifar10(tmp_path: Path, root: Path, form: str) -> None:
    files = {f"cifar-10/{n}": c for n, c in KAGGLE.items()} if "of" in form else KAGGLE
    write = forms.write_folder if form == "folder" else forms.write_zip
    source = write(tmp_path / ("kaggle" if form == "folder" else "kaggle.zip"), files)
    message = r"the images in test/ have no labels; add --test-fraction 0\.1 to test with"
    with pytest.raises(UsageError, match=message):
        data.import_source(source, None, root)
    dataset = data.import_source(source, None, root, options=HALF)
    assert dataset.classes == ("frog", "truck")
    rows = colours(dataset.train_images) + colours(dataset.test_images)
    labels = dataset.train_labels.tolist() + dataset.test_labels.tolist()
    assert sorted(rows) == list(range(20))
    assert labels == [int(row % 3 == 0) for row in rows]
    assert "without 30 images in test/ (no labels)" in dataset.source
    assert dataset.preparation["labels_from"] == {"train": "trainLabels.csv"}
    assert dataset.preparation["left_out"] == {"test/ (no labels)": 30}


def test_a_part_of_kaggles_images(tmp_path: Path, root: Path) -> None:
    few = {name: content for name, content in KAGGLE.items() if "1" not in name}
    dataset = data.import_source(forms.write_zip(tmp_path / "a.zip", few), "a", root, options=HALF)
    assert dataset.preparation["images"] == 9
    assert dataset.preparation["rows_without_image"] == 11


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"id,label\n0,cat\n", r"trainLabels.csv has no class for 19 of 20 images, train/1\.png"),
        (b"id,label\n0,cat\n0,dog\n", "has two labels for 0; keep one"),
        (b"id,label\n0\n", "has no label in line 2; it needs the name of a file and its class"),
        (b"", "has no class for 20 of 20"),
        (b"\0\xff\xfe,\n", "trainLabels.csv"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, root: Path, table: bytes, message: str) -> None:
    source = forms.write_zip(tmp_path / "a.zip", KAGGLE | {"trainLabels.csv": table})
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(source, "a", root, options=HALF)
    assert str(caught.value).isprintable()
    assert not root.exists()


def test_images_and_labels_without_a_split(tmp_path: Path, root: Path) -> None:
    files = images(*numbered("images/{}.jpg", 4), form="JPEG")
    files["labels.csv"] = b"file,size,class\n" + b"".join(
        b"images/%d.jpg,1,%s\n" % (i, b"ab"[i % 2 : i % 2 + 1]) for i in range(4)
    )
    source = forms.write_folder(tmp_path / "dogs", files)
    assert data.import_source(source, None, root, options=HALF).classes == ("a", "b")


TINY = {
    **images(*numbered("train/n1/images/n1_{}.JPEG", 3), form="JPEG", size=(64, 64)),
    **images(*numbered("train/n2/images/n2_{}.JPEG", 3), form="JPEG", size=(64, 64)),
    **images(*numbered("val/images/val_{}.JPEG", 4), form="JPEG", size=(64, 64)),
    **images(*numbered("test/images/test_{}.JPEG", 5), form="JPEG", size=(64, 64)),
    "train/n1/n1_boxes.txt": b"n1_0.JPEG\t0\t0\t1\t1\n",
    "val/val_annotations.txt": b"".join(
        b"val_%d.JPEG\tn%d\t0\t0\t9\t9\n" % (i, 1 + i % 2) for i in range(4)
    ),
    "wnids.txt": b"n2\nn1\n",
    "words.txt": b"n1\tgoldfish\n",
}


def test_tiny_imagenet(tmp_path: Path, root: Path) -> None:
    files = {f"tiny-imagenet-200/{name}": content for name, content in TINY.items()}
    source = forms.write_zip(tmp_path / "tiny.zip", files)
    dataset = data.import_source(source, None, root, options=ImportOptions(resize="crop"))
    assert dataset.classes == ("n1", "n2")
    assert dataset.train_labels.tolist() == [0] * 3 + [1] * 3
    assert dataset.test_labels.tolist() == [0, 0, 1, 1]
    assert colours(dataset.test_images) == pytest.approx([0, 2, 1, 3], abs=2)
    assert dataset.preparation["left_out"] == {"test/ (no labels)": 5}
    assert dataset.preparation["test_from"] == "val/"
    assert dataset.preparation["resized"] == 10
    held = data.import_source(source, "h", root, options=HALF._replace(resize="crop"))
    assert held.preparation["left_out"] == {"test/ (no labels)": 5}
    assert held.valid_labels.tolist() == [0, 0, 1, 1]


# What is left out ---------------------------------------------------------------------------------


def test_jfif_and_all_else_that_pillow_reads(tmp_path: Path, root: Path) -> None:
    files = {
        **images(*numbered("train/a/{}.jpg", 4), form="JPEG"),
        **images(*numbered("train/a/{}.jfif", 50), form="JPEG"),
        **images("train/a/x.JPE", form="JPEG"),
        **images("train/a/x.jp2", form="JPEG2000"),
        **images("train/a/x.tga", form="TGA"),
        **images("train/a/x.ppm", "train/a/x.pgm", form="PPM"),
        **images("train/a/without", "train/a/photo.jpg_large"),
        **images("test/a/0.webp", form="WEBP"),
        "train/a/1.heic": b"x",
        "train/a/2.HEIC": b"x",
        "train/a/3.cr2": b"II*\0",
        "train/a/Thumbs.db": b"x",
        "train/a/.DS_Store": b"x",
        "train/a/README": b"BM is how a BMP begins, and so does this",
        "__MACOSX/train/a/._0.jpg": b"x",
        "train/list.csv": b"x",
    }
    source = forms.write_folder(tmp_path / "set", files)
    dataset = data.import_source(source, None, root)
    assert len(dataset.train_labels) == 61
    assert dataset.preparation["left_out"] == {".cr2": 1, ".heic": 2}
    assert dataset.preparation["other_files"] == 3
    assert dataset.source == "class folders set, without 1 .cr2, 2 .heic"


def test_a_class_of_nothing_but_heic_is_an_error(tmp_path: Path, root: Path) -> None:
    files = BOTH | {"train/emu/1.heic": b"x", "test/emu/1.png": image(1)}
    message = (
        r"train/emu/ has no image that can be read in it: 1 \.heic \(`pip install pillow-heif`"
    )
    with pytest.raises(UsageError, match=message):
        data.import_source(forms.write_zip(tmp_path / "a.zip", files), "a", root)
    only = {"cat/1.heic": b"x", "dog/1.heif": b"x"}
    with pytest.raises(
        UsageError, match=r"no images that can be read, but 1 \.heic \(`pip install"
    ):
        data.import_source(forms.write_zip(tmp_path / "b.zip", only), "b", root)


def test_archives_that_have_to_be_unpacked(tmp_path: Path, root: Path) -> None:
    packed = b"7z\xbc\xaf\x27\x1c\0\4"
    (tmp_path / "train.7z").write_bytes(packed)
    with pytest.raises(UsageError, match=r"is a 7z archive; unpack it with `7z x train\.7z`"):
        data.import_source(tmp_path / "train.7z", "a", root)
    files = {"train.7z": packed, "test.7z": packed, "trainLabels.csv": KAGGLE["trainLabels.csv"]}
    source = forms.write_folder(tmp_path / "cifar-10", files)
    with pytest.raises(UsageError, match=r"no images that can be read, but 2 \.7z \(unpack them"):
        data.import_source(source, "a", root)


# Images that cannot be read -----------------------------------------------------------------------


def broken(count: int) -> forms.Files:
    return {f"train/cat/x{i}.png": BOTH["train/cat/0.png"][:50] for i in range(count)}


@pytest.mark.parametrize("resize", [None, "crop"])
def test_all_that_cannot_be_read_are_listed_at_once(
    tmp_path: Path, root: Path, resize: str | None
) -> None:
    source = forms.write_zip(tmp_path / "a.zip", BOTH | broken(2) | {"test/dog/y.png": b"text"})
    options = ImportOptions(resize=resize)
    with pytest.raises(UsageError, match=r"3 of 15 images cannot be .*--skip-unread") as caught:
        data.import_source(source, "a", root, options=options)
    assert str(caught.value).isprintable()
    listed = caught.value.__notes__
    assert [line.split(" ")[0] for line in listed] == [
        *("train/cat/x0.png", "train/cat/x1.png", "test/dog/y.png")
    ]
    assert not root.exists()
    dataset = data.import_source(source, "a", root, options=options._replace(skip_unreadable=True))
    plain = data.import_source(forms.write_zip(tmp_path / "b.zip", BOTH), "b", root)
    assert dataset.digest == plain.digest
    assert dataset.preparation["unreadable"] == 3
    assert dataset.preparation["unreadable_files"] == listed
    assert "without 3 that cannot be read" in dataset.source
    again = data.info("a", root).preparation
    assert json.loads(json.dumps(again)) == dataset.preparation


def test_a_list_is_no_longer_than_a_screen(tmp_path: Path, root: Path) -> None:
    source = forms.write_zip(tmp_path / "a.zip", BOTH | broken(50))
    with pytest.raises(UsageError, match="50 of 62 images cannot be read") as caught:
        data.import_source(source, "a", root)
    assert len(caught.value.__notes__) == 21
    assert caught.value.__notes__[-1] == "... and 30 more"


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path: Path, root: Path) -> None:
    files = BOTH | {f"test/cat/{i}.png": b"text" for i in range(3)}
    source = forms.write_zip(tmp_path / "a.zip", files)
    with pytest.raises(UsageError, match="no image of class 'cat' in test/ can be read"):
        data.import_source(source, "a", root, options=ImportOptions(skip_unreadable=True))


def test_what_is_left_out_need_not_be_readable(tmp_path: Path, root: Path) -> None:
    files = BOTH | {"more/cat/0.png": b"text", "more/dog/0.png": b"text"}
    source = forms.write_zip(tmp_path / "a.zip", files)
    for resize in (None, "crop"):
        data.import_source(source, "a", root, options=ImportOptions(resize=resize), overwrite=True)


def test_files_that_may_not_be_read_are_listed(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = forms.write_folder(tmp_path / "set", BOTH)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ExternalError, match="4 of 12 images cannot be read") as caught:
        data.import_source(source, "a", root)
    assert all("Permission denied" in line for line in caught.value.__notes__)
    dataset = data.import_source(source, "a", root, options=ImportOptions(skip_unreadable=True))
    assert dataset.preparation["unreadable"] == 4


def test_links_to_class_folders(tmp_path: Path, root: Path) -> None:
    forms.write_folder(tmp_path / "else", images(*classes()))
    (tmp_path / "set").mkdir()
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "else" / name, tmp_path / "set" / name)
    assert data.import_source(tmp_path / "set", None, root, options=HALF).classes == ("cat", "dog")
