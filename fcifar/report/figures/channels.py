"""An image as numbers, in three channels."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures.canvas import (
    DPI,
    INK,
    ON_DARK,
    SOFT,
    compose,
    empty_figure,
    ink_on,
    rendered,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

CELL = 32  # pixels of the sheet for one of the image
GAP = 48  # between the channels
LEFT, TOP, BOTTOM = 56, 180, 56
LARGEST = 64  # pixels of a side; few viewers open a larger sheet
_COLUMNS = 32  # of a sheet of numbers
_NAMES = (("red", "#c62828"), ("green", "#1a7f37"), ("blue", "#1565c0"))


def draw(image: Tensor, *, title: str) -> "Image":
    """Return the three channels side by side in grey, with each pixel's value written in it.

    Args:
        image: uint8 [3, H, W], usually 32 x 32 and at most 64 x 64; or floating, as after
            normalisation, drawn from its smallest value in black to its largest in white.
        title: above the channels.
    """
    good = image.dtype == torch.uint8 or image.is_floating_point()
    sides = image.shape[1:]
    if not (
        good and image.ndim == 3 and len(image) == 3 and 0 < min(sides) <= max(sides) <= LARGEST
    ):
        raise UsageError(
            f"the channels of an image are uint8 or floating [3, H, W] of at most {LARGEST} x "
            f"{LARGEST}, not {image.dtype} {[*image.shape]}"
        )
    image = image.cpu()
    height, width = sides
    low, high = value_range(image)
    size = TOP + height * CELL + BOTTOM, 2 * LEFT + 3 * width * CELL + 2 * GAP
    sheet = torch.full((3, *size), 255, dtype=torch.uint8)
    figure = empty_figure(size[1] / DPI, size[0] / DPI, DPI)
    _write(figure, title, LEFT, 42, size=18, color=INK, ha="left")
    legend = f"black is {value_text(low, image.dtype)}, white is {value_text(high, image.dtype)}"
    _write(figure, legend, LEFT, 92, size=12, color=SOFT, ha="left")
    cells = _numbered(image, as_grey(image, low, high))
    for channel, (name, color) in enumerate(_NAMES):
        left = LEFT + channel * (width * CELL + GAP)
        _write(figure, name, left, 148, size=15, color=color, ha="left", weight="bold")
        sheet[:, TOP : TOP + height * CELL, left : left + width * CELL] = cells[channel]
    return compose(figure, sheet)


def value_range(image: Tensor) -> tuple[float, float]:
    """Return the values drawn as black and as white: 0 and 255, or the finite extremes."""
    if not image.is_floating_point():
        return 0.0, 255.0
    finite = image[image.isfinite()]
    return (finite.min().item(), finite.max().item()) if len(finite) else (0.0, 0.0)


def as_grey(image: Tensor, low: float, high: float) -> Tensor:
    """Return uint8 of the same shape: 0 at ``low`` and where not finite, 255 at ``high``."""
    if high <= low:
        return torch.zeros_like(image, dtype=torch.uint8)
    scaled = 255 * (image.double() - low) / (high - low)
    return scaled.nan_to_num(0.0, 0.0, 0.0).clamp(0, 255).round().to(torch.uint8)


def value_text(value: float, dtype: torch.dtype) -> str:
    """Return a value as text that fits into a cell."""
    if not dtype.is_floating_point:
        return f"{value:.0f}"
    if abs(value) < 10 or not math.isfinite(value):
        return f"{value:z.2f}"  # z: no negative zero
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0e}"


def _numbered(values: Tensor, grey: Tensor) -> Tensor:
    """Return the values written on cells of their greys: uint8 [3, H * CELL, W * CELL].

    Each distinct number is rendered once: rendering 3,072 of them takes seconds.
    """
    texts = [value_text(value, values.dtype) for value in values.flatten().tolist()]
    index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    stamps = _stamps(list(index), 6.5 if values.dtype == torch.uint8 else 5)
    rows = torch.tensor([index[text] for text in texts]).reshape(values.shape)
    light = torch.tensor([255.0 * (ink_on((level / 255,) * 3) == ON_DARK) for level in range(256)])
    ink, ground = light[grey.int()][..., None, None], grey[..., None, None].float()

    def channel(i: int) -> Tensor:
        cells = (ground[i] + (ink[i] - ground[i]) * stamps[rows[i]]).round().to(torch.uint8)
        return cells.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    return torch.stack([channel(i) for i in range(len(values))])  # one by one, to save memory


def _stamps(texts: Sequence[str], size: float) -> Tensor:
    """Return how much of each pixel of a cell a text covers: float32 [N, CELL, CELL] in [0, 1]."""
    rows = math.ceil(len(texts) / _COLUMNS)
    figure = empty_figure(_COLUMNS * CELL / DPI, rows * CELL / DPI, DPI)
    for i, text in enumerate(texts):
        y, x = divmod(i, _COLUMNS)
        _write(figure, text, (x + 0.5) * CELL, (y + 0.5) * CELL, size=size, color="black")
    white = torch.tensor(rendered(figure)[..., 0])
    cells = white.reshape(rows, CELL, _COLUMNS, CELL).transpose(1, 2).flatten(0, 1)
    return 1 - cells[: len(texts)].float() / 255


def _write(figure: "Figure", text: str, x: float, y: float, **style: object) -> None:
    """Put ``text`` at pixels from the top left corner."""
    place = x / figure.bbox.width, 1 - y / figure.bbox.height
    drawn = figure.text(*place, text, va="center", parse_math=False)
    drawn.set(**{"ha": "center", **style})
