"""Recipes: named, frozen, validated configurations of a training run.

A recipe is plain values, so that it can be printed, stored in a manifest and read back. The
functions at the end turn those values into the parts of a step.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcifar import optim, schedules
from fcifar.errors import UserError
from fcifar.models import MODELS, Model
from fcifar.optim import Optimizer
from fcifar.schedules import Schedule
from fcifar.step import Preprocess, normalize


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how.

    Raises:
        UserError: a value is outside its range, or two values contradict each other.
    """

    name: str
    summary: str = ""  # one line for a person
    source: str = ""  # the page that it reimplements
    expected: str = ""  # measured outcome, for a person

    model: str = "lenet"  # an entry of models.MODELS
    model_options: Mapping[str, int | float] = field(default_factory=dict)

    optimizer: str = "sgd"  # sgd, adam or adamw
    learning_rate: float = 1e-3
    momentum: float = 0.0  # for sgd
    nesterov: bool = False  # for sgd
    weight_decay: float = 0.0  # L2 penalty for sgd and adam, decoupled for adamw
    clip_norm: float = 0.0  # largest global gradient norm; 0 is no clipping
    schedule: str = "constant"  # constant, linear or cosine, over the whole run
    warmup_steps: int = 0  # linear from 0 up to the learning rate

    batch_size: int = 4
    epochs: int = 2
    drop_last: bool = False  # leave out a last training batch that is not full

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of images in [0, 1], by channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    log_every: int = 2000  # steps over which the running loss and accuracy are averaged

    def __post_init__(self) -> None:
        _check_choice("model", self.model, MODELS)
        _check_choice("optimizer", self.optimizer, _OPTIMIZERS)
        _check_choice("schedule", self.schedule, _SCHEDULES)
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("epochs", self.epochs, 1),
            ("log_every", self.log_every, 1),
            ("warmup_steps", self.warmup_steps, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number from {least} up")
        for name in ("learning_rate", "momentum", "weight_decay", "clip_norm"):
            _check_number(name, getattr(self, name))
        if self.momentum >= 1:
            raise UserError(f"momentum is {self.momentum}; it must lie in [0, 1)")
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise UserError(
                f"momentum and nesterov belong to the optimizer sgd, not to {self.optimizer}; "
                "leave them out"
            )
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs momentum; give momentum, such as 0.9")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise UserError(
                f"mean and std need three numbers each, std above 0; not {self.mean} and {self.std}"
            )

    def replace(self, **changes: Any) -> "Recipe":
        """The recipe with some values changed, validated again."""
        return dataclasses.replace(self, **changes)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as values that JSON holds."""
    return dataclasses.asdict(recipe)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that ``to_dict`` was given.

    Raises:
        UserError: unknown or missing fields, or values out of range.
    """
    names = {f.name for f in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - names)
    if unknown or "name" not in values:
        raise UserError(
            f"not a recipe: {'unknown ' + ', '.join(unknown) if unknown else 'no name'}; "
            f"a recipe has {', '.join(sorted(names))}"
        )
    try:
        fields: dict[str, Any] = dict(values)
        for name in ("mean", "std"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return Recipe(**fields)
    except TypeError as error:
        raise UserError(f"not a recipe: {error}") from error


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"no recipe {name!r}; there is {', '.join(RECIPES)}")
    return RECIPES[name]


# From values to parts ----------------------------------------------------------------------------


def make_model(recipe: Recipe, num_classes: int) -> Model:
    """The recipe's network for a data set of ``num_classes`` classes."""
    try:
        return MODELS[recipe.model](num_classes=num_classes, **recipe.model_options)
    except TypeError as error:
        raise UserError(
            f"model_options {dict(recipe.model_options)} do not fit the model "
            f"{recipe.model}: {error}"
        ) from error


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


def make_preprocess(recipe: Recipe) -> Preprocess:
    """The recipe's normalisation."""
    return normalize(tuple(recipe.mean), tuple(recipe.std))


_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = {
    "constant": lambda peak, steps: schedules.constant_schedule(peak),
    "linear": lambda peak, steps: schedules.linear_schedule(peak, 0.0, steps),
    "cosine": schedules.cosine_decay_schedule,
}


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} is {value!r}; it must be a number")
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{name} is {value}; it must be finite and not below 0")


# The recipes -------------------------------------------------------------------------------------

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="blitz",
            summary="the classic tutorial's network and settings",
            source="https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html",
            model="lenet",
            model_options={"hidden": 84},
            optimizer="sgd",
            learning_rate=1e-3,
            momentum=0.9,
            batch_size=4,
            epochs=2,
        ),
    )
}
