"""Colours, fonts, titles and files of figures.

Figures are matplotlib's, drawn without pyplot and without a change of its global settings. A chart
is a function from values to a ``Figure``; ``save`` makes a PNG file of it, and ``to_svg`` an SVG
element whose colours are the CSS variables of the page around it.
"""

import contextlib
import functools
import gc
import io
import re
import warnings
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from fcifar.io import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from PIL.Image import Image

DPI = 160
MARGIN = 0.2  # inches
INK, SOFT, FAINT, PAPER = "#1f2429", "#5c6670", "#e4e7ea", "#ffffff"
ON_DARK = "#fefefe"  # text on a dark cell, on a light and on a dark page
# Okabe and Ito's palette, darkened where it is text: distinct for every kind of colour vision.
BLUE, VERMILION, GREEN, PURPLE, OCHRE, SKY, GREY = COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#b4569a", "#b07700", "#3f9bd6", "#6b7480",
)  # fmt: skip
# page.css gives each variable this value on a light page, and another one on a dark page.
CSS_VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    FAINT: "--faint",
    PAPER: "--paper",
    **{color: f"--c{i}" for i, color in enumerate(COLORS)},
}


def empty_figure(width: float, height: float, dpi: float) -> "Figure":
    """Return a figure, in inches, on which the size of texts can be measured.

    Without a canvas, matplotlib makes one of the figure's size for every measurement.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), dpi=dpi)).figure


def new_figure(width: float, height: float, title: str = "", subtitle: str = "") -> "Figure":
    """Return an empty figure, in inches, with a title and a smaller line below it.

    matplotlib's constrained layout places the axes below the title.
    """
    figure = empty_figure(width, height, DPI)
    top = 0.0
    for text, size, color, line in ((title, 13, INK, 0.28), (subtitle, 9.5, SOFT, 0.24)):
        if text:
            place = (MARGIN / width, 1 - (top + line) / height)
            drawn = figure.text(*place, text, size=size, color=color, va="center", parse_math=False)
            fit(drawn, figure.bbox.width - 2 * MARGIN * DPI)
            drawn.set_in_layout(False)
            top += line
    top += 0.14 if top else 0.0
    rect = (0, 0, 1, 1 - top / height)
    figure.set_layout_engine("constrained", rect=rect, w_pad=0.08, h_pad=0.08)
    return figure


def tidy(axes: "Axes", *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Draw a faint grid ("both", "x" or "y") and only the left and the bottom spine."""
    axes.set_facecolor("none")
    axes.grid(color=FAINT, linewidth=0.8, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=SOFT)


def label_axes(axes: "Axes", x: str = "", y: str = "") -> None:
    """Name the axes. The names may come from outside: a dollar sign starts no formula."""
    axes.set_xlabel(x, color=INK, parse_math=False)
    axes.set_ylabel(y, color=INK, parse_math=False)


def ink_on(color: Sequence[float]) -> str:
    """Return the text colour with the higher contrast on ``color``, (red, green, blue) in [0, 1].

    The contrast is that of the Web Content Accessibility Guidelines 2.2, where black and white are
    equal at a relative luminance of 0.179.
    """
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]
    )
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else ON_DARK


