"""Grids of images with what a model predicted for them, or with their labels."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.pictures import labelled_grid

RIGHT, WRONG = "#1A7F37", "#C62828"  # green and red
TRAINING_COLUMNS = 5  # the usual 20 pictures make four rows of five


def predictions_grid(
    images: Tensor,
    labels: Tensor,
    predictions: Tensor,
    confidence: Tensor,
    classes: Sequence[str],
    path: Path,
    *,
    heading: str,
) -> Path:
    """Write a grid of images, each with its predicted class below it: see ``verdict``.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        labels: int64 [N], the true classes.
        predictions: int64 [N].
        confidence: [N] in [0, 1], or NaN.
        classes: the names.
        path: the PNG file, written whole or not at all.
        heading: one line above all.

    Returns:
        ``path``.
    """
    if len(confidence) != len(images):
        raise UsageError(f"{len(images)} images cannot have {len(confidence)} confidences")
    verdicts = [
        verdict(*row)
        for row in zip(
            _names(predictions, classes, len(images)),
            _names(labels, classes, len(images)),
            confidence.tolist(),
            strict=True,
        )
    ]
    titles, colors = [title for title, _ in verdicts], [color for _, color in verdicts]
    return labelled_grid(images, titles, path, colors=colors, heading=heading)


def training_grid(
    images: Tensor, labels: Tensor, classes: Sequence[str], path: Path, *, heading: str
) -> Path:
    """Write a grid of a training batch, each image with its label below it.

    Args:
        images: uint8 [N, 3, H, W], N at least 1.
        labels: int64 [N].
        classes: the names.
        path: the PNG file, written whole or not at all.
        heading: one line above all.

    Returns:
        ``path``.
    """
    names = _names(labels, classes, len(images))
    return labelled_grid(images, names, path, columns=TRAINING_COLUMNS, heading=heading)


def verdict(predicted: str, true: str, confidence: float) -> tuple[str, str]:
    """Title and colour of a prediction.

    "cat" in green when that is right, "cat (dog)" in red when it is truly a dog; the confidence, in
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
