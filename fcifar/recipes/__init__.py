"""Recipes: named, frozen, validated configurations of a training run.

A recipe holds plain values, so that it can be printed, stored in a manifest and read back;
``make_...`` turn those values into the parts of a step. ``RECIPES`` has the recipes by name, and
the contract tests cover every entry.

Importing this package loads torch only when a name other than ``Recipe`` is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fcifar.recipes.checks import check_seed
from fcifar.recipes.recipe import Recipe, from_dict, settings, to_dict

if TYPE_CHECKING:
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
        make_mix,
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
    from fcifar.recipes.lookup import RECIPES, changes, get, register
    from fcifar.recipes.named import (
        AUGMENTS,
        IMPORT,
        MIXES,
        NotImportableError,
        imported,
        is_import,
        is_own,
        options_of,
        register_augment,
        strengths_of,
    )

__all__ = [
    "AUGMENTS",
    "IMPORT",
    "MIXES",
    "RECIPES",
    "Hyperparams",
    "NotImportableError",
    "Recipe",
    "changes",
    "check_model",
    "check_seed",
    "check_sizes",
    "count_flops",
    "from_dict",
    "get",
    "imported",
    "is_import",
    "is_own",
    "make_augment",
    "make_average",
    "make_class_weights",
    "make_gradient",
    "make_hyperparams",
    "make_loss",
    "make_mix",
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
    "settings",
    "steps_per_epoch",
    "strengths_of",
    "tied_to_end",
    "to_dict",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("build", "lookup", "named"):
            found = importlib.import_module(f"fcifar.recipes.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module 'fcifar.recipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
