"""Metrics of an evaluation, and top predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar.analysis import calibration
from fcifar.metrics import wilson_interval
from fcifar.step import EvalOutput

LARGEST_MATRIX = 200  # classes, up to which a report has the full confusion matrix


def of_views(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Select and rename the metrics to report of a test-time augmentation."""
    return {f"tta_{name}": metrics[name] for name in ("accuracy", "loss", "interval95")}


def summarize(examples: EvalOutput, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Summarize an evaluation, as JSON-serializable values.

    accuracy, loss (mean), n, interval95 (Wilson's, of the accuracy), per_class, confusion (counts,
    a row for each true class), mean_confidence, and ece (expected calibration error, 15 bins).
    With more than ``LARGEST_MATRIX`` classes, confusion_cells replaces confusion: true class,
    predicted class and count of each cell that is not 0.
    """
    labels = labels.cpu()
    count, correct = len(labels), int(examples.correct.sum())
    confidence, predictions = calibration.softmax_confidence(examples.logits)
    per_class = {}
    for i, name in enumerate(classes):
        of_class = labels == i
        total, right = int(of_class.sum()), int(examples.correct[of_class].sum())
        accuracy = right / total if total else None
        per_class[name] = {"correct": right, "total": total, "accuracy": accuracy}
    return {
        "accuracy": correct / count,
        "loss": examples.loss.double().mean().item(),
        "n": count,
        "interval95": list(wilson_interval(correct, count)),
        "per_class": per_class,
        **_confusion(calibration.confusion_matrix(labels, predictions, len(classes))),
        "mean_confidence": confidence.mean().item(),
        "ece": calibration.expected_calibration_error(
            calibration.reliability(confidence, examples.correct)
        ).item(),
    }


def _confusion(matrix: Tensor) -> dict[str, Any]:
    if len(matrix) <= LARGEST_MATRIX:
        return {"confusion": matrix.tolist()}
    cells = torch.nonzero(matrix)
    counts = matrix[cells[:, 0], cells[:, 1]]
    return {"confusion_cells": torch.cat([cells, counts[:, None]], 1).tolist()}


class Guess(NamedTuple):
    """A predicted class and its probability."""

    name: str
    probability: float  # in [0, 1]; NaN if the logits are not finite


def best_guesses(logits: Tensor, classes: Sequence[str], count: int = 5) -> list[list[Guess]]:
    """Return the ``count`` most likely classes by logits [N, C], equal ones in class order."""
    probabilities, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    return [
        [Guess(classes[i], p) for i, p in zip(indices[:count], row, strict=False)]
        for indices, row in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]
