"""Analysis of predictions: pure functions of logits, labels and per-example results."""

from fcifar.analysis import (
    attacks,
    attributions,
    calibration,
    confidence,
    ensembles,
    example_scores,
    influence,
    predictions,
    score_tables,
    significance,
)

__all__ = [
    "attacks",
    "attributions",
    "calibration",
    "confidence",
    "ensembles",
    "example_scores",
    "influence",
    "predictions",
    "score_tables",
    "significance",
]
