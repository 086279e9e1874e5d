"""Holding a part of the training images out."""

import torch
from torch import Tensor

from fcifar import random
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
