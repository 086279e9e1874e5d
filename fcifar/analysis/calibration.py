"""Confusion matrix, confidence and calibration of a classifier.

For whole evaluations, outside compiled steps. Sums are in float64. Invalid arguments raise a
ValueError.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-6  # by which a float32 mean of probabilities may exceed 1


class Reliability(NamedTuple):
    """Confidence and accuracy of the examples in each bin of confidence."""

    confidence: Tensor  # float64 [bins], the mean in [0, 1]; NaN for an empty bin
    accuracy: Tensor  # float64 [bins], in [0, 1]; NaN for an empty bin
    count: Tensor  # int64 [bins]


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix, int64 [C, C]: rows are labels, columns predictions.

    Labels and predictions are integers [B] in [0, C).

    >>> labels, predictions = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    >>> fcifar.analysis.calibration.confusion_matrix(labels, predictions, 2)
    tensor([[1, 1],
            [0, 1]])
    """
    _check_same_length("labels and predictions", labels, predictions)
    if num_classes < 1:
        raise ValueError(f"confusion_matrix needs at least 1 class, not {num_classes}")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.is_floating_point() or ((values < 0) | (values >= num_classes)).any():
            raise ValueError(f"{name} must be integers from 0 to {num_classes - 1}")
    # Narrow integer types would overflow.
    cells = labels.long() * num_classes + predictions.long()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def softmax_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax probability of the predicted class, and that class, for logits [B, C].

    float64 [B] in [0, 1], NaN where the logits hold a NaN or plus infinity; int64 [B].
    """
    if logits.ndim != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating [B, C], C at least 1, not {logits.dtype} {[*logits.shape]}"
        )
    prediction = logits.argmax(-1)
    probabilities = torch.softmax(logits.double(), -1)
    return probabilities.gather(-1, prediction[:, None])[:, 0], prediction


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> Reliability:
    """Sort examples by confidence into bins of equal width.

    Bin m of M holds the confidences in ((m - 1) / M, m / M], and the first also 0, as in Guo et
    al., "On calibration of modern neural networks", 2017 (https://arxiv.org/abs/1706.04599).

    Args:
        confidence: floating [B] in [0, 1]. Examples with confidence NaN are in no bin.
        correct: bool [B].
        bins: M, at least 1.
    """
    _check_same_length("confidence and correct", confidence, correct)
    if bins < 1:
        raise ValueError(f"reliability needs at least 1 bin, not {bins}")
    if correct.dtype != torch.bool:
        raise ValueError(f"correct must be bool, not {correct.dtype}")
    confidence = confidence.double()
    if ((confidence < 0) | (confidence > 1 + _ROUNDING)).any():
        raise ValueError("confidence must be probabilities, in [0, 1]")
    known = ~confidence.isnan()
    confidence, hits = confidence[known], correct[known].double()
    inner_edges = torch.arange(1, bins, device=confidence.device).double() / bins
    index = torch.bucketize(confidence, inner_edges)  # bins include their right edge
    empty = confidence.new_zeros(bins)
    count = empty.long().index_add(0, index, torch.ones_like(index))
    return Reliability(
        confidence=empty.index_add(0, index, confidence) / count,
        accuracy=empty.index_add(0, index, hits) / count,
        count=count,
    )


def expected_calibration_error(reliability: Reliability) -> Tensor:
    """Return the mean gap of confidence and accuracy, weighted by count: Guo et al., equation 3.

    float64 [] in [0, 1]; NaN without examples.
    """
    gap = (reliability.accuracy - reliability.confidence).abs()
    weighted = torch.where(reliability.count > 0, gap * reliability.count, 0.0)
    return weighted.sum() / reliability.count.sum()


def most_confident_mistakes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the rows of at most ``count`` mistakes, int64, the most confident first.

    Logits are [B, C], labels integers [B]. Equally confident rows are in order; those with
    confidence NaN come last.
    """
    confidence, prediction = softmax_confidence(logits)
    _check_same_length("logits and labels", prediction, labels)
    if count < 0:
        raise ValueError(f"most_confident_mistakes needs a count of 0 or more, not {count}")
    wrong = torch.nonzero(prediction != labels).flatten()
    order = confidence[wrong].nan_to_num(-1.0).sort(descending=True, stable=True).indices
    return wrong[order[:count]]


def _check_same_length(names: str, first: Tensor, second: Tensor) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{names} must be [B] both, not {[*first.shape]} and {[*second.shape]}")
