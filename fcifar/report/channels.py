"""An image as the model gets it: numbers, in three channels."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures import DPI, INK, SOFT, ink_on, save_over, titled, with_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 48  # pixels of the sheet for one of the picture's
GAP = 64  # between the channels
LEFT, TOP, BOTTOM = 80, 260, 80
LARGEST = 64  # more than this on a side makes a sheet that no viewer opens
_COLUMNS = 32  # of a sheet of numbers
NAMES = (("red", "#C62828"), ("green", "#1A7F37"), ("blue", "#1565C0"))


@with_fonts
def channels_picture(image: Tensor, path: Path, *, title: str) -> Path:
    """Draw the three channels side by side in grey, with each pixel's value written in it.

    Args:
        image: uint8 [3, H, W], usually 32 x 32 and at most 64 x 64; or floating, as it is after
            normalisation, which is shown from its least value in black to its greatest in white.
        path: the PNG file, written whole or not at all. It is large: see it at full size.
        title: what the picture is.

    Returns:
        ``path``.
    """
    _check(image)
    image = image.cpu()
    height, width = image.shape[1:]
    sheet_width = 2 * LEFT + 3 * width * CELL + 2 * GAP
    sheet_height = TOP + height * CELL + BOTTOM
    low, high = value_range(image)
    grey = as_grey(image, low, high)
    figure = titled(sheet_width / DPI, sheet_height / DPI, "")
    _write(figure, title, LEFT, 60, size=26, color=INK, ha="left")
    legend = f"black is {value_text(low, image.dtype)}, white is {value_text(high, image.dtype)}"
    _write(figure, legend, LEFT, 132, size=17, color=SOFT, ha="left")
    sheet = torch.full((3, sheet_height, sheet_width), 255, dtype=torch.uint8)
    cells = _numbered(image, grey)
    for channel, (name, color) in enumerate(NAMES):
        left = LEFT + channel * (width * CELL + GAP)
        _write(figure, name, left, 214, size=22, color=color, ha="left", weight="bold")
        sheet[:, TOP : TOP + height * CELL, left : left + width * CELL] = cells[channel]
    return save_over(figure, sheet, path)


def value_range(image: Tensor) -> tuple[float, float]:
    """What is shown as black and as white: 0 and 255, or least and greatest finite value."""
    if not image.is_floating_point():
        return 0.0, 255.0
    finite = image[image.isfinite()]
    return (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)


def as_grey(image: Tensor, low: float, high: float) -> Tensor:
    """uint8 of the same shape: 0 at ``low`` or for what is not finite, 255 at ``high``."""
    if high <= low:
        return torch.zeros_like(image, dtype=torch.uint8)
    shown = 255 * (image.double() - low) / (high - low)
    return shown.nan_to_num(0.0, 0.0, 0.0).clamp(0, 255).round().to(torch.uint8)


def value_text(value: float, dtype: torch.dtype) -> str:
    """A value in few letters: whole where its type is, else to as many places as fit a cell."""
    if not dtype.is_floating_point:
        return f"{value:.0f}"
    if abs(value) < 10 or not math.isfinite(value):
        return f"{value:z.2f}"  # z: what rounds to nothing has no sign
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0e}"


def _numbered(values: Tensor, grey: Tensor) -> Tensor:
    """The values in cells of their greys: uint8 [3, H * CELL, W * CELL].

    Each number is set once, however often it comes: setting 3,072 of them takes seconds.
    """
    texts = [value_text(value, values.dtype) for value in values.flatten().tolist()]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    stamps = _stamps(list(numbers), 9 if values.dtype == torch.uint8 else 7)
    which = torch.tensor([numbers[text] for text in texts]).reshape(values.shape)
    inks = [255 * (ink_on((level / 255,) * 3) == "white") for level in range(256)]
    ink = torch.tensor(inks)[grey.int()][..., None, None]
    ground = grey[..., None, None].float()
    cells = (ground + (ink - ground) * stamps[which]).round().to(torch.uint8)
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _stamps(texts: Sequence[str], size: float) -> Tensor:
    """How much of each pixel of a cell a text covers: float32 [N, CELL, CELL] in [0, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(texts) / _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * CELL / DPI, rows * CELL / DPI), dpi=DPI)
    for i, text in enumerate(texts):
        y, x = divmod(i, _COLUMNS)
        _write(figure, text, (x + 0.5) * CELL, (y + 0.5) * CELL, size=size, color="black")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    white = torch.tensor(np.asarray(canvas.buffer_rgba())[..., 0])
    cells = white.reshape(rows, CELL, _COLUMNS, CELL).transpose(1, 2).flatten(0, 1)
    return 1 - cells[: len(texts)].float() / 255


def _write(
    figure: "Figure",
    text: str,
    x: float,
    y: float,
    *,
    size: float,
    color: str,
    ha: str = "center",
    weight: str = "normal",
) -> None:
    """Put ``text`` at pixels from the top left corner."""
    figure.text(
        x / figure.bbox.width,
        1 - y / figure.bbox.height,
        text,
        size=size,
        color=color,
        ha=ha,
        va="center",
        weight=weight,
        parse_math=False,
    )


def _check(image: Tensor) -> None:
    good = image.dtype == torch.uint8 or image.is_floating_point()
    if (
        not good
        or image.ndim != 3
        or len(image) != 3
        or not (0 < min(image.shape[1:]) <= max(image.shape[1:]) <= LARGEST)
    ):
        raise UsageError(
            f"the channels of a picture are uint8 or floating [3, H, W] of at most {LARGEST} x "
            f"{LARGEST}, not {image.dtype} {[*image.shape]}"
        )
