"""The networks and recipes that are tested, the large ones in small forms."""

from typing import Any

import pytest

from fcifar import models, recipes
from fcifar.models import Model
from fcifar.recipes import Recipe

DEEPER = ("resnet32", "resnet44", "resnet56", "resnet110")
"""resnet20 with more blocks; tests/models/test_resnet_cifar.py has what differs."""

LONG = ("resnet20", "preact_resnet18")
"""Networks that are for ``--long``, because resnet18 and wrn have the same parts."""

SAME = ("resnet56", "resnet110", "wrn-28-10")
"""Recipes whose small forms are those of resnet20 and wrn-16-8, except for a warm-up."""

SMALL: dict[str, dict[str, Any]] = {
    "speednet": {"widths": (8, 12, 16)},
    "resnet18": {"width": 4},
    "resnet20": {"width": 4},
    **{name: {"width": 4} for name in DEEPER},
    "preact_resnet18": {"width": 4},
    "wrn": {"depth": 10, "width": 1, "dropout": 0.3},
    "vit_tiny": {"patch": 8, "width": 12, "depth": 2},
    "mlp_mixer": {"patch": 8, "width": 12, "depth": 2, "token_hidden": 8, "channel_hidden": 24},
}
"""Options by network; the others are small as they are."""


def make_model(name: str) -> Model:
    """An entry of ``MODELS``, quick to train for a step."""
    return models.MODELS[name](**SMALL.get(name, {}))


def make_recipe(name: str) -> Recipe:
    """An entry of ``RECIPES`` with a small network."""
    recipe = recipes.get(name)
    model = "resnet20" if recipe.model in DEEPER else recipe.model
    options = {**recipe.model_options, **SMALL.get(model, {})}
    return recipe.replace(model=model, model_options=options)


def chosen_models(*slow: str) -> list[Any]:
    """The names of ``MODELS`` for tests of all models; ``slow`` ones are for ``--long``."""
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in (*LONG, *slow) else name
        for name in models.MODELS
        if name not in DEEPER
    ]


def chosen_recipes(*slow: str) -> list[Any]:
    """The names of ``RECIPES`` for tests of all recipes; ``slow`` ones are for ``--long``."""
    long = ("preact-resnet18", *slow)
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in long else name
        for name in recipes.RECIPES
        if name not in SAME
    ]


def compiled_models(*more: str) -> list[Any]:
    """The names of ``MODELS`` for tests that compile them.

    What takes a minute is for ``--long``: the largest, and ``more`` where few are enough.
    """
    return chosen_models("resnet18", "wrn", "vit_tiny", "mlp_mixer", *more)
