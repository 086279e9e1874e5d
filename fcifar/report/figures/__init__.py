"""Figures: functions from values to matplotlib figures and PIL images, and their files."""
