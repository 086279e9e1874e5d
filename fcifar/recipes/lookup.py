"""The registry of recipes."""

import json
from collections.abc import Mapping
from typing import Any

from fcifar import entries
from fcifar.errors import UsageError, did_you_mean, shown
from fcifar.recipes.checks import refused
from fcifar.recipes.classics import CLASSICS
from fcifar.recipes.named import imported, is_import
from fcifar.recipes.recipe import TEXTS, Recipe, to_dict
from fcifar.recipes.speed import SPEED
from fcifar.recipes.tutorials import TUTORIALS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*TUTORIALS, *SPEED, *CLASSICS)}


def get(name: str) -> Recipe:
    """Return a registered recipe, or the one at MODULE:NAME.

    Raises:
        UsageError: there is none.

    >>> recipe = fcifar.recipes.get("blitz")
    >>> recipe.model, recipe.learning_rate, recipe.batch_size
    ('lenet', 0.001, 4)
    """
    if is_import(name):
        _, recipe = imported("the recipe", name)
        if not isinstance(recipe, Recipe):
            raise refused(f"the recipe {shown(name)}", recipe, "a Recipe")
        return recipe
    if name not in RECIPES:
        raise UsageError(
            f"no recipe {shown(name)}; there is {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}"
        )
    return RECIPES[name]


def changes(values: Mapping[str, Any]) -> dict[str, list[Any]] | None:
    """Return how a recipe differs from the shipped one of its name.

    Args:
        values: the recipe, as ``to_dict`` or a manifest has it.

    Returns:
        The shipped value and the value here, by name of the field; None if no recipe has the name.
        Fields that describe are left out, such as ``notes``.
    """
    if values["name"] not in RECIPES:
        return None
    # Through JSON, as manifests are: it has lists and no tuples.
    base, now = (json.loads(json.dumps(v)) for v in (to_dict(RECIPES[values["name"]]), values))
    return {
        name: [base.get(name), value]
        for name, value in now.items()
        if name not in TEXTS and base.get(name) != value
    }


def register(recipe: Recipe) -> None:
    """Add a recipe to ``RECIPES`` under its name, for the command line (see ``$FCIFAR_IMPORT``).

    Raises:
        ValueError: the name is taken or invalid, or ``recipe`` is not a ``Recipe``.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{shown(recipe)} is to be a recipe; it must be a Recipe")
    entries.add(RECIPES, "a recipe", recipe.name, recipe)
