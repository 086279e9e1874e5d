"""Metrics as sums and counts, so that they add up over batches of any size.

A mean of batch means is wrong as soon as two batches differ in size; here the one division is made
at the end.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Metrics(NamedTuple):
    """Sums over examples, each a 0-d tensor."""

    loss: Tensor  # sum of losses, in the dtype of the losses
    correct: Tensor  # how many predictions were right, int64
    count: Tensor  # how many examples, int64


def zeros(
    *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Metrics:
    """The metrics of no examples; ``tree.add`` takes it from there."""
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return Metrics(torch.zeros((), dtype=dtype, device=device), zero, zero.clone())


def measure(losses: Tensor, correct: Tensor, weights: Tensor | None = None) -> Metrics:
    """Metrics of a batch.

    Args:
        losses: [B].
        correct: bool [B].
        weights: [B] of zeros and ones; a row with weight 0 is padding and counts nowhere, whatever
            stands in it (NaN included).

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
    """``{"loss": mean, "accuracy": fraction, "count": n}`` as numbers; NaN for no examples.

    >>> metrics = fcifar.metrics.measure(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    >>> fcifar.metrics.summarize(metrics)
    {'loss': 1.5, 'accuracy': 0.5, 'count': 2}
    """
    loss, correct, count = (x.item() for x in metrics)
    if not count:
        return {"loss": math.nan, "accuracy": math.nan, "count": 0}
    return {"loss": loss / count, "accuracy": correct / count, "count": int(count)}


def wilson_interval(correct: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Interval for a success probability, 95 % unless ``z`` says otherwise.

    Wilson's score interval (Wilson, "Probable inference", 1927): it stays inside [0, 1] and keeps
    its coverage near the ends, where the textbook's normal interval does not.

    Args:
        correct: successes, from 0 to ``count``.
        count: of all trials, 1 or more.
        z: the standard normal quantile.

    Raises:
        ValueError: the counts are outside their ranges.

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
