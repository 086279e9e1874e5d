"""Pictures and plots out of a run. matplotlib is imported when the first one is drawn."""

from fcifar.report.pictures import labelled_grid, preview
from fcifar.report.plots import learning_curve, per_class_bars

__all__ = ["labelled_grid", "learning_curve", "per_class_bars", "preview"]
