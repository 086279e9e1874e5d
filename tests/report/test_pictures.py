"""Sheets and plots: whole files, exact pictures, and no crash on what real runs log."""

import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matplotlib import font_manager, rcParams
from torch import Tensor

from fcifar import random
from fcifar.analysis import calibration
from fcifar.data.dataset import Dataset
from fcifar.errors import UsageError
from fcifar.report import (
    channels_picture,
    confusion_picture,
    figures,
    labelled_grid,
    learning_curve,
    per_class_bars,
    pictures,
    plots,
    preview,
    reliability_picture,
)


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


IN_A_FRESH_PROCESS = """
import pathlib, sys, torch
import fcifar.report
print([m for m in ("matplotlib", "torchvision") if m in sys.modules])
import matplotlib
before = list(dict.items(matplotlib.rcParams))  # reading them one by one would choose a backend
images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
fcifar.report.labelled_grid(images, ["black"], pathlib.Path(sys.argv[1]) / "grid.png")
fcifar.report.learning_curve([], pathlib.Path(sys.argv[1]) / "curve.png", title="nothing")
print(list(dict.items(matplotlib.rcParams)) == before, "matplotlib.pyplot" in sys.modules)
"""


def test_importing_is_light_and_drawing_leaves_global_settings_and_pyplot_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "True False"]


def test_a_grid_shows_each_picture_in_its_place_pixel_by_pixel(tmp_path):
    images = _images(5)
    path = labelled_grid(images, list("abcde"), tmp_path / "grid.png", columns=3)
    sheet = _read(path)
    factor = pictures.PICTURE // 32
    first_row = _find(sheet, images[0], factor)
    for i, image in enumerate(images):
        y, x = _find(sheet, image, factor)
        assert x - first_row[1] == i % 3 * (pictures.PICTURE + pictures.GAP)
        assert (y > first_row[0]) == (i >= 3)
        shown = sheet[:, y : y + 32 * factor, x : x + 32 * factor]
        assert torch.equal(shown[:, ::factor, ::factor], image)
        assert torch.equal(shown[:, factor - 1 :: factor, factor - 1 :: factor], image)


def test_titles_stay_in_their_column_however_long(tmp_path):
    images = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)
    titles = ["", "an endless name for a class " * 4 + "\nand a second line " * 2, ""]
    sheet = _read(labelled_grid(images, titles, tmp_path / "grid.png"))
    inked = (sheet.amin(0) < 200).any(0).nonzero().flatten()
    left = pictures.MARGIN + pictures.PICTURE
    assert inked.min() > left
    assert inked.max() < left + pictures.PICTURE + 2 * pictures.GAP


def test_titles_have_their_colours_and_dollars_are_dollars(tmp_path):
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    path = tmp_path / "grid.png"
    sheet = _read(labelled_grid(images, ["$x_$", "HHHH"], path, colors=["#ff0000", "#0000ff"]))
    half = sheet.shape[-1] // 2
    red, blue = sheet[:, :, :half], sheet[:, :, half:]
    assert _holds(red, (255, 0, 0))
    assert _holds(blue, (0, 0, 255))
    assert not _holds(red, (0, 0, 255))


