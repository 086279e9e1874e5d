"""Analysis of predictions: pure functions of logits, labels and per-example results."""

from fcifar.analysis import (
    calibration,
    confidence,
    ensembles,
    example_scores,
    interpolation,
    matching,
    predictions,
    score_tables,
    significance,
    symmetries,
)

__all__ = [
    "calibration",
    "confidence",
    "ensembles",
    "example_scores",
    "interpolation",
    "matching",
    "predictions",
    "score_tables",
    "significance",
    "symmetries",
]
