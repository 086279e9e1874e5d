"""Holding a part of the training images out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fcifar import random
from fcifar.data.dataset import Split, check_split
from fcifar.errors import UsageError, one_line
from fcifar.random import Key


def holdout(
    key: Key, labels: Tensor, fraction: float, *, stratify: bool = False
) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and row numbers held out, each int64 in ascending order.

    Args:
        key: which rows; they are a random sample, however ``labels`` are sorted.
        labels: int64 [N].
        fraction: of the rows to hold out, in [0, 1), rounded to the nearest whole row.
        stratify: hold the same fraction of each class out.
    """
    groups = [torch.nonzero(labels == c).flatten() for c in labels.unique()] if stratify else []
    groups = groups or [torch.arange(len(labels), device=labels.device)]
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for group, k in zip(groups, random.split(key, len(groups)), strict=True):
        count = round(fraction * len(group))
        held_out[random.permutation(k, group)[:count]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def hold_out_of_each(key: Key, labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """As ``holdout`` stratified, but with a row of each class on both sides, however few it has.

    Args:
        key: which rows.
        labels: int64 [N], two or more of each class.
        fraction: of the rows of each class to hold out, in (0, 1).
    """
    order = torch.argsort(labels, stable=True)
    counts = [count for count in torch.bincount(labels).tolist() if count]
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for group, k in zip(order.split(counts), random.split(key, len(counts)), strict=True):
        count = min(max(round(fraction * len(group)), 1), len(group) - 1)
        held_out[random.permutation(k, group)[:count]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def hold_out_test(
    everything: Split, classes: Sequence[str], fraction: float, seed: int
) -> tuple[Split, Split]:
    """Training and test split of images of which nothing says which is which.

    Args:
        everything: of each class two or more.
        classes: the names.
        fraction: of each class, to test with, in (0, 1).
        seed: of the key that chooses these.

    Raises:
        UsageError: there are none, they are not valid, or a class has a single image.
    """
    check_split("train", everything, len(classes))
    labels = everything.labels
    if not len(labels):
        raise UsageError("the train split is empty; it needs two or more images of each class")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    if few := [name for name, count in zip(classes, counts, strict=True) if count == 1]:
        raise UsageError(
            f"class {one_line(repr(few[0]))} has a single image; to hold a part of it out for "
            "testing, it needs two or more"
        )
    kept, held_out = hold_out_of_each(random.key(seed), labels, fraction)
    train, test = (Split(*(part[rows] for part in everything)) for rows in (kept, held_out))
    return train, test
