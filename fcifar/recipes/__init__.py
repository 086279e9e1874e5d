"""Recipes: named, frozen, validated configurations of a training run.

A recipe is plain values, so that it can be printed, stored in a manifest and read back;
``make_...`` turn those values into the parts of a step. ``RECIPES`` has them by name, and the
contract tests cover every entry.
"""

from fcifar import entries
from fcifar.errors import UsageError, did_you_mean, shown
from fcifar.recipes.build import (
    Hyperparams,
    check_model,
    check_sizes,
    count_flops,
    make_augment,
    make_average,
    make_class_weights,
    make_gradient,
    make_hyperparams,
    make_loss,
    make_model,
    make_optimizer,
    make_preprocess,
    make_reduction,
    make_schedule,
    make_stages,
    make_views,
    steps_per_epoch,
    tied_to_end,
)
from fcifar.recipes.checks import check_seed
from fcifar.recipes.importing import NotImportableError, imported, is_import
from fcifar.recipes.named import AUGMENTS, IMPORT, options_of, register_augment
from fcifar.recipes.recipe import Recipe, from_dict, to_dict
from fcifar.recipes.speed import SPEED
from fcifar.recipes.tutorials import TUTORIALS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*TUTORIALS, *SPEED)}


def get(name: str) -> Recipe:
    """The recipe of that name, or the one that MODULE:NAME names.

    Raises:
        UsageError: there is none.

    >>> recipe = fcifar.recipes.get("blitz")
    >>> recipe.model, recipe.learning_rate, recipe.batch_size
    ('lenet', 0.001, 4)
    """
    if is_import(name):
        _, recipe = imported("the recipe", name)
        if not isinstance(recipe, Recipe):
            raise UsageError(f"the recipe {shown(name)} is {shown(recipe)}; it must be a Recipe")
        return recipe
    if name not in RECIPES:
        raise UsageError(
            f"no recipe {shown(name)}; there is {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}"
        )
    return RECIPES[name]


def register(recipe: Recipe) -> None:
    """Add a recipe to ``RECIPES`` under its name, for the command line (see ``$FCIFAR_IMPORT``).

    Raises:
        ValueError: the name is taken or no word, or ``recipe`` is no ``Recipe``.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{shown(recipe)} is to be a recipe; it must be a Recipe")
    entries.add(RECIPES, "a recipe", recipe.name, recipe)


__all__ = [
    "AUGMENTS",
    "IMPORT",
    "RECIPES",
    "Hyperparams",
    "NotImportableError",
    "Recipe",
    "check_model",
    "check_seed",
    "check_sizes",
    "count_flops",
    "from_dict",
    "get",
    "make_augment",
    "make_average",
    "make_class_weights",
    "make_gradient",
    "make_hyperparams",
    "make_loss",
    "make_model",
    "make_optimizer",
    "make_preprocess",
    "make_reduction",
    "make_schedule",
    "make_stages",
    "make_views",
    "options_of",
    "register",
    "register_augment",
    "steps_per_epoch",
    "tied_to_end",
    "to_dict",
]
