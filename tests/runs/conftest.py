"""A data set small enough to train on in a blink, and a run of it."""

import pytest

from fcifar import recipes
from fcifar.data import Dataset, Split, make_dataset
from fcifar.recipes import Recipe
from fcifar.train.config import RunConfig, make_config
from fcifar.train.runtime import Runtime
from tests.helpers.training import SEED


@pytest.fixture
def dataset(make_batch) -> Dataset:
    train, test = make_batch(42, seed=1), make_batch(23, seed=2)
    classes = tuple("abcdefghij")
    return make_dataset("tiny", Split(*train), Split(*test), classes, "drawn by the tests")


@pytest.fixture
def recipe() -> Recipe:
    """Nine steps an epoch, the last of them short; 27 in all."""
    return recipes.get("blitz").replace(batch_size=5, epochs=3, log_every=4)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(threads=1)


@pytest.fixture
def config(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> RunConfig:
    """A run of ``recipe`` on ``dataset``."""
    return make_config(recipe, dataset, seed=SEED, runtime=runtime)
