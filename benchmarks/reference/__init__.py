"""Implementations that fcifar is measured against."""
