"""Losses of single examples. Whether to sum or to average them is the caller's business."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [B, C], labels int64 [B]) -> [B]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy in nats: logits [B, C] and labels [B] to [B]; [C] and [] to []."""
    return F.cross_entropy(logits, labels, reduction="none")
