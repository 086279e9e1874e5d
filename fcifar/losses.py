"""Per-example losses. The caller reduces them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(logits [B, C], labels int64 [B]) -> [B]``; or targets, floating [B, C], in place of labels."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy in nats, of logits [B, C] and labels [B] (or [C] and []).

    Labels are int64, or floating targets [B, C] (or [C]): probabilities of the classes, as from
    ``fcifar.augment.mixup``.

    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> fcifar.losses.cross_entropy(logits, torch.tensor([0, 1]))
    tensor([0.6931, 9.0001])
    """
    return F.cross_entropy(logits, _targets(labels, logits), reduction="none")


def smoothed_cross_entropy(
    label_smoothing: float | Tensor, class_weights: Tensor | None = None
) -> Loss:
    """Cross-entropy with label smoothing and class weights.

    The target is ``1 - label_smoothing`` for the label plus ``label_smoothing / C`` for each of the
    C classes; targets, floating [B, C], are smoothed likewise. Szegedy et al.,
    https://arxiv.org/abs/1512.00567, section 7.

    Args:
        label_smoothing: in [0, 1), or a 0-d tensor, whose value is not checked.
        class_weights: float [C], a factor for each class of a target, as ``weight`` of
            ``torch.nn.CrossEntropyLoss``; None for weights of 1. A mean of these losses divides by
            the number of examples, not by the sum of their weights as ``reduction="mean"`` does, so
            that no loss depends on the other examples of its batch.

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
            of_label = F.cross_entropy(
                logits, _targets(labels, logits), weight=weights, reduction="none"
            )
            return torch.lerp(of_label, uniform.mean(-1), label_smoothing.to(logits.dtype))

        return traced_loss
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        weights = None if class_weights is None else class_weights.to(logits.dtype)
        return F.cross_entropy(
            logits,
            _targets(labels, logits),
            weight=weights,
            reduction="none",
            label_smoothing=label_smoothing,
        )

    return loss if label_smoothing or class_weights is not None else cross_entropy


def _targets(labels: Tensor, logits: Tensor) -> Tensor:
    """Return targets in the dtype of the logits; labels as they are."""
    return labels.to(logits.dtype) if labels.is_floating_point() else labels


def balanced_class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Class weights that balance the classes: float32 [C], ``N / (C' * N_c)``.

    N_c of the N labels are of class c, and C' classes have labels. A class without labels has
    weight 0. The mean weight of the labels is 1. As ``class_weight="balanced"`` of scikit-learn;
    King and Zeng, "Logistic regression in rare events data" (2001).

    Args:
        labels: int64 [N].

    >>> fcifar.losses.balanced_class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=num_classes).to(torch.float64)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).to(torch.float32)
