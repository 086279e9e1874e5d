"""Grids of images: pixels, captions, colours, and input that is refused."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from torch import Tensor

from fcifar import random
from fcifar.data import Split, make_dataset
from fcifar.data.dataset import Dataset
from fcifar.errors import UsageError
from fcifar.report.figures import grids
from fcifar.report.figures.canvas import save
from fcifar.report.figures.grids import RIGHT, WRONG, verdict

CLASSES = ("cat", "dog", "$hip_$")
WHITE = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)


def _read(path: Path) -> Tensor:
    from matplotlib.image import imread

    return (torch.from_numpy(imread(path))[..., :3] * 255).round().to(torch.uint8).permute(2, 0, 1)


def _images(n: int, side: int = 32) -> Tensor:
    return random.randint(random.key(n), (n, 3, side, side), 0, 256).to(torch.uint8)


def _dataset(counts: tuple[int, ...] = (5, 1, 0)) -> Dataset:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    names = tuple(f"class {i}" for i in range(len(counts)))
    images = _images(len(labels))
    return Dataset("toy", images, labels, images[:1], labels[:1], names, "made up", "0" * 64)


def test_a_grid_shows_each_picture_in_its_place_pixel_by_pixel(tmp_path):
    images = _images(5)
    path = save(grids.image_grid(images, list("abcde"), columns=3), tmp_path / "grid.png")
    sheet = _read(path)
    factor = grids.SIDE // 32
    first_row = _find(sheet, images[0], factor)
    for i, image in enumerate(images):
        y, x = _find(sheet, image, factor)
        assert x - first_row[1] == i % 3 * (grids.SIDE + grids.GAP)
        assert (y > first_row[0]) == (i >= 3)
        shown = sheet[:, y : y + 32 * factor, x : x + 32 * factor]
        assert torch.equal(shown[:, ::factor, ::factor], image)
        assert torch.equal(shown[:, factor - 1 :: factor, factor - 1 :: factor], image)


def test_titles_stay_in_their_column_however_long(tmp_path):
    images = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    titles = ["", "an endless name for a class " * 4 + "\nand a second line " * 2, ""]
    sheet = _read(save(grids.image_grid(images, titles), tmp_path / "grid.png"))
    inked = (sheet.amin(0) < 200).any(0).nonzero().flatten()
    left = grids.MARGIN + grids.SIDE
    assert inked.min() > left
    assert inked.max() < left + grids.SIDE + 2 * grids.GAP


def test_titles_have_their_colours_and_dollars_are_dollars(tmp_path):
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    sheet = _read(
        save(
            grids.image_grid(images, ["$x_$", "HHHH"], colors=["#ff0000", "#0000ff"]),
            tmp_path / "grid.png",
        )
    )
    half = sheet.shape[-1] // 2
    red, blue = sheet[:, :, :half], sheet[:, :, half:]
    assert _holds(red, (255, 0, 0))
    assert _holds(blue, (0, 0, 255))
    assert not _holds(red, (0, 0, 255))


@pytest.mark.parametrize("side", [8, 33, 300])
def test_pictures_of_any_size(tmp_path, side):
    image = _images(1, side)
    sheet = _read(save(grids.image_grid(image, ["one"], heading="any size"), tmp_path / "grid.png"))
    assert _find(sheet, image[0], max(1, grids.SIDE // side)) is not None


def test_what_cannot_be_a_grid_is_refused(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(UsageError, match="2 images, 1 captions"):
        save(grids.image_grid(_images(2), ["a"]), tmp_path / "grid.png")
    with pytest.raises(UsageError, match="uint8"):
        save(grids.image_grid(_images(2).float(), ["a", "b"]), tmp_path / "grid.png")
    with pytest.raises(UsageError, match="N at least 1"):
        save(grids.image_grid(_images(2)[:0], []), tmp_path / "grid.png")
    assert not path.exists()


def test_a_failed_drawing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = save(grids.image_grid(_images(1), ["old"]), tmp_path / "grid.png")
    old = path.read_bytes()
    with pytest.raises(ValueError, match="not a colour"):
        save(grids.image_grid(_images(1), ["new"], colors=["not a colour"]), tmp_path / "grid.png")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_preview_has_a_row_for_each_class_and_its_picks_depend_on_the_key(tmp_path):
    data = _dataset()
    factor = grids.SIDE // 32

    def shown(seed: int) -> list[tuple[int, int] | None]:
        path = save(grids.preview(data, rows_per_class=2, key=random.key(seed)), tmp_path / "p.png")
        sheet = _read(path)
        return [_find(sheet, image, factor) for image in data.train_images]

    one = shown(0)
    assert sum(place is not None for place in one[:5]) == 2
    first, only = next(place for place in one[:5] if place), one[5]
    assert only is not None
    assert only[0] > first[0]
    assert one == shown(0)
    assert any(shown(seed) != one for seed in (1, 2, 3))


@pytest.mark.parametrize("count", [2, 1000])
def test_a_preview_shows_some_of_many_classes(count):
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 3, 32, 32).to(torch.uint8)
    split = Split(images.contiguous(), labels)
    names = [f"class number {i}" for i in range(count)]
    dataset = make_dataset("many", split, split, names, "tests")
    one, two = (grids.preview(dataset, rows_per_class=1, key=random.key(i)) for i in range(2))
    assert one.size[1] < 11_000
    assert (one.tobytes() == two.tobytes()) == (count == 2), "the key chooses classes"


# Predictions --------------------------------------------------------------------------------------


def test_right_is_green_and_wrong_is_red_with_the_truth_in_brackets():
    assert verdict("cat", "cat", 0.973) == ("cat\n97.3 %", RIGHT)
    assert verdict("cat", "dog", 0.5) == ("cat (dog)\n50.0 %", WRONG)
    assert verdict("cat", "dog", math.nan) == ("cat (dog)\nno confidence", WRONG)


def test_right_and_wrong_have_the_colours_of_their_names():
    assert to_rgb(RIGHT)[1] == max(to_rgb(RIGHT))
    assert to_rgb(WRONG)[0] == max(to_rgb(WRONG))


def test_each_title_stands_under_its_picture_in_its_colour(tmp_path):
    truth, guess = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])
    confidence = torch.tensor([0.9, 0.8, math.nan], dtype=torch.float64)
    path = save(
        grids.predictions_grid(WHITE, truth, guess, confidence, CLASSES, heading="$5 or $6"),
        tmp_path / "p.png",
    )
    sheet = torch.from_numpy(imread(path))[..., :3]
    colors = [
        [
            bool(((part - torch.tensor(to_rgb(c))).abs() < 2e-3).all(-1).any())
            for c in (RIGHT, WRONG)
        ]
        for part in sheet.chunk(3, dim=1)
    ]
    assert colors == [[True, False], [False, True], [True, False]]


def test_a_training_batch_of_twenty_is_four_rows_of_five(tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(20) % 3
    path = save(grids.training_grid(images, labels, CLASSES, heading="a batch"), tmp_path / "t.png")
    dark = (torch.from_numpy(imread(path))[..., :3] == 0).all(-1)
    assert (dark.sum(0) >= 4 * 224).sum() == 5 * 224
    assert (dark.sum(1) >= 5 * 224).sum() == 4 * 224
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "one class number each"),
        ([0, 1, 3], "0 to 2, not 0 to 3"),
        ([0, 1, -1], "0 to 2, not -1 to 1"),
        ([0.0, 1.0, 1.0], "float32"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels, message):
    good, bad, sure = torch.tensor([0, 1, 2]), torch.tensor(labels), torch.ones(3)
    with pytest.raises(UsageError, match=message):
        grids.training_grid(WHITE, bad, CLASSES, heading="")
    with pytest.raises(UsageError, match=message):
        grids.predictions_grid(WHITE, good, bad, sure, CLASSES, heading="")
    with pytest.raises(UsageError, match=message):
        grids.predictions_grid(WHITE, bad, good, sure, CLASSES, heading="")
    with pytest.raises(UsageError, match="2 confidences"):
        grids.predictions_grid(WHITE, good, good, sure[:2], CLASSES, heading="")
    with pytest.raises(UsageError, match="N at least 1"):
        grids.training_grid(WHITE[:0], good[:0], CLASSES, heading="")


def _find(sheet: Tensor, image: Tensor, factor: int) -> tuple[int, int] | None:
    """Where the enlarged ``image`` lies on the sheet: (y, x) of its top left corner."""
    size = image.shape[-1] * factor
    first = (sheet == image[:, :1, :1]).all(0)
    for y, x in first.nonzero().tolist():
        shown = sheet[:, y : y + size : factor, x : x + size : factor]
        if torch.equal(shown, image):
            return y, x
    return None


def _mask(sheet: Tensor, color: tuple[int, int, int]) -> Tensor:
    return (sheet == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0)


def _holds(sheet: Tensor, color: tuple[int, int, int], at_least: int = 1) -> bool:
    return int(_mask(sheet, color).sum()) >= at_least
