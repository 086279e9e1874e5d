"""The data set and the recipe of the tests of runs."""

from tests.runs.conftest import dataset, recipe, runtime

__all__ = ["dataset", "recipe", "runtime"]
