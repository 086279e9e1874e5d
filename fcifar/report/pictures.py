"""Sheets of labelled pictures, as PNG files.

Pictures are enlarged by a whole factor and put on the sheet pixel by pixel, so that nothing is
blurred; matplotlib sets the type. Positions are pixels from the top left corner.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fcifar import random
from fcifar.data.dataset import Dataset
from fcifar.errors import UsageError
from fcifar.random import Key
from fcifar.report.figures import save_over, with_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
PICTURE = 224  # the longer side of an enlarged picture, or the next whole multiple below
GAP = 26
MARGIN = 44
LINE = 34  # the height of a line of type
HEADING = 84
MOST_ROWS = 40  # of a preview
TYPE_SIZE, SMALLEST_TYPE, HEADING_SIZE = 8.0, 5.5, 13.0  # points
INK = "#222222"


class _Label(NamedTuple):
    """A piece of text: ``x`` is its left end or its middle, ``y`` the middle of its first line."""

    text: str
    x: float
    y: float
    width: float  # it is made to fit into this
    align: str = "center"
    color: str = INK
    size: float = TYPE_SIZE


@with_fonts
def labelled_grid(
    images: Tensor,
    titles: Sequence[str],
    path: Path,
    *,
    columns: int = 8,
    colors: Sequence[str] | None = None,
    heading: str | None = None,
) -> Path:
    """Write a grid of pictures, row by row, each with its title below it.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        titles: N texts; a line break starts a second line. What is too long is set smaller, then
            cut short.
        path: the PNG file, written whole or not at all.
        columns: how many pictures make a row.
        colors: N colours of the titles, for instance to tell right from wrong.
        heading: one line above all.

    Returns:
        ``path``.
    """
    n = len(images)
    colors = [INK] * n if colors is None else colors
    _check_images(images)
    if not n == len(titles) == len(colors) or columns < 1:
        raise UsageError(
            f"a grid needs as many titles and colours as images and at least one column, not "
            f"{n} images, {len(titles)} titles, {len(colors)} colours and {columns} columns"
        )
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    pictures = _enlarge(images)
    height, width = pictures.shape[-2:]
    below = LINE * max(title.count("\n") + 1 for title in titles) + GAP // 2
    top = HEADING if heading else MARGIN

    sheet = _blank(
        top + rows * (height + below) + (rows - 1) * GAP // 2 + MARGIN // 2,
        2 * MARGIN + columns * width + (columns - 1) * GAP,
    )
    labels = _heading(heading, sheet)
    for i, (picture, title, color) in enumerate(zip(pictures, titles, colors, strict=True)):
        x = MARGIN + i % columns * (width + GAP)
        y = top + i // columns * (height + below + GAP // 2)
        sheet[:, y : y + height, x : x + width] = picture
        middle = x + width / 2
        labels.append(
            _Label(title, middle, y + height + LINE * 0.75, width + GAP * 0.6, color=color)
        )
    return _write(sheet, labels, path)


@with_fonts
def preview(dataset: Dataset, path: Path, *, rows_per_class: int = 8, key: Key) -> Path:
    """Write a sheet with a row for each class: its name, and training images drawn by ``key``.

    Of a test set alone, they are test images. Of more than ``MOST_ROWS`` classes, ``key`` draws so
    many.

    Args:
        dataset: what to look at.
        path: the PNG file, written whole or not at all.
        rows_per_class: how many images to draw of each class; a class that has fewer shows all.
        key: which ones.

    Returns:
        ``path``.
    """
    count = len(dataset.classes)
    shown = range(count)
    if count > MOST_ROWS:
        drawn = random.permutation(random.fold_in(key, count), count)[:MOST_ROWS]
        shown = sorted(drawn.tolist())
    images, labels = dataset.train_images, dataset.train_labels
    if not len(labels):
        images, labels = dataset.test_images, dataset.test_labels
    picked = [_pick(labels, label, rows_per_class, random.fold_in(key, label)) for label in shown]
    _check_images(images)
    height, width = _enlarge(images[:1]).shape[-2:]
    gap = GAP // 2
    longest = max(len(dataset.classes[label]) for label in shown)
    names = min(20 * longest, 2 * PICTURE) + GAP  # 20 pixels hold one letter at this size
    sheet = _blank(
        HEADING + len(picked) * (height + gap) - gap + MARGIN,
        2 * MARGIN + names + rows_per_class * (width + gap) - gap,
    )
    sizes = [
        f"{len(part):,} {name}"
        for name, part in (
            ("training", dataset.train_labels),
            ("validation", dataset.valid_labels),
            ("test", dataset.test_labels),
        )
        if len(part)
    ]
    counts = " and ".join([*filter(None, [", ".join(sizes[:-1])]), sizes[-1]]) + " images"
    part = f", {MOST_ROWS} of {count:,} classes" if count > MOST_ROWS else ""
    texts = _heading(f"{dataset.name}: {counts}{part}", sheet)
    for row, (label, rows) in enumerate(zip(shown, picked, strict=True)):
        y = HEADING + row * (height + gap)
        name = dataset.classes[label]
        texts.append(_Label(name, MARGIN, y + height / 2, names - GAP, "left", size=10.0))
        for column, picture in enumerate(_enlarge(images[rows])):
            x = MARGIN + names + column * (width + gap)
            sheet[:, y : y + height, x : x + width] = picture
    return _write(sheet, texts, path)


def _pick(labels: Tensor, label: int, count: int, key: Key) -> Tensor:
    """Rows of ``labels`` that hold ``label``, at random, at most ``count`` of them."""
    return random.permutation(key, torch.nonzero(labels == label).flatten())[:count]


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise UsageError(
            f"pictures are uint8 [N, 3, H, W] with N at least 1, not {images.dtype} "
            f"{list(images.shape)}"
        )


def _enlarge(images: Tensor) -> Tensor:
    factor = max(1, PICTURE // max(images.shape[-2:]))
    return images.cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _blank(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), 255, dtype=torch.uint8)


def _heading(text: str | None, sheet: Tensor) -> list[_Label]:
    if not text:
        return []
    room = sheet.shape[-1] - 2 * MARGIN
    return [_Label(text, MARGIN, HEADING / 2, room, "left", size=HEADING_SIZE)]


def _write(sheet: Tensor, labels: Sequence[_Label], path: Path) -> Path:
    from matplotlib.figure import Figure

    height, width = sheet.shape[-2:]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for label in labels:
        _set_type(figure, label)
    return save_over(figure, sheet, path)


def _set_type(figure: "Figure", label: _Label) -> None:
    """Put ``label`` on the sheet, smaller if it is too wide, and shortened if need be."""
    several = "\n" in label.text  # lines hang from where a single one would begin
    text = figure.text(
        label.x / figure.bbox.width,
        1 - (label.y - LINE / 2 * several) / figure.bbox.height,
        label.text,
        size=label.size,
        color=label.color,
        ha=label.align,
        va="top" if several else "center",
        parse_math=False,
    )

    def too_wide() -> float:
        return text.get_window_extent().width / label.width

    if too_wide() > 1:
        text.set_fontsize(max(SMALLEST_TYPE, label.size / too_wide()))
    while too_wide() > 1 and (shorter := _shorten(text.get_text())) != text.get_text():
        text.set_text(shorter)


def _shorten(text: str) -> str:
    """One letter less of the longest line, and an ellipsis to say so."""
    lines = text.split("\n")
    longest = max(range(len(lines)), key=lambda i: len(lines[i]))
    lines[longest] = lines[longest].removesuffix("…")[:-1].rstrip() + "…"
    return "\n".join(lines)
