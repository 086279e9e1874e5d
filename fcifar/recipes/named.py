"""What a recipe names: its network, and its augmentations."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from fcifar import augment
from fcifar.errors import UserError, shown
from fcifar.models import MODELS, Model
from fcifar.recipes.checks import check_choice
from fcifar.step import Augment


def _color_jitter(strength: float) -> Augment:
    return augment.color_jitter(strength, strength, strength)


AUGMENTS: dict[str, Callable[..., Augment]] = {
    "random_flip": augment.random_flip,
    "random_rotation": augment.random_rotation,
    "random_crop": augment.random_crop,
    "cutout": augment.cutout,
    "color_jitter": _color_jitter,
}
"""By name, each callable with its strength alone: a probability, degrees or pixels."""


def named_model(name: str, options: Mapping[str, Any], num_classes: int) -> Model:
    """An entry of ``MODELS`` with its options.

    Raises:
        UserError: there is no such model, or the options do not fit it.
    """
    check_choice("model", name, MODELS)
    if not isinstance(options, Mapping):
        raise UserError(
            f"model_options is {shown(options)}; it must be options by name, such as dropout"
        )
    does_not_fit = f"model_options {shown(dict(options))} do not fit the model {name}"
    known = [o for o in inspect.signature(MODELS[name]).parameters if o != "num_classes"]
    if not set(options) <= set(known):
        raise UserError(f"{does_not_fit}, which takes {' and '.join(known)}")
    try:
        return MODELS[name](num_classes=num_classes, **options)
    except ValueError as error:
        raise UserError(f"{does_not_fit}: {error}") from error


def named_augment(text: str) -> Augment:
    """The augmentation that NAME or NAME:STRENGTH asks for.

    Raises:
        UserError: there is no such augmentation, or none of that strength.
    """
    name, colon, strength = text.partition(":")
    check_choice("augment", name, AUGMENTS)
    make = AUGMENTS[name]
    (parameter,) = list(inspect.signature(make).parameters.values())[:1]
    if not colon and parameter.default is inspect.Parameter.empty:
        raise UserError(f"augment {text!r} needs a strength; give {name}:{parameter.name.upper()}")
    try:
        return make(_number(strength)) if colon else make()
    except ValueError as error:
        raise UserError(f"augment {shown(text)} cannot be used: {error}") from error


def _number(text: str) -> int | float:
    try:
        return int(text) if text.removeprefix("-").isdecimal() else float(text)
    except ValueError:
        raise ValueError("what follows the colon must be a number") from None
