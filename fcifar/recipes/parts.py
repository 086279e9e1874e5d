"""From the values of a recipe to the parts of a step."""

from fcifar import augment, optim, schedules
from fcifar.errors import UserError
from fcifar.models import Model
from fcifar.optim import Optimizer
from fcifar.recipes.named import named_augment, named_model
from fcifar.recipes.recipe import Recipe
from fcifar.schedules import Schedule
from fcifar.step import Augment, Preprocess, normalize

_SCHEDULES = {
    "constant": lambda peak, steps: schedules.constant_schedule(peak),
    "linear": lambda peak, steps: schedules.linear_schedule(peak, 0.0, steps),
    "cosine": schedules.cosine_decay_schedule,
}


def make_model(recipe: Recipe, num_classes: int) -> Model:
    """The recipe's network for a data set of ``num_classes`` classes."""
    return named_model(recipe.model, recipe.model_options, num_classes)


def make_optimizer(recipe: Recipe, total_steps: int) -> Optimizer:
    """The recipe's optimizer with its schedule spread over ``total_steps``."""
    learning_rate = make_schedule(recipe, total_steps)
    parts = []
    if recipe.clip_norm:
        parts.append(optim.clip_by_global_norm(recipe.clip_norm))
    if recipe.optimizer == "adamw":
        parts.append(optim.adamw(learning_rate, weight_decay=recipe.weight_decay))
        return optim.chain(*parts)
    if recipe.weight_decay:
        parts.append(optim.add_decayed_weights(recipe.weight_decay))
    if recipe.optimizer == "adam":
        parts.append(optim.adam(learning_rate))
    else:
        parts.append(optim.sgd(learning_rate, recipe.momentum or None, nesterov=recipe.nesterov))
    return optim.chain(*parts)


def make_schedule(recipe: Recipe, total_steps: int) -> float | Schedule:
    """The learning rate: a number where it is constant, else a function of the step."""
    peak, warmup = recipe.learning_rate, recipe.warmup_steps
    if recipe.schedule == "constant" and not warmup:
        return peak
    if warmup >= total_steps:
        raise UserError(
            f"warmup_steps is {warmup}, but the run has only {total_steps} steps; "
            "warm up for fewer, or train for longer"
        )
    main = _SCHEDULES[recipe.schedule](peak, total_steps - warmup)
    return schedules.warmup(main, 0.0, peak, warmup) if warmup else main


def make_augment(recipe: Recipe) -> Augment:
    """The recipe's augmentations, one after the other."""
    return augment.chain(*map(named_augment, recipe.augment))


def make_preprocess(recipe: Recipe) -> Preprocess:
    """The recipe's normalisation."""
    return normalize(tuple(recipe.mean), tuple(recipe.std))
