"""What a classifier takes for what, and whether its confidence can be trusted.

For whole evaluations, outside any compiled step: the values are looked at and checked.
Sums are in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-6  # how far beyond 1 a float32 average of probabilities may come out


class Reliability(NamedTuple):
    """Confidence and accuracy of the examples in each bin of confidence."""

    confidence: Tensor  # float64 [bins], the mean in [0, 1]; NaN for an empty bin
    accuracy: Tensor  # float64 [bins], in [0, 1]; NaN for an empty bin
    count: Tensor  # int64 [bins]


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """How often each class was taken for each.

    Args:
        labels: integers [B] in [0, num_classes).
        predictions: likewise.
        num_classes: C, at least 1.

    Returns:
        int64 [C, C]: in row i and column j, how many examples of class i were predicted as j.

    Raises:
        ValueError: an argument is something else.

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
    # In a narrow type (uint8, say) the products would wrap around.
    cells = labels.long() * num_classes + predictions.long()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def softmax_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The probability that the softmax gives to the predicted class, and that class.

    Args:
        logits: [B, C], floating.

    Returns:
        float64 [B] in [0, 1], NaN where the logits hold a NaN or plus infinity; int64 [B].

    Raises:
        ValueError: ``logits`` are something else.
    """
    _check_logits(logits)
    prediction = logits.argmax(-1)
    probabilities = torch.softmax(logits.double(), -1)
    return probabilities.gather(-1, prediction[:, None])[:, 0], prediction


def reliability(confidence: Tensor, correct: Tensor, bins: int = 15) -> Reliability:
    """Examples sorted by confidence into bins of equal width.

    Bin m of M holds the confidences in ((m - 1) / M, m / M], as in Guo et al., "On calibration of
    modern neural networks", 2017, section 2 (https://arxiv.org/abs/1706.04599); 0 is in the first.

    Args:
        confidence: [B], floating, in [0, 1]. An example whose confidence is NaN is in no bin.
        correct: bool [B].
        bins: M, at least 1.

    Raises:
        ValueError: an argument is something else.
    """
    _check_same_length("confidence and correct", confidence, correct)
    if bins < 1:
        raise ValueError(f"reliability needs at least 1 bin, not {bins}")
    if correct.dtype != torch.bool:
        raise ValueError(f"correct must be bool, not {correct.dtype}")
    confidence = confidence.double()
    if ((confidence < 0) | (confidence > 1 + ROUNDING)).any():
        raise ValueError("confidence must be probabilities, in [0, 1]")
    known = ~confidence.isnan()
    confidence, hits = confidence[known], correct[known].double()
    inner_edges = torch.arange(1, bins, device=confidence.device).double() / bins
    place = torch.bucketize(confidence, inner_edges)  # up to and including the edge on the right
    empty = confidence.new_zeros(bins)
    count = empty.long().index_add(0, place, torch.ones_like(place))
    return Reliability(
        confidence=empty.index_add(0, place, confidence) / count,
        accuracy=empty.index_add(0, place, hits) / count,
        count=count,
    )


def expected_calibration_error(reliability: Reliability) -> Tensor:
    """The mean distance of confidence and accuracy, each bin weighted with its examples.

    Equation 3 of Guo et al., 2017. float64 [], in [0, 1]; NaN if there is no example at all.
    """
    gap = (reliability.accuracy - reliability.confidence).abs()
    weighted = torch.where(reliability.count > 0, gap * reliability.count, 0.0)
    return weighted.sum() / reliability.count.sum()


def most_confident_mistakes(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Where the network was surest and wrong.

    Args:
        logits: [B, C], floating.
        labels: integers [B].
        count: how many at most.

    Returns:
        int64 [<= count]: row numbers, the most confident mistake first and equally confident ones
        by row number. Those whose confidence is NaN come last.

    Raises:
        ValueError: an argument is something else, or ``count`` is below 0.
    """
    confidence, prediction = softmax_confidence(logits)
    _check_same_length("logits and labels", prediction, labels)
    if count < 0:
        raise ValueError(f"most_confident_mistakes needs a count of 0 or more, not {count}")
    wrong = torch.nonzero(prediction != labels).flatten()
    surest = confidence[wrong].nan_to_num(-1.0).sort(descending=True, stable=True).indices
    return wrong[surest[:count]]


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating [B, C], C at least 1, not {logits.dtype} {[*logits.shape]}"
        )


def _check_same_length(names: str, first: Tensor, second: Tensor) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"{names} must be [B] both, not {[*first.shape]} and {[*second.shape]}")
