"""Whether named tensors are the values of a network, and of which."""

import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fcifar import random, recipes
from fcifar.errors import UserError, shown
from fcifar.models import MODELS, Model, Variables
from fcifar.recipes import Recipe


def fit(
    tensors: Mapping[str, Tensor], recipe: Recipe, num_classes: int, source: str
) -> tuple[Variables, tuple[str, ...]]:
    """Named tensors as float32 variables of the recipe's network, and notes for a person.

    Args:
        source: what messages call the tensors.

    Raises:
        UserError: names or shapes are others. The message says which is the first that does not
            fit, and which networks of ``MODELS`` would.
    """
    like = _like(recipes.make_model(recipe, num_classes))
    expected = {**like.params, **like.buffers}
    if problem := first_misfit(tensors, expected):
        raise UserError(
            f"{source} does not fit {recipe.model} with {num_classes} classes: {problem}; "
            + _advice(tensors, recipe.model, num_classes)
        )
    # Copied, for a file may hold one tensor under two names, or a part of a larger one.
    values = {
        name: tensors[name].to(torch.float32, copy=True).contiguous(memory_format=_ROWS)
        for name in expected
    }
    variables = Variables(
        {name: values[name] for name in like.params}, {name: values[name] for name in like.buffers}
    )
    others = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in expected})
    others = [name for name in others if name != "float32"]
    notes = (f"took {' and '.join(others)} values of {source} as float32",) if others else ()
    return variables, notes


_ROWS = torch.contiguous_format


def first_misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first of ``expected`` that is missing or another, or what is too much; "" if none is."""
    for name, leaf in expected.items():
        if name not in tensors:
            return f"there is no {shown(name)} in it"
        found = tensors[name]
        if found.shape != leaf.shape:
            return f"{name} is {list(found.shape)}, not {list(leaf.shape)}"
        if not found.is_floating_point():
            return f"{name} holds {str(found.dtype).removeprefix('torch.')}, not floating numbers"
    return next(
        (f"the network has no {shown(name)}" for name in tensors if name not in expected), ""
    )


def fitting_models(tensors: Mapping[str, Tensor], num_classes: int) -> Iterator[str]:
    """The names of the networks that the tensors are values of, with their default options."""
    for name, make in MODELS.items():
        like = _like(make(num_classes=num_classes))
        if not first_misfit(tensors, {**like.params, **like.buffers}):
            yield name


def _advice(tensors: Mapping[str, Tensor], model: str, num_classes: int) -> str:
    if fitting := list(fitting_models(tensors, num_classes)):
        return f"it fits --model {' and '.join(fitting)}"
    options = [o for o in inspect.signature(MODELS[model]).parameters if o != "num_classes"]
    return (
        f"no other network fits either; give the options that it was saved with, by --set "
        f"({', '.join(options)}), or a data set with as many classes"
    )


def _like(model: Model) -> Variables:
    """Values with the names and shapes of the network's."""
    return model.init(random.key(0))
