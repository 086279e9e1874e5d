"""Figures of a run. matplotlib is imported when the first one is drawn."""

from fcifar.report.channels import channels_picture
from fcifar.report.confusion import confusion_picture
from fcifar.report.pictures import labelled_grid, preview
from fcifar.report.plots import learning_curve, per_class_bars
from fcifar.report.predictions import predictions_grid, training_grid
from fcifar.report.reliability import reliability_picture
from fcifar.report.scores import score_histograms

__all__ = [
    "channels_picture",
    "confusion_picture",
    "labelled_grid",
    "learning_curve",
    "per_class_bars",
    "predictions_grid",
    "preview",
    "reliability_picture",
    "score_histograms",
    "training_grid",
]
