"""Recipes: named, frozen, validated configurations of a training run.

A recipe is plain values, so that it can be printed, stored in a manifest and read back;
``make_...`` turn those values into the parts of a step. ``RECIPES`` has them by name, and the
contract tests cover every entry.
"""

from fcifar.errors import UserError, did_you_mean, shown
from fcifar.recipes.named import AUGMENTS
from fcifar.recipes.parts import (
    Numbers,
    make_augment,
    make_average,
    make_gradient,
    make_loss,
    make_model,
    make_numbers,
    make_optimizer,
    make_preprocess,
    make_reduction,
    make_schedule,
    make_stages,
    make_views,
)
from fcifar.recipes.recipe import Recipe, from_dict, to_dict
from fcifar.recipes.speed import SPEED
from fcifar.recipes.tutorials import TUTORIALS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*TUTORIALS, *SPEED)}


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(
            f"no recipe {shown(name)}; there is {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}"
        )
    return RECIPES[name]


__all__ = [
    "AUGMENTS",
    "RECIPES",
    "Numbers",
    "Recipe",
    "from_dict",
    "get",
    "make_augment",
    "make_average",
    "make_gradient",
    "make_loss",
    "make_model",
    "make_numbers",
    "make_optimizer",
    "make_preprocess",
    "make_reduction",
    "make_schedule",
    "make_stages",
    "make_views",
    "to_dict",
]
