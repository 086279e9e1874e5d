"""Somebody's own pictures: of any size, in any number of classes, with or without a test folder."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcifar import data, random
from fcifar.data import ImportOptions, image_files
from fcifar.data.readers import archive
from fcifar.data.readers.cifar import CLASSES
from fcifar.data.split import holdout
from fcifar.errors import UsageError
from tests.helpers import forms


def picture(color: object, size: tuple[int, int], form: str = "PNG", mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, color).save(stream, form)
    return stream.getvalue()


def flat(counts: dict[str, int]) -> forms.Files:
    """Class folders and nothing above them; each picture has a colour of its own."""
    return {
        f"{name}/{i:03}.png": picture((10 * number, i, 7), (32, 32))
        for number, (name, count) in enumerate(counts.items())
        for i in range(count)
    }


# Sizes --------------------------------------------------------------------------------------------

LARGE = {
    f"{split}/{name}/0.{ending}": picture(color, size, form)
    for split in ("train", "test")
    for name, color, size, ending, form in (
        ("blue", (0, 0, 250), (300, 100), "jpg", "JPEG"),
        ("red", (250, 0, 0), (40, 64), "webp", "WEBP"),
        ("white", (255, 255, 255), (28, 28), "png", "PNG"),
    )
}


@pytest.mark.parametrize("how", ["crop", "stretch"])
@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_pictures_of_any_size_become_32_pixels(
    tmp_path: Path, root: Path, how: str, form: str
) -> None:
    path = tmp_path / f"mine.{form}"
    write = {"folder": forms.write_folder, "zip": forms.write_zip, "tar.gz": forms.write_tar}[form]
    dataset = data.import_source(
        write(path, LARGE), "mine", root, options=ImportOptions(resize=how)
    )
    assert dataset.train_images.shape == (3, 3, 32, 32)
    assert dataset.classes == ("blue", "red", "white")
    means = dataset.train_images.double().mean((2, 3))
    expected = torch.tensor([[0, 0, 250], [250, 0, 0], [255, 255, 255]], dtype=torch.float64)
    assert (means - expected).abs().max() < 4, "JPEG and WebP change colours a little"
    assert f"resized ({how})" in dataset.source


def test_crop_keeps_the_middle_and_stretch_keeps_all(tmp_path: Path, root: Path) -> None:
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    files = {f"{split}/{c}/0.png": stream.getvalue() for split in ("train", "test") for c in "ab"}
    source = forms.write_zip(tmp_path / "a.zip", files)
    cropped = data.import_source(source, "cropped", root, options=ImportOptions(resize="crop"))
    assert (cropped.train_images[0, 2, :, 1:-1] == 255).all(), "the middle third is blue"
    stretched = data.import_source(
        source, "stretched", root, options=ImportOptions(resize="stretch")
    )
    row = stretched.train_images[0, :, 16]
    assert row[:, 2].tolist() == [255, 0, 0]
    assert row[:, 16].tolist() == [0, 0, 255]
    assert row[:, 29].tolist() == [255, 0, 0]


def test_images_of_32_pixels_are_left_as_they_are(tmp_path: Path, root: Path) -> None:
    source = forms.write_zip(tmp_path / "a.zip", forms.class_folders())
    plain = data.import_source(source, "plain", root)
    for how in image_files.FITS:
        resized = data.import_source(source, how, root, options=ImportOptions(resize=how))
        assert resized.digest == plain.digest


def test_arrays_of_other_sizes_and_grey_ones(tmp_path: Path, root: Path) -> None:
    grey = np.broadcast_to(np.arange(15, dtype=np.uint8)[:, None, None] * 10, (15, 28, 28))
    source = forms.write_npz(tmp_path / "a.npz", train_images=grey)
    with pytest.raises(UsageError, match=r"uint8 \[15, 28, 28\]"):
        data.import_source(source, "mine", root)
    dataset = data.import_source(source, "mine", root, options=ImportOptions(resize="crop"))
    assert dataset.train_images[3].unique().tolist() == [30]
    assert np.array_equal(dataset.test_images.numpy(), forms.TEST_IMAGES)


def test_of_large_pictures_only_pixels_stay_in_memory(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the limit for whole sources, which is about memory, is not theirs."""
    source = forms.write_zip(tmp_path / "a.zip", LARGE)
    monkeypatch.setattr(archive, "TOTAL_LIMIT", 100)
    with pytest.raises(UsageError, match="larger ones need --resize"):
        data.import_source(source, "mine", root)
    data.import_source(source, "mine", root, options=ImportOptions(resize="crop"))


