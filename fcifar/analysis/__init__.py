"""Analysis of predictions: pure functions of logits, labels and per-example results."""

from fcifar.analysis import (
    attacks,
    attributions,
    axes,
    calibration,
    confidence,
    ensembles,
    example_scores,
    influence,
    interpolation,
    label_errors,
    matching,
    predictions,
    score_tables,
    significance,
    symmetries,
)

__all__ = [
    "attacks",
    "attributions",
    "axes",
    "calibration",
    "confidence",
    "ensembles",
    "example_scores",
    "influence",
    "interpolation",
    "label_errors",
    "matching",
    "predictions",
    "score_tables",
    "significance",
    "symmetries",
]
