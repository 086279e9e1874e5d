"""Analysis of predictions: pure functions of logits, labels and per-example results."""

from fcifar.analysis import (
    calibration,
    confidence,
    ensembles,
    example_scores,
    label_errors,
    predictions,
    score_tables,
    significance,
)

__all__ = [
    "calibration",
    "confidence",
    "ensembles",
    "example_scores",
    "label_errors",
    "predictions",
    "score_tables",
    "significance",
]
