"""Grids of images with a caption each.

Images are enlarged by a whole factor and copied pixel by pixel, so that nothing is interpolated;
matplotlib sets the text. Positions are pixels from the top left corner.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcifar import random
from fcifar.data.dataset import Dataset
from fcifar.errors import UsageError
from fcifar.random import Key
from fcifar.report.figures.canvas import INK, compose, empty_figure, fit
from fcifar.runs.proponents import Influences

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

SIDE = 224  # the longer side of an enlarged image, or the next whole multiple below
GAP = 26
MARGIN = 44
RIGHT, WRONG = "#1a7f37", "#c62828"  # captions: green and red
_DPI = 200
_LINE = 34  # the height of a line of text
_HEADING = 84
_MOST_ROWS = 40  # of a preview
_INFLUENTIAL = 7  # training images at each end
_SIZE, _SMALLEST, _HEADING_SIZE = 8.0, 5.5, 13.0  # points
_TRAINING_COLUMNS = 5  # 20 images make four rows of five


def image_grid(
    images: Tensor,
    captions: Sequence[str],
    *,
    columns: int = 8,
    colors: Sequence[str] | None = None,
    heading: str = "",
    column_names: Sequence[str] = (),
) -> "Image":
    """Return a grid of images, row by row, each with its caption below it.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        captions: N texts, of one or several lines. A line that is too wide is set smaller, then cut
            short.
        columns: how many images make a row.
        colors: N colours of the captions.
        heading: one line above the grid.
        column_names: one line above each column, or none.
    """
    n = len(images)
    colors = [INK] * n if colors is None else colors
    enlarged = _enlarge(images)
    if not n == len(captions) == len(colors) or columns < 1:
        raise UsageError(
            f"a grid needs as many captions and colours as images and at least one column, not "
            f"{n} images, {len(captions)} captions, {len(colors)} colours and {columns} columns"
        )
    columns = min(columns, n)
    rows, (height, width) = math.ceil(n / columns), enlarged.shape[-2:]
    below = _LINE * max(caption.count("\n") + 1 for caption in captions) + GAP // 2
    top = (_HEADING if heading else MARGIN) + (_LINE if column_names else 0)
    sheet, figure = _sheet(
        top + rows * (height + below) + (rows - 1) * GAP // 2 + MARGIN // 2,
        2 * MARGIN + columns * width + (columns - 1) * GAP,
        heading,
    )
    for i, name in enumerate(column_names):
        place = MARGIN + i * (width + GAP) + width / 2, top - _LINE * 0.75
        _write(figure, name, *place, width + GAP * 0.6)
    for i, (image, caption, color) in enumerate(zip(enlarged, captions, colors, strict=True)):
        x = MARGIN + i % columns * (width + GAP)
        y = top + i // columns * (height + below + GAP // 2)
        sheet[:, y : y + height, x : x + width] = image
        # Several lines start where a single one would.
        place = x + width / 2, y + height + _LINE * (0.25 if "\n" in caption else 0.75)
        _write(figure, caption, *place, width + GAP * 0.6, color=color)
    return compose(figure, sheet)


def preview(dataset: Dataset, *, rows_per_class: int = 8, key: Key) -> "Image":
    """Return a grid with a row for each class: its name, and training images drawn by ``key``.

    Of a test set alone, they are test images. Of more than 40 classes, ``key`` draws 40.

    Args:
        dataset: what to show.
        rows_per_class: how many images to draw of each class; a class that has fewer shows all.
        key: selects images and classes.
    """
    count = len(dataset.classes)
    classes = range(count)
    if count > _MOST_ROWS:
        drawn = random.permutation(random.fold_in(key, count), count)[:_MOST_ROWS]
        classes = sorted(drawn.tolist())
    images, labels = dataset.train_images, dataset.train_labels
    if not len(labels):
        images, labels = dataset.test_images, dataset.test_labels
    height, width = _enlarge(images[:1]).shape[-2:]
    gap = GAP // 2
    longest = max(len(dataset.classes[label]) for label in classes)
    names = min(20 * longest, 2 * SIDE) + GAP  # 20 pixels hold one character at this size
    sheet, figure = _sheet(
        _HEADING + len(classes) * (height + gap) - gap + MARGIN,
        2 * MARGIN + names + rows_per_class * (width + gap) - gap,
        _describe(dataset) + (f", {_MOST_ROWS} of {count:,} classes" if count > _MOST_ROWS else ""),
    )
    for row, label in enumerate(classes):
        y = _HEADING + row * (height + gap)
        name = dataset.classes[label]
        _write(figure, name, MARGIN, y + height / 2, names - GAP, align="left", size=10.0)
        members = torch.nonzero(labels == label).flatten()
        drawn = random.permutation(random.fold_in(key, label), members)[:rows_per_class]
        for column, image in enumerate(_enlarge(images[drawn]) if len(drawn) else ()):
            x = MARGIN + names + column * (width + gap)
            sheet[:, y : y + height, x : x + width] = image
    return compose(figure, sheet)


def predictions_grid(
    images: Tensor,
    labels: Tensor,
    predictions: Tensor,
    confidence: Tensor,
    classes: Sequence[str],
    *,
    heading: str,
) -> "Image":
    """Return a grid of images with the predicted class below each: see ``verdict``.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        labels: int64 [N], the true classes.
        predictions: int64 [N].
        confidence: [N] in [0, 1], or NaN.
        classes: C names.
        heading: one line above the grid.
    """
    if len(confidence) != len(images):
        raise UsageError(f"{len(images)} images cannot have {len(confidence)} confidences")
    predicted, true = (_names(each, classes, len(images)) for each in (predictions, labels))
    verdicts = list(map(verdict, predicted, true, confidence.tolist()))
    captions, colors = [text for text, _ in verdicts], [color for _, color in verdicts]
    return image_grid(images, captions, colors=colors, heading=heading)


def influence_grid(
    found: Influences, train_images: Tensor, result: Mapping[str, Any], *, heading: str
) -> "Image":
    """Return two rows for each image: it and its proponents, then its opponents.

    Training images of its own class have green captions. Arguments as for ``draw.influence``.
    """
    shown, rows = _INFLUENTIAL, dict(zip(found.train_names, found.train_rows, strict=True))
    blank = torch.full_like(found.images[0], 255)
    cells: list[tuple[Tensor, str, str]] = []
    for image, each in zip(found.images, result["images"][:_MOST_ROWS], strict=False):
        first = f"{each['label']}\npredicted {each['prediction']}\n{each['id']}"
        starts = ((image, first, INK), (blank, "opponents", INK))
        for start, kind in zip(starts, ("proponents", "opponents"), strict=True):
            listed = [
                (
                    train_images[rows[entry["id"]]],
                    f"{entry['label']}\n{entry['score'] or math.nan:+#.3g}\n{entry['id']}",
                    RIGHT if entry["label"] == each["label"] else INK,
                )
                for entry in each[kind][:shown]
            ]
            cells += [start, *listed, *[(blank, "", INK)] * (shown - len(listed))]
    images, captions, colors = zip(*cells, strict=True)
    return image_grid(
        torch.stack(images), captions, columns=shown + 1, colors=colors, heading=heading
    )


def training_grid(
    images: Tensor, labels: Tensor, classes: Sequence[str], *, heading: str
) -> "Image":
    """Return a grid of a training batch, each image with its label below it.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        labels: int64 [N].
        classes: C names.
        heading: one line above the grid.
    """
    names = _names(labels, classes, len(images))
    return image_grid(images, names, columns=_TRAINING_COLUMNS, heading=heading)


def verdict(predicted: str, true: str, confidence: float) -> tuple[str, str]:
    """Return the caption and the colour of a prediction.

    "cat" in green if it is right, "cat (dog)" in red if the true class is dog; the confidence, in
    per cent, on a second line.
    """
    sure = f"{100 * confidence:.1f} %" if math.isfinite(confidence) else "no confidence"
    if predicted == true:
        return f"{predicted}\n{sure}", RIGHT
    return f"{predicted} ({true})\n{sure}", WRONG


def _names(numbers: Tensor, classes: Sequence[str], count: int) -> list[str]:
    if numbers.is_floating_point() or numbers.shape != (count,):
        raise UsageError(
            f"{count} images need one class number each, not {numbers.dtype} {[*numbers.shape]}"
        )
    if ((numbers < 0) | (numbers >= len(classes))).any():
        raise UsageError(
            f"class numbers are 0 to {len(classes) - 1}, not {numbers.min()} to {numbers.max()}"
        )
    return [classes[number] for number in numbers.tolist()]


def _describe(dataset: Dataset) -> str:
    """``cifar10: 50,000 training and 10,000 test images``."""
    parts = {
        "training": dataset.train_labels,
        "validation": dataset.valid_labels,
        "test": dataset.test_labels,
    }
    *first, last = [f"{len(labels):,} {name}" for name, labels in parts.items() if len(labels)]
    return f"{dataset.name}: {' and '.join([*filter(None, [', '.join(first)]), last])} images"


def _enlarge(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise UsageError(
            f"images are uint8 [N, 3, H, W] with N at least 1, not {images.dtype} {[*images.shape]}"
        )
    factor = max(1, SIDE // max(images.shape[-2:]))
    return images.cpu().repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def _sheet(height: int, width: int, heading: str) -> tuple[Tensor, "Figure"]:
    """A white sheet, uint8 [3, height, width], and a figure of its size with the heading."""
    figure = empty_figure(width / _DPI, height / _DPI, _DPI)
    room = width - 2 * MARGIN
    _write(figure, heading, MARGIN, _HEADING / 2, room, align="left", size=_HEADING_SIZE)
    return torch.full((3, height, width), 255, dtype=torch.uint8), figure


def _write(
    figure: "Figure",
    text: str,
    x: float,
    y: float,
    width: float,
    *,
    align: str = "center",
    color: str = INK,
    size: float = _SIZE,
) -> None:
    """Put ``text`` on a figure, at most ``width`` pixels wide."""
    height = "top" if "\n" in text else "center"
    place = x / figure.bbox.width, 1 - y / figure.bbox.height
    drawn = figure.text(*place, text, size=size, color=color, ha=align, va=height, parse_math=False)
    fit(drawn, width, smallest=_SMALLEST)