@pytest.mark.parametrize("side", [8, 33, 300])
def test_pictures_of_any_size(tmp_path, side):
    image = _images(1, side)
    sheet = _read(labelled_grid(image, ["one"], tmp_path / "grid.png", heading="any size"))
    assert _find(sheet, image[0], max(1, pictures.PICTURE // side)) is not None


def test_what_cannot_be_a_grid_is_refused(tmp_path):
    path = tmp_path / "grid.png"
    with pytest.raises(UsageError, match="2 images, 1 titles"):
        labelled_grid(_images(2), ["a"], path)
    with pytest.raises(UsageError, match="uint8"):
        labelled_grid(_images(2).float(), ["a", "b"], path)
    with pytest.raises(UsageError, match="N at least 1"):
        labelled_grid(_images(2)[:0], [], path)
    assert not path.exists()


def test_a_failed_drawing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = labelled_grid(_images(1), ["old"], tmp_path / "grid.png")
    old = path.read_bytes()
    with pytest.raises(ValueError, match="not a colour"):
        labelled_grid(_images(1), ["new"], path, colors=["not a colour"])
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_preview_has_a_row_for_each_class_and_its_picks_depend_on_the_key(tmp_path):
    data = _dataset()
    factor = pictures.PICTURE // 32

    def shown(seed: int) -> list[tuple[int, int] | None]:
        path = preview(data, tmp_path / "p.png", rows_per_class=2, key=random.key(seed))
        sheet = _read(path)
        return [_find(sheet, image, factor) for image in data.train_images]

    one = shown(0)
    assert sum(place is not None for place in one[:5]) == 2
    first, only = next(place for place in one[:5] if place), one[5]
    assert only is not None
    assert only[0] > first[0]
    assert one == shown(0)
    assert any(shown(seed) != one for seed in (1, 2, 3))


RECORDS: list[dict[str, object]] = [
    {"split": "train", "step": 0, "note": "passed over"},
    *(
        {"split": "train", "step": i, "epoch": i / 10, "loss": 2.3 / i, "accuracy": 1 - 0.9 / i}
        for i in range(1, 20)
    ),
    {"split": "test", "step": 20, "epoch": 2.0, "loss": 0.5, "accuracy": 0.75},
]


def test_a_single_evaluation_is_a_marker_in_its_colour(tmp_path):
    with_test = _read(learning_curve(RECORDS, tmp_path / "a.png", title="run"))
    without = _read(learning_curve(RECORDS[:-1], tmp_path / "b.png", title="run"))
    vermilion = (0xD5, 0x5E, 0x00)
    assert _holds(with_test, vermilion, at_least=100)
    assert not _holds(without, vermilion)


@pytest.mark.parametrize(
    "records",
    [
        [],
        RECORDS[1:2],
        RECORDS[-1:],
        [{"split": "train", "step": 1, "epoch": 0.1}],
        [{"split": "train", "step": 1, "epoch": 0.1, "loss": math.nan, "accuracy": 0.1}],
        [{"split": "valid", "epoch": 1.0, "loss": None, "accuracy": math.inf}],
        [*RECORDS, {"split": "train", "step": 30, "epoch": 3.0, "loss": math.inf, "accuracy": 0.1}],
    ],
    ids=["none", "one point", "eval alone", "no values", "nan", "null and inf", "diverged"],
)
def test_a_learning_curve_of_whatever_was_logged(tmp_path, records):
    path = learning_curve(records, tmp_path / "curve.png", title="costs $5 and $6")
    assert _read(path).shape[0] == 3
    assert list(tmp_path.iterdir()) == [path]


def test_labels_at_the_edge_keep_their_distance_and_their_order():
    places = plots._spread([0.5, 0.51, 0.52, 0.9], 0.1)
    assert places == sorted(places)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(places))
    assert plots._spread([0.1, 0.8], 0.1) == [0.1, 0.8]


def test_bars_are_as_long_as_the_accuracy(tmp_path):
    per_class = {
        "low": {"correct": 25, "total": 100, "accuracy": 0.25},
        "high $": {"correct": 100, "total": 100, "accuracy": 1.0},
        "a class name that is far too long for its place": {
            "correct": 0,
            "total": 0,
            "accuracy": math.nan,
        },
    }
    sheet = _read(per_class_bars(per_class, tmp_path / "bars.png", title="per class"))
    blue = _mask(sheet, (0x00, 0x72, 0xB2)).sum(1)
    lengths = blue[blue > 0]
    assert lengths[0] == lengths.max()  # the best comes first
    assert abs(lengths[-1] / lengths[0] - 0.25) < 0.02


def test_bars_of_no_class_at_all(tmp_path):
    assert per_class_bars({}, tmp_path / "bars.png", title="nothing").exists()


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


# Letters that the usual font lacks ----------------------------------------------------------------


def made_font(letters: str, name: str, path: Path, *, weight: int = 400) -> Path:
    """A font in which each of the letters is a black square, and nothing else is."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    names = {f"glyph{ord(letter)}": letter for letter in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): glyph for glyph, letter in names.items()})
    builder.setupGlyf(dict.fromkeys((".notdef", *names), square))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names), (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=weight)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """A function that installs fonts after matplotlib has looked for them; at first there are none
    but its own."""
    manager = font_manager.fontManager
    own = [entry for entry in manager.ttflist if "mpl-data" in str(entry.fname)]
    monkeypatch.setattr(manager, "ttflist", own)
    found: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: found)
    figures.more_fonts.cache_clear()
    yield lambda path: found.append(str(path))
    figures.more_fonts.cache_clear()


def drawn_with(classes: Sequence[str], folder: Path) -> list[Path]:
    """Every picture that shows names, or a title."""
    counts = {"correct": 1, "total": 2, "accuracy": 0.5}
    title, n = " ".join(classes), len(classes)
    images, labels = _images(n), torch.arange(n)
    names = Dataset("a", images, labels, images, labels, tuple(classes), "tests", "")
    probabilities = calibration.reliability(torch.full((n,), 0.6), labels < 1)
    return [
        per_class_bars(dict.fromkeys(classes, counts), folder / "bars.png", title="names"),
        learning_curve([], folder / "curve.png", title=title),
        confusion_picture(torch.eye(n).long(), classes, folder / "confusion.png", title="names"),
        channels_picture(images[0], folder / "channels.png", title=title),
        reliability_picture(probabilities, 0.5, folder / "reliability.png", title=title),
        labelled_grid(images, list(classes), folder / "grid.png"),
        preview(names, folder / "preview.png", rows_per_class=1, key=random.key(0)),
    ]


def test_letters_come_from_a_font_that_has_them(installed, tmp_path: Path) -> None:
    """The plainest of those that have the most, also one that was installed since."""
    installed(made_font("犬", "Half Sans", tmp_path / "half.ttf"))
    installed(made_font("猫犬", "Bold Sans", tmp_path / "bold.ttf", weight=700))
    installed(made_font("猫犬", "Whole Sans", tmp_path / "whole.ttf"))
    installed(made_font("木", "Tree Sans", tmp_path / "tree.ttf"))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(tmp_path / "broken.ttf")
    assert figures.more_fonts(frozenset("cat é")) == ()
    assert figures.more_fonts(frozenset("猫犬 cat")) == ("Whole Sans",)
    assert figures.more_fonts(frozenset("猫木鳥")) == ("Tree Sans", "Whole Sans")
    before = list(rcParams["font.family"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in drawn_with(("猫猫猫猫", "cat"), tmp_path):
            black = (_read(path) < 60).all(0).int()
            # Four squares beside each other: a block that no letter of the usual font makes.
            blocks = torch.nn.functional.avg_pool2d(black[None].float(), (7, 28), 1)
            assert path.name == "confusion.png" or blocks.max() > 0.9, path.name
    assert rcParams["font.family"] == before, "what a program of the user's draws is as it was"


def test_letters_that_no_font_has_are_boxes_without_a_warning(installed, tmp_path: Path) -> None:
    assert figures.more_fonts(frozenset("猫犬 cat")) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in drawn_with(("猫", "cat"), tmp_path):
            assert path.stat().st_size