def shorten(text: str, length: int) -> str:
    """Return ``text``, cut short with an ellipsis if it has more than ``length`` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# Files -------------------------------------------------------------------------------------------


def save(drawn: "Figure | Image", path: Path) -> Path:
    """Write a figure or an image as a PNG file, atomically; return ``path``."""
    from PIL import Image

    with replacing(path) as temporary:
        if isinstance(drawn, Image.Image):
            drawn.save(temporary, format="png", dpi=drawn.info["dpi"], compress_level=3)
        else:
            with _fonts_for(drawn):
                drawn.savefig(temporary, format="png", dpi=DPI)
    del drawn
    gc.collect()  # figures refer to themselves, and hold their pixels
    return path


def to_svg(figure: "Figure", label: str) -> str:
    """Return a figure as an SVG element for an HTML page.

    Colours become the variables in ``CSS_VARIABLES``, text stays text in the font of the page, and
    the element refers to nothing outside the page. Equal figures give equal elements.

    Args:
        figure: drawn in the colours of this module.
        label: the text alternative, for screen readers.
    """
    import html

    import matplotlib

    file = io.StringIO()
    # The salt is in the identifiers of clip paths and markers, which are shared by the whole page.
    settings = {"svg.fonttype": "none", "svg.hashsalt": label}
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(settings), _fonts_for(figure):
        figure.savefig(file, format="svg", metadata=metadata, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    width, height = (72 * inches for inches in figure.get_size_inches())
    head = (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(label)}" '
        f'style="min-width: {0.75 * width:.0f}px; max-width: {1.25 * width:.0f}px">'
    )
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-z]\w*?_\d+"|font-family: [^;"]*;?', "", text)  # of groups; DejaVu
    text = text.replace("xlink:href", "href")
    for color, variable in CSS_VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", "\n", text)


def rendered(figure: "Figure") -> Any:
    """Return the pixels of a figure, uint8 [H, W, 4]."""
    canvas: Any = figure.canvas
    with _fonts_for(figure):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def compose(figure: "Figure", sheet: Tensor) -> "Image":
    """Return ``sheet``, uint8 [3, H, W], with a figure of that size drawn over it.

    The pixels of the sheet are kept exactly, in a tenth of the memory of ``Figure.figimage``.
    """
    from PIL import Image

    figure.patch.set_alpha(0)
    drawn = Image.fromarray(rendered(figure))
    image = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    image.paste(drawn, mask=drawn)
    image.info["dpi"] = (figure.dpi, figure.dpi)
    return image


# Text --------------------------------------------------------------------------------------------


def fit(text: "Text", width: float, *, smallest: float = 0.0) -> None:
    """Make a text as small as it takes to be ``width`` pixels wide, then cut it short.

    Args:
        text: of a figure; it may have several lines.
        width: in pixels.
        smallest: the font size, in points, below which the longest line is cut instead.
    """
    with _fonts_for_texts([text]):

        def ratio() -> float:
            return text.get_window_extent().width / width

        if ratio() > 1:
            text.set_fontsize(max(smallest, float(text.get_fontsize()) / ratio()))
        while ratio() > 1.02 and smallest:
            lines = text.get_text().split("\n")
            longest = max(range(len(lines)), key=lambda i: len(lines[i]))
            lines[longest] = shorten(lines[longest], max(len(lines[longest]) - 1, 1))
            if "\n".join(lines) == text.get_text():
                return
            text.set_text("\n".join(lines))


def _fonts_for(figure: "Figure") -> contextlib.AbstractContextManager[None]:
    from matplotlib.text import Text

    return _fonts_for_texts(figure.findobj(Text))


@contextlib.contextmanager
def _fonts_for_texts(texts: Iterable["Text"]) -> Generator[None]:
    """Give each text fonts that have its characters. A character that no font has is a box."""
    for text in texts:
        if not text.get_text().isascii():
            own = text.get_fontfamily()
            more = fallback_fonts(frozenset(text.get_text()))
            text.set_fontfamily([*own, *(name for name in more if name not in own)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        yield


@functools.lru_cache(maxsize=64)
def fallback_fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """Return installed font families with the characters that the default font lacks, few of them.

    Upright, regular and sans-serif fonts come first where several have the same characters.
    """
    from matplotlib import font_manager

    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    missing = {c for c in characters if c.isprintable() and not default.get_char_index(ord(c))}
    manager = font_manager.fontManager
    chosen = _covering(missing, manager.ttflist)
    if missing - {" "}:  # a font may have been installed after matplotlib listed them
        known = {entry.fname for entry in manager.ttflist}
        for path in sorted(set(map(str, font_manager.findSystemFonts())) - known):
            with contextlib.suppress(Exception):  # matplotlib cannot read it
                manager.addfont(path)
        new = [entry for entry in manager.ttflist if entry.fname not in known]
        chosen += _covering(missing, new)
    return tuple(chosen)


def _covering(missing: set[str], entries: Sequence[Any]) -> list[str]:
    """Choose families greedily, and remove their characters from ``missing``."""
    from matplotlib import font_manager

    def plainness(entry: Any) -> tuple[bool, float, bool, str]:
        weight = entry.weight if isinstance(entry.weight, int | float) else 400
        return entry.style != "normal", abs(weight - 400), "Sans" not in entry.name, entry.name

    families: dict[str, set[str]] = {}
    for entry in sorted(entries, key=plainness) if missing else ():
        if entry.name in families or entry.name.startswith("Last Resort"):  # it has boxes only
            continue
        with contextlib.suppress(OSError, RuntimeError):  # the file is missing or damaged
            font = font_manager.get_font(entry.fname)
            # Bitmap fonts, such as those of colour emoji, have one size.
            has = {c for c in missing if font.get_char_index(ord(c))} if font.scalable else set()
            families[entry.name] = has
    chosen = []
    while families:
        best = max(families, key=lambda name: len(families[name] & missing))
        if not families[best] & missing:
            break
        chosen.append(best)
        missing -= families[best]
    return chosen
