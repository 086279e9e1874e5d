"""What the figures of a report have in common: type, colours, saving."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fcifar.data.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
