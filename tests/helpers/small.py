"""The networks and recipes that are tested, the large ones in small forms."""

from typing import Any

import pytest

from fcifar import models, recipes
from fcifar.models import Model
from fcifar.recipes import Recipe

SMALL: dict[str, dict[str, Any]] = {
    "speednet": {"widths": (8, 12, 16)},
    "resnet18": {"width": 4},
}
"""Options by network; the others are small as they are."""


def make_model(name: str) -> Model:
    """An entry of ``MODELS``, quick to train for a step."""
    return models.MODELS[name](**SMALL.get(name, {}))


def make_recipe(name: str) -> Recipe:
    """An entry of ``RECIPES`` with a small network."""
    recipe = recipes.get(name)
    options = {**recipe.model_options, **SMALL.get(recipe.model, {})}
    return recipe.replace(model_options=options)


def compiled_models(*more: str) -> list[Any]:
    """The names of ``MODELS`` for tests that compile them.

    What takes a minute is for ``--long``: the largest, and ``more`` where few are enough.
    """
    long = {"resnet18", *more}
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in long else name
        for name in models.MODELS
    ]
