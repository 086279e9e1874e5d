"""Metrics as sums and counts, which add up over batches of different sizes.

A mean of batch means is wrong when batch sizes differ; ``summarize`` divides once, at the end.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import tree


class Metrics(NamedTuple):
    """Sums over examples, each a 0-d tensor."""

    loss: Tensor  # sum of losses, in the dtype of the losses
    correct: Tensor  # number of correct predictions, int64
    count: Tensor  # number of examples, int64


def zeros(
    *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Metrics:
    """The metrics of no examples, to accumulate with ``tree.add``."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return Metrics(torch.zeros((), dtype=dtype, device=device), zero, zero.clone())


def measure(losses: Tensor, correct: Tensor, weights: Tensor | None = None) -> Metrics:
    """Metrics of a batch.

    Args:
        losses: [B].
        correct: bool [B].
        weights: [B] of zeros and ones. A row of weight 0 is padding and is ignored, even if NaN.

    >>> fcifar.metrics.measure(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    Metrics(loss=tensor(3.), correct=tensor(1), count=tensor(2))
    """
    if weights is None:
        return Metrics(losses.sum(), correct.sum(), torch.full_like(correct, True).sum())
    real = weights > 0
    return Metrics(
        torch.where(real, losses, 0.0).sum(), torch.logical_and(correct, real).sum(), real.sum()
    )


def summarize(metrics: Metrics) -> dict[str, float]:
    """Return ``{"loss": mean, "accuracy": fraction, "count": n}``; NaN if there are no examples.

    >>> metrics = fcifar.metrics.measure(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    >>> fcifar.metrics.summarize(metrics)
    {'loss': 1.5, 'accuracy': 0.5, 'count': 2}
    """
    loss, correct, count = (x.item() for x in tree.on_device(metrics, "cpu"))
    if not count:
        return {"loss": math.nan, "accuracy": math.nan, "count": 0}
    return {"loss": loss / count, "accuracy": correct / count, "count": int(count)}


def wilson_interval(correct: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a success probability, at 95 % by default.

    Wilson, "Probable inference", 1927. Unlike the normal approximation, it stays in [0, 1] and
    keeps its coverage near the ends.

    Args:
        correct: number of successes, in [0, count].
        count: number of trials, 1 or more.
        z: standard normal quantile.

    Raises:
        ValueError: the counts are out of range.

    >>> [round(end, 4) for end in fcifar.metrics.wilson_interval(95, 100)]
    [0.8882, 0.9785]
    """
    if not 0 <= correct <= count or count == 0:
        raise ValueError(f"wilson_interval needs 0 <= correct <= count > 0, not {correct}, {count}")
    p = correct / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
