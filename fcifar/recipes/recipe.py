"""A recipe as a value: fields, their ranges, and the way to JSON and back."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcifar.errors import UserError
from fcifar.models import MODELS

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how.

    Raises:
        UserError: a value is outside its range, or two values contradict each other.
    """

    name: str
    summary: str = ""  # one line for a person
    source: str = ""  # the page that it reimplements
    notes: str = ""  # what differs from it, and what it published
    expected: str = ""  # accuracy on CIFAR-10 and training time, compiled, on two CPU cores

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
    epochs: int = 2  # at most, where patience ends a run early
    drop_last: bool = False  # leave out a last training batch that is not full
    augment: tuple[str, ...] = ()  # NAME or NAME:STRENGTH, entries of AUGMENTS, in order

    valid_fraction: float = 0.0  # of the training images, held out to choose by
    stratify: bool = False  # hold out the same fraction of each class
    patience: int = 0  # stop after so many epochs without a lower validation loss; 0 for never
    restore_best: bool = False  # end with the parameters of the lowest validation loss

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of images in [0, 1], by channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    log_every: int = 2000  # steps over which loss and accuracy are averaged; 0 for an epoch

    def __post_init__(self) -> None:
        check_choice("model", self.model, MODELS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("epochs", self.epochs, 1),
            ("log_every", self.log_every, 0),
            ("patience", self.patience, 0),
            ("warmup_steps", self.warmup_steps, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is {value!r}; it must be a whole number from {least} up")
        for name in ("learning_rate", "momentum", "weight_decay", "clip_norm", "valid_fraction"):
            _check_number(name, getattr(self, name))
        for name in ("momentum", "valid_fraction"):
            if getattr(self, name) >= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if not self.valid_fraction and (self.patience or self.restore_best or self.stratify):
            raise UserError(
                "patience, restore_best and stratify need validation images; "
                "give valid_fraction, such as 0.2"
            )
        if not isinstance(self.augment, tuple) or not all(isinstance(a, str) for a in self.augment):
            raise UserError(f"augment is {self.augment!r}; it must be names such as random_flip")
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
        for name in ("mean", "std", "augment"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return Recipe(**fields)
    except TypeError as error:
        raise UserError(f"not a recipe: {error}") from error


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise a UserError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} is {value!r}; it must be a number")
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{name} is {value}; it must be finite and not below 0")
