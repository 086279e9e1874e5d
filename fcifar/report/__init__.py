"""Figures and pages of runs. matplotlib is imported when the first figure is drawn."""
