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


def smoothed_cross_entropy(
    label_smoothing: float | Tensor, class_weights: Tensor | None = None
) -> Loss:
    """``cross_entropy`` against labels that give a share to all classes alike.

    The target is ``1 - label_smoothing`` for the label and ``label_smoothing / C`` for each of the
    C classes. Szegedy et al., https://arxiv.org/abs/1512.00567, section 7.

    Args:
        label_smoothing: in [0, 1); or a 0-d tensor, whose value is not checked.
        class_weights: float [C], a factor on each class's term of the sum, as ``weight`` of
            ``torch.nn.CrossEntropyLoss``. Averaging the losses divides by their number and not, as
            its ``reduction="mean"`` does, by the sum of the labels' weights, so that each example's
            loss does not depend on the others in its batch. None for weights of 1.

    Raises:
        ValueError: a number outside [0, 1).

    >>> loss = fcifar.losses.smoothed_cross_entropy(0.2)
    >>> loss(torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    tensor([0.9001])
    """
    if isinstance(label_smoothing, Tensor):

        def traced_loss(logits: Tensor, labels: Tensor) -> Tensor:
            weights = None if class_weights is None else class_weights.to(logits.dtype)
            terms = -F.log_softmax(logits, -1)
            uniform = terms if weights is None else terms * weights
            of_label = F.cross_entropy(logits, labels, weight=weights, reduction="none")
            return torch.lerp(of_label, uniform.mean(-1), label_smoothing.to(logits.dtype))

        return traced_loss
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if class_weights is None else class_weights.to(logits.dtype)
        return F.cross_entropy(
            logits, labels, weight=weights, reduction="none", label_smoothing=label_smoothing
        )

    return loss if label_smoothing or class_weights is not None else cross_entropy


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights under which every class counts alike: float32 [C], ``N / (C' * N_c)``.

    N_c of the N labels are of class c, and C' classes have any; a class without labels has the
    weight 0. The labels' weights have the mean 1. As ``class_weight="balanced"`` of scikit-learn;
    King and Zeng, "Logistic regression in rare events data" (2001).

    Args:
        labels: int64 [N].

    >>> fcifar.losses.balanced_class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=num_classes).to(torch.float64)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).to(torch.float32)