def test_a_damaged_picture_is_named(tmp_path: Path, root: Path) -> None:
    files = LARGE | {"train/blue/1.jpg": LARGE["train/blue/0.jpg"][:300]}
    source = forms.write_zip(tmp_path / "a.zip", files)
    with pytest.raises(UsageError, match=r"train/blue/1\.jpg cannot be read"):
        data.import_source(source, "mine", root, options=ImportOptions(resize="crop"))
    assert not root.exists()


def test_other_sizes_are_refused_unless_asked_for(tmp_path: Path, root: Path) -> None:
    files = {name: content for name, content in LARGE.items() if "red" not in name}
    with pytest.raises(UsageError, match=r"300x100; .*--resize crop or --resize stretch"):
        data.import_source(forms.write_zip(tmp_path / "a.zip", files), "mine", root)


# Without a test folder ----------------------------------------------------------------------------

COUNTS = {"ant": 20, "bee": 7, "cow": 2}


def rows(dataset: data.Dataset, split: str) -> set[tuple[int, ...]]:
    return {tuple(image[:, 0, 0].tolist()) for image in getattr(dataset, f"{split}_images")}


@pytest.mark.parametrize("above", ["", "train/"])
def test_a_part_of_each_class_is_held_out(tmp_path: Path, root: Path, above: str) -> None:
    files = {above + name: content for name, content in flat(COUNTS).items()}
    source = forms.write_folder(tmp_path / "mine", files)
    options = ImportOptions(test_fraction=0.3)
    dataset = data.import_source(source, None, root, options=options)
    assert dataset.name == "mine"
    assert dataset.classes == tuple(COUNTS)
    assert torch.bincount(dataset.test_labels).tolist() == [6, 2, 1]
    assert torch.bincount(dataset.train_labels).tolist() == [14, 5, 1]
    train, test = rows(dataset, "train"), rows(dataset, "test")
    assert not train & test
    assert len(train | test) == 29
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        assert (images[:, 0, 0, 0] == 10 * labels).all(), "each image kept its label"
    again = data.import_source(source, "again", root, options=options)
    assert again.digest == dataset.digest
    other = data.import_source(source, "other", root, options=options._replace(seed=1))
    assert rows(other, "test") != test
    assert "0.3 of each class to test with (seed 1)" in other.source


@given(st.lists(st.integers(2, 30), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0))
def test_every_class_is_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = random.permutation(random.key(1), labels)
    kept, held = holdout(
        random.key(seed % 2**31), labels, fraction, stratify=True, every_class=True
    )
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for number, count in enumerate(counts):
        here = int((labels[held] == number).sum())
        assert 1 <= here < count
        assert abs(here - fraction * count) <= 1


def test_a_thousand_classes(tmp_path: Path, root: Path) -> None:
    files = flat({f"kind{i:04}": 2 for i in range(1000)})
    source = forms.write_zip(tmp_path / "Many Kinds.zip", files)
    dataset = data.import_source(source, None, root, options=ImportOptions(test_fraction=0.5))
    assert dataset.name == "many-kinds"
    assert len(dataset.classes) == 1000
    assert dataset.test_labels.tolist() == list(range(1000))


def test_what_is_in_neither_split_is_said(root: Path, tmp_path: Path) -> None:
    splits = {f"{s}/{n}": c for s in ("train", "test", "val") for n, c in TWO.items()}
    source = forms.write_zip(tmp_path / "pets.zip", {**splits, "cover.png": TWO["a/000.png"]})
    dataset = data.import_source(source, None, root)
    assert dataset.source == "class folders pets.zip, without 1 image in no folder"
    held_out = {name: c for name, c in splits.items() if not name.startswith("test/")}
    source = forms.write_zip(tmp_path / "held.zip", held_out)
    dataset = data.import_source(source, None, root, options=ImportOptions(test_fraction=0.5))
    assert dataset.source.startswith("class folders held.zip, 0.5 of each class")
    assert len(dataset.valid_labels) == 6


