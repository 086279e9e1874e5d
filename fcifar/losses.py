"""Losses of single examples. Whether to sum or to average them is the caller's business."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [B, C], labels int64 [B]) -> [B]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy in nats: logits [B, C] and labels [B] to [B]; [C] and [] to [].

    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> fcifar.losses.cross_entropy(logits, torch.tensor([0, 1]))
    tensor([0.6931, 9.0001])
    """
    return F.cross_entropy(logits, labels, reduction="none")


def smoothed_cross_entropy(label_smoothing: float | Tensor) -> Loss:
    """``cross_entropy`` against labels that give a share to all classes alike.

    The target is ``1 - label_smoothing`` for the label and ``label_smoothing / C`` for each of the
    C classes. Szegedy et al., https://arxiv.org/abs/1512.00567, section 7.

    Args:
        label_smoothing: in [0, 1); or a 0-d tensor, whose value nobody checks.

    Raises:
        ValueError: a number outside [0, 1).

    >>> loss = fcifar.losses.smoothed_cross_entropy(0.2)
    >>> loss(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    tensor([0.9001])
    """
    if isinstance(label_smoothing, Tensor):
        return lambda logits, labels: torch.lerp(
            cross_entropy(logits, labels),
            -F.log_softmax(logits, -1).mean(-1),
            label_smoothing.to(logits.dtype),
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)

    return loss if label_smoothing else cross_entropy
