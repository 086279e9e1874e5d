"""Files, fonts and SVG elements of figures."""

import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib import font_manager, get_data_path, rcParams

from fcifar import random
from fcifar.analysis import calibration
from fcifar.data.dataset import Dataset
from fcifar.errors import ExternalError
from fcifar.report.figures import bars, canvas, channels, confusion, curves, grids, reliability
from fcifar.report.figures.canvas import COLORS, CSS_VARIABLES, ink_on, new_figure, save, to_svg

FOLDER = Path(canvas.__file__).parents[1] / "page"


def chart(title: str = "a chart"):
    figure = new_figure(3, 2, title)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=canvas.BLUE, marker="o")
    axes.set_title("x < y & $z", parse_math=False, color=canvas.INK)
    canvas.tidy(axes)
    return figure


IN_A_FRESH_PROCESS = """
import pathlib, sys, torch
import fcifar.report.draw, fcifar.report.page
from fcifar.report.figures import canvas, curves, grids
print([m for m in ("matplotlib", "torchvision", "jinja2") if m in sys.modules])
import matplotlib
before = list(dict.items(matplotlib.rcParams))  # reading them one by one would choose a backend
images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
folder = pathlib.Path(sys.argv[1])
canvas.save(grids.image_grid(images, ["black"]), folder / "grid.png")
canvas.save(curves.of_run([], title="nothing"), folder / "curve.png")
canvas.to_svg(curves.of_run([]), "nothing")
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


def test_ink_has_the_higher_contrast():
    assert ink_on((0.0, 0.0, 0.0)) == ink_on((0.0, 0.0, 1.0)) == canvas.ON_DARK
    assert ink_on((1.0, 1.0, 1.0)) == ink_on((1.0, 1.0, 0.0)) == canvas.INK
    assert ink_on((117 / 255,) * 3) == canvas.ON_DARK  # the limit is between these two greys
    assert ink_on((118 / 255,) * 3) == canvas.INK


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = save(chart("old"), tmp_path / "new" / "m.png")
    old = path.read_bytes()

    def half_written(self: object, file: Path, **_: object) -> None:
        file.write_bytes(old[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_written)
    with pytest.raises(ExternalError, match="No space left"):
        save(chart("new"), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


# SVG ---------------------------------------------------------------------------------------------


def test_an_svg_has_text_a_label_and_refers_to_nothing_outside():
    svg = to_svg(chart(), 'a "chart" & more')
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "chart" & more'
    texts = ["".join(each.itertext()).strip() for each in root.iter() if each.tag.endswith("text")]
    assert {"a chart", "x < y & $z"} <= set(texts)
    assert not list(root.iter("style"))
    assert "font-family" not in svg
    assert "http" not in svg
    ids = {each.attrib["id"] for each in root.iter() if "id" in each.attrib}
    references = re.findall(r'href="#(.*?)"|url\(#(.*?)\)', svg)
    assert references
    assert all((first or second) in ids for first, second in references)


def test_an_svg_has_the_colours_of_the_page():
    svg = to_svg(chart(), "a chart")
    assert "var(--c0)" in svg
    assert "var(--ink)" in svg
    assert not [color for color in CSS_VARIABLES if color in svg]


def test_equal_figures_are_equal_elements():
    assert to_svg(chart(), "a") == to_svg(chart(), "a")


def test_the_page_gives_every_colour_its_value_in_light_and_another_in_dark():
    style = (FOLDER / "page.css").read_text()
    light, dark = re.findall(r":root \{\n(.*?)\}", style, re.DOTALL)[:2]
    for color, variable in CSS_VARIABLES.items():
        assert f"{variable}: {color};" in light
        assert re.search(f"{variable}: (?!{color})#", dark), variable
    assert len(set(COLORS)) == len(COLORS)


# Characters that the default font lacks -----------------------------------------------------------


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
    monkeypatch.setattr(manager, "ttflist", [])  # its list may come from a cache that lacks some
    for path in Path(get_data_path(), "fonts", "ttf").glob("*.ttf"):
        manager.addfont(path)
    monkeypatch.setattr(font_manager, "json_dump", lambda *_: None)  # the user's cache stays
    found: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_, **__: found)
    canvas.fallback_fonts.cache_clear()
    yield lambda path: found.append(str(path))
    canvas.fallback_fonts.cache_clear()


def read(path: Path) -> torch.Tensor:
    from matplotlib.image import imread

    return (torch.from_numpy(imread(path))[..., :3] * 255).round().permute(2, 0, 1)


def drawn_with(classes: Sequence[str], folder: Path) -> list[Path]:
    """Every figure with names, or with a title."""
    counts = {"correct": 1, "total": 2, "accuracy": 0.5}
    title, n = " ".join(classes), len(classes)
    images, labels = torch.zeros(n, 3, 32, 32, dtype=torch.uint8) + 128, torch.arange(n)
    dataset = Dataset("a", images, labels, images, labels, tuple(classes), "tests", "")
    bins = calibration.reliability(torch.full((n,), 0.6), labels < 1)
    drawn = {
        "bars": bars.per_class(dict.fromkeys(classes, counts), title="names"),
        "curve": curves.of_run([], title=title),
        "confusion": confusion.draw(torch.eye(n).long(), classes, title="names"),
        "channels": channels.draw(images[0], title=title),
        "reliability": reliability.draw(bins, 0.5, title=title),
        "grid": grids.image_grid(images, list(classes)),
        "preview": grids.preview(dataset, rows_per_class=1, key=random.key(0)),
    }
    return [save(each, folder / f"{name}.png") for name, each in drawn.items()]


def test_letters_come_from_a_font_that_has_them(installed, tmp_path: Path) -> None:
    """The plainest of those that have the most, also one that was installed since."""
    installed(made_font("犬", "Half Sans", tmp_path / "half.ttf"))
    installed(made_font("猫犬", "Bold Sans", tmp_path / "bold.ttf", weight=700))
    installed(made_font("猫犬", "Whole Sans", tmp_path / "whole.ttf"))
    installed(made_font("木", "Tree Sans", tmp_path / "tree.ttf"))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(tmp_path / "broken.ttf")
    assert canvas.fallback_fonts(frozenset("cat é")) == ()
    assert canvas.fallback_fonts(frozenset("猫犬 cat")) == ("Whole Sans",)
    assert canvas.fallback_fonts(frozenset("猫木鳥")) == ("Tree Sans", "Whole Sans")
    before = list(rcParams["font.family"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in drawn_with(("猫猫猫猫", "cat"), tmp_path):
            black = (read(path) < 60).all(0).int()
            # Four squares beside each other: a block that no letter of the usual font makes.
            blocks = torch.nn.functional.avg_pool2d(black[None].float(), (7, 28), 1)
            assert path.name == "confusion.png" or blocks.max() > 0.9, path.name
    assert rcParams["font.family"] == before, "what a program of the user's draws is as it was"


def test_letters_that_no_font_has_are_boxes_without_a_warning(installed, tmp_path: Path) -> None:
    assert canvas.fallback_fonts(frozenset("猫犬 cat")) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in drawn_with(("猫", "cat"), tmp_path):
            assert path.stat().st_size