@pytest.mark.parametrize("name", ["valid", "Val", "validation"])
def test_a_folder_of_validation_images_is_the_given_split(
    root: Path, tmp_path: Path, name: str
) -> None:
    files = forms.class_folders()
    more = {
        path.replace("test/", f"{name}/"): content
        for path, content in reversed(files.items())
        if path.startswith("test/")
    }
    dataset = data.import_source(forms.write_zip(tmp_path / "a.zip", files | more), None, root)
    assert np.array_equal(dataset.valid_images.numpy(), forms.TEST_IMAGES)
    assert dataset.valid_labels.tolist() == forms.TEST_LABELS.tolist()
    assert np.array_equal(dataset.train_images.numpy(), forms.TRAIN_IMAGES)
    assert dataset.source == "class folders a.zip"
    plain = data.import_source(forms.write_zip(tmp_path / "b.zip", files), None, root)
    assert plain.digest != dataset.digest
    few = {path: content for path, content in more.items() if "/bee/" in path}
    some = data.import_source(forms.write_zip(tmp_path / "c.zip", files | few), None, root)
    assert some.valid_labels.tolist() == [1, 1], "by the number of the class in train/"
    odd = {path.replace("/bee/", "/cat/"): content for path, content in few.items()}
    with pytest.raises(UsageError, match=f"class 'cat' is in {name}/ but not in train/"):
        data.import_source(forms.write_zip(tmp_path / "d.zip", files | odd), "d", root)


TWO = flat({"a": 3, "b": 3})
MISTAKES = {
    "no fraction": (
        TWO,
        ImportOptions(),
        "neither train/ nor test/ above them; add --test-fraction 0.1",
    ),
    "a test folder": (
        forms.class_folders(),
        ImportOptions(test_fraction=0.1),
        "there is a test folder already; leave --test-fraction out",
    ),
    "no test": (
        {f"train/{n}": c for n, c in TWO.items()},
        ImportOptions(),
        "no test/<class>/ folder; .*, or add --test-fraction 0.1 to test with a part of train/",
    ),
    "one image": (
        flat({"a": 3, "b": 1}),
        ImportOptions(test_fraction=0.1),
        "class 'b' has a single image",
    ),
    "fraction": (
        TWO,
        ImportOptions(test_fraction=1.0),
        "--test-fraction is 1.0; it must lie between",
    ),
    "not a number": (TWO, ImportOptions(test_fraction=float("nan")), "--test-fraction is nan"),
    "resize": (TWO, ImportOptions(resize="strech"), "crop or stretch; did you mean 'stretch'"),
    "labels": (
        TWO,
        ImportOptions(labels="fine"),
        "--labels does not go with a folder of class folders",
    ),
    "official": (
        forms.official(),
        ImportOptions(resize="crop"),
        "--resize does not go with CIFAR-10",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_is_one_line(tmp_path: Path, root: Path, case: str) -> None:
    files, options, message = MISTAKES[case]
    with pytest.raises(UsageError, match=message) as caught:
        data.import_source(
            forms.write_zip(tmp_path / "a.zip", files), "mine", root, options=options
        )
    assert "\n" not in str(caught.value)
    assert not root.exists()


# Names --------------------------------------------------------------------------------------------


def test_cifar10_is_known_by_its_classes(tmp_path: Path, root: Path) -> None:
    files = flat(dict.fromkeys(CLASSES, 2))
    source = forms.write_zip(tmp_path / "copy of it.zip", files)
    options = ImportOptions(test_fraction=0.5)
    assert data.import_source(source, None, root, options=options).name == "cifar10"
    with pytest.raises(UsageError, match=r"data set 'cifar10' in .* already"):
        data.import_source(source, None, root, options=options)


def test_a_source_without_a_name(tmp_path: Path, root: Path) -> None:
    source = forms.write_zip(tmp_path / "äöü.zip", flat({"a": 2, "b": 2}))
    with pytest.raises(UsageError, match="give one with --name"):
        data.import_source(source, None, root, options=ImportOptions(test_fraction=0.5))
