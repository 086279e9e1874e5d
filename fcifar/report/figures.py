"""What the figures of a report have in common: type, colours, saving."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from fcifar.io import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

DPI = 160
INK, SOFT, FAINT = "#222222", "#666666", "#d9d9d9"
BLUE, VERMILION = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, for every colour vision
MARGIN = 0.2  # inches


def titled(width: float, height: float, title: str, subtitle: str = "") -> "Figure":
    """An empty figure, in inches, with a title and a smaller line under it at the top left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    for text, size, color, below in ((title, 13, INK, 0.28), (subtitle, 9.5, SOFT, 0.55)):
        line = figure.text(
            MARGIN / width,
            1 - below / height,
            text,
            size=size,
            color=color,
            va="center",
            parse_math=False,
        )
        room = figure.bbox.width - 2 * MARGIN * DPI
        line.set_fontsize(size * min(1.0, room / max(line.get_window_extent().width, 1.0)))
    return figure


def with_fonts(draw: Callable[P, R]) -> Callable[P, R]:
    """A function that draws, with fonts that have every letter of the texts it is given.

    Where no installed font has a letter, a box stands for it, without a warning.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        letters = frozenset(letter for text in _texts((args, kwargs)) for letter in text)
        if all(letter.isascii() for letter in letters):
            return draw(*args, **kwargs)
        import matplotlib

        families = [*matplotlib.rcParams["font.family"], *more_fonts(letters)]
        with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
            return draw(*args, **kwargs)

    return drawn


def _texts(values: Any) -> Iterator[str]:
    """Every text in arguments."""
    if isinstance(values, (str, Path)):
        yield str(values)
    elif isinstance(values, Mapping):
        yield from _texts([*values, *values.values()])
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _texts(value)


@functools.lru_cache(maxsize=64)
def more_fonts(letters: frozenset[str]) -> tuple[str, ...]:
    """Installed families that have what the usual font lacks, chosen greedily to be few.

    Upright, of ordinary weight and without serifs, where several have the same letters.
    """
    from matplotlib import font_manager

    usual = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    lacking = {letter for letter in letters if not usual.get_char_index(ord(letter))}
    lacking = {letter for letter in lacking if letter.isprintable() and not letter.isspace()}
    if not lacking:
        return ()
    manager = font_manager.fontManager
    chosen = _covering(lacking, manager.ttflist)
    if lacking:  # perhaps a font was installed after matplotlib looked for them
        known = {str(entry.fname) for entry in manager.ttflist}
        for path in sorted(set(map(str, font_manager.findSystemFonts())) - known):
            with contextlib.suppress(Exception):  # what it cannot read
                manager.addfont(path)
        new = [entry for entry in manager.ttflist if str(entry.fname) not in known]
        chosen += _covering(lacking, new)
    return tuple(chosen)


def _covering(lacking: set[str], entries: Sequence[Any]) -> list[str]:
    """The families among matplotlib's ``entries`` that have letters, which are taken away."""
    from matplotlib import font_manager

    families: dict[str, set[str]] = {}
    for entry in sorted(entries, key=_plainness):
        if entry.name in families or entry.name.startswith("Last Resort"):  # which has boxes
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except (OSError, RuntimeError):  # gone, damaged, or of a kind that matplotlib cannot read
            continue
        # Fonts of one size, such as those of coloured pictures, cannot be drawn in others.
        has = {c for c in lacking if font.get_char_index(ord(c))} if font.scalable else set()
        families[entry.name] = has
    chosen = []
    while families:
        best = max(families, key=lambda name: len(families[name] & lacking))
        if not families[best] & lacking:
            break
        chosen.append(best)
        lacking -= families[best]
    return chosen


def _plainness(entry: Any) -> tuple[bool, float, bool, str]:
    weight = entry.weight if isinstance(entry.weight, (int, float)) else 400
    return entry.style != "normal", abs(weight - 400), "Sans" not in entry.name, entry.name


def tidy(axes: "Axes") -> None:
    """A faint grid, and no more of a frame than it takes."""
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=INK)


def save(figure: "Figure", path: Path) -> Path:
    """Write ``figure`` as a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
    return path


def save_over(figure: "Figure", sheet: Tensor, path: Path) -> Path:
    """Write ``figure`` as ``save`` does, on top of ``sheet``, uint8 [3, H, W] of its size.

    Pixel for pixel; and in a tenth of the memory that matplotlib takes for a picture of that size.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.patch.set_alpha(0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    picture.paste(drawn, mask=drawn)
    with replacing(path) as temporary:
        picture.save(temporary, format="png", dpi=(figure.dpi, figure.dpi))
    return path


def ink_on(color: Sequence[float]) -> str:
    """Black or white, whichever is easier to read on ``color``: (red, green, blue) in [0, 1].

    The one with the higher contrast by the Web Content Accessibility Guidelines 2.2, which put
    the border at a relative luminance of 0.179.
    """
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]
    )
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "white"


def cut(text: str, length: int) -> str:
    """``text``, cut short with an ellipsis where it is longer than ``length`` letters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
