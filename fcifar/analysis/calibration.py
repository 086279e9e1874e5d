"""Confusion matrix, confidence and calibration of a classifier, and temperature scaling.

For whole evaluations, outside compiled steps. Sums are in float64. Invalid arguments raise a
ValueError.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_ROUNDING = 1e-6  # by which a float32 mean of probabilities may exceed 1
_CONVERGED = 1e-13  # relative change of the inverse temperature
_MOST_STEPS = 200  # more than bisection needs


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


def fit_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Return T with the least mean cross-entropy of the logits divided by T, float64 [] above 0.

    Temperature scaling, section 4.2 of Guo et al., 2017 (https://arxiv.org/abs/1706.04599). Fit it
    on images that the model was not trained on. Predicted classes do not depend on T.

    With b = 1 / T, logits z and label y, the loss of an example is logsumexp(b z) - b z[y]. Its
    first derivative in b is E[z] - z[y], where E is over the probabilities softmax(b z), and its
    second the variance of z under them, at least 0: the mean is convex in b. Newton's method finds
    the zero of the derivative between two values of b where it has different signs, and bisection
    where a step would leave them. All is in float64.

    Args:
        logits: floating [N, C].
        labels: int64 [N].

    Raises:
        ValueError: shapes or values are invalid, or no T has the least loss: it falls as T goes to
            0 if every label has the largest logit of its example, and as T goes to infinity, where
            all classes are equal, if the labels' logits are on average not above the mean.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    >>> T = fcifar.analysis.calibration.fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    >>> round(T.item(), 6), torch.softmax(logits[0] / T, 0)  # three of four are right
    (1.820478, tensor([0.7500, 0.2500]))
    """
    _, predictions = softmax_confidence(logits)
    _check_same_length("logits and labels", predictions, labels)
    classes = logits.shape[1]
    if labels.dtype != torch.int64 or ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"labels must be int64 from 0 to {classes - 1}")
    if not len(labels) or not logits.isfinite().all():
        raise ValueError("a temperature needs at least one example, and finite logits")
    z = logits.double()
    # From the largest of each example down, so that what follows neither over- nor underflows.
    z = z - z.amax(1, keepdim=True)
    own = z.gather(1, labels[:, None])[:, 0]
    if not own.any():
        raise ValueError(
            "every label has the largest logit of its example: the loss falls as T goes to 0; give "
            "examples with mistakes"
        )
    if (own - z.mean(1)).mean() <= 0:
        raise ValueError(
            "the labels' logits are on average not above the mean of their examples: the loss "
            "falls as T goes to infinity, where all classes are equally likely"
        )

    def derivatives(b: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(b * z, 1)
        mean = (p * z).sum(1)
        return (mean - own).mean(), (p * (z - mean[:, None]).square()).sum(1).mean()

    low, high = z.new_zeros(()), 1 / z.abs().mean()
    while derivatives(high)[0] <= 0:
        low, high = high, 2 * high
    b = high
    for _ in range(_MOST_STEPS):
        slope, curvature = derivatives(b)
        low, high = torch.where(slope < 0, b, low), torch.where(slope < 0, high, b)
        newton = b - slope / curvature
        inside = (low < newton) & (newton < high)
        following = torch.where(inside, newton, (low + high) / 2)
        if (following - b).abs() <= _CONVERGED * b:
            break
        b = following
    return 1 / b


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
