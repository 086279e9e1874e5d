"""Keyed initialisers, and the few layers that need a key."""

import math

import torch
from torch import Tensor, nn

from fcifar import random
from fcifar.errors import shown
from fcifar.random import Key

LARGEST_WIDTH = 10**9  # a product of two still fits into 64 bits


def fan_in_uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Uniform float32 in [-1/sqrt(fan_in), 1/sqrt(fan_in)).

    This is the distribution of PyTorch's default initialisation of ``nn.Linear`` and ``nn.Conv2d``,
    weights and biases alike: ``kaiming_uniform_(a=sqrt(5))`` works out to the same bound.
    """
    bound = 1 / math.sqrt(fan_in)
    return random.uniform(key, shape, -bound, bound)


def dropout(key: Key | None, x: Tensor, rate: float) -> Tensor:
    """Zeros in place of a fraction ``rate`` of the elements, the others divided by ``1 - rate``.

    Args:
        key: None, as outside training, leaves ``x`` as it is.
        x: floating, any shape.
        rate: in [0, 1).

    Srivastava et al., "Dropout", 2014.
    """
    if key is None or rate == 0:
        return x
    kept = random.bernoulli(key, 1 - rate, x.shape)
    return torch.where(kept, x / (1 - rate), 0.0)


def check_rate(name: str, rate: float) -> None:
    """Raise a ValueError unless ``rate`` is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"{name} is {shown(rate)}; it must lie in [0, 1)")


def check_width(name: str, width: int) -> None:
    """Raise a ValueError unless ``width`` is a number of units that a layer can have."""
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= LARGEST_WIDTH:
        raise ValueError(
            f"{name} is {shown(width)}; it must be a whole number from 1 up to {LARGEST_WIDTH:,}"
        )


def default_init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    """PyTorch's default initialisation of every parameter of ``skeleton``, drawn from ``key``.

    Args:
        skeleton: a module of ``nn.Linear`` and ``nn.Conv2d`` layers; only shapes are read, so it
            may live on the meta device.
        key: the draws are made on its device.

    Returns:
        float32 tensors under the names that ``skeleton.state_dict()`` uses.

    Raises:
        TypeError: a layer with parameters of another kind, whose default is not known here.
    """
    layers = [
        (name, layer)
        for name, layer in skeleton.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    params = {}
    for (name, layer), layer_key in zip(layers, random.split(key, len(layers)), strict=True):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise TypeError(f"no default initialisation for {type(layer).__name__} at {name!r}")
        fan_in = math.prod(layer.weight.shape[1:])
        tensors = dict(layer.named_parameters(recurse=False))
        for (kind, tensor), k in zip(
            tensors.items(), random.split(layer_key, len(tensors)), strict=True
        ):
            params[f"{name}.{kind}"] = fan_in_uniform(k, tuple(tensor.shape), fan_in)
    return params
