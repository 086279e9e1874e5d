"""Random splits of labelled images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fcifar import random
from fcifar.data.dataset import ImportOptions, Split, check_split
from fcifar.errors import UsageError, one_line
from fcifar.random import Key


def holdout(
    key: Key, labels: Tensor, fraction: float, *, stratify: bool = False, every_class: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and the rows held out, each int64 in ascending order.

    Args:
        key: draws the rows; the sample is random even if ``labels`` are sorted.
        labels: int64 [N].
        fraction: of the rows to hold out, in [0, 1), rounded to the nearest whole row.
        stratify: hold the same fraction of each class out.
        every_class: with ``stratify``, keep at least one row of each class on both sides. Each
            class needs two.
    """
    rows, sizes = torch.arange(len(labels), device=labels.device), [len(labels)]
    if stratify and len(labels):
        rows = torch.argsort(labels, stable=True)
        sizes = labels.unique(return_counts=True)[1].tolist()
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for group, k in zip(rows.split(sizes), random.split(key, len(sizes)), strict=True):
        count = round(fraction * len(group))
        if every_class:
            count = min(max(count, 1), len(group) - 1)
        held_out[random.permutation(k, group)[:count]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def folds(key: Key, labels: Tensor, count: int) -> Tensor:
    """Divide rows into parts of equal size, with the same share of each class.

    The sizes of two parts differ by at most one row, and so do their numbers of rows of a class.
    Kohavi, "A study of cross-validation and bootstrap for accuracy estimation and model selection",
    IJCAI 1995 (https://www.ijcai.org/Proceedings/95-2/Papers/016.pdf), section 2.3.

    Args:
        key: draws the rows of each part.
        labels: int64 [N].
        count: the number of parts, at least 1.

    Returns:
        The part of each row, int64 [N] in [0, count).
    """
    rows = torch.argsort(labels, stable=True)
    sizes = labels.unique(return_counts=True)[1].tolist()
    keys = random.split(key, len(sizes)) if sizes else ()
    parts = torch.empty_like(labels)
    # Dealt one after another, without a new beginning at each class, so that the sizes are equal.
    dealt = [random.permutation(k, group) for group, k in zip(rows.split(sizes), keys, strict=True)]
    numbers = torch.arange(len(labels), device=labels.device) % count
    parts[torch.cat(dealt) if dealt else rows] = numbers
    return parts


def hold_out_test(
    images: Split, classes: Sequence[str], options: ImportOptions
) -> tuple[Split, Split]:
    """Split images into training and test images, by ``test_fraction`` and ``seed``.

    Raises:
        UsageError: there are no images, they are invalid, or a class has a single image.
    """
    check_split("train", images, len(classes))
    labels = images.labels
    if not len(labels):
        raise UsageError("the train split is empty; it needs two or more images of each class")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if few := [name for name, count in zip(classes, counts, strict=True) if count == 1]:
        raise UsageError(
            f"class {one_line(repr(few[0]))} has a single image; to hold a part of it out for "
            "testing, it needs two or more"
        )
    key = random.key(options.seed)
    kept, held_out = holdout(key, labels, options.test_fraction, stratify=True, every_class=True)
    return Split(images.images[kept], labels[kept]), Split(
        images.images[held_out], labels[held_out]
    )
