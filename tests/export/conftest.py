"""The data set and the runs of the tests of runs."""

from tests.runs.conftest import config, dataset, recipe, runtime

__all__ = ["config", "dataset", "recipe", "runtime"]
