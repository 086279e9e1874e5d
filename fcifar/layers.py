"""Keyed initialisers, and the few layers that need a key or explicit statistics."""

import math

import torch
from torch import Tensor, nn

from fcifar import random
from fcifar.errors import shown
from fcifar.parallel import ALONE, Axis, pmean
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

    >>> fcifar.layers.dropout(fcifar.random.key(0), torch.ones(6), 0.5)
    tensor([0., 0., 2., 2., 0., 2.])
    """
    if key is None or rate == 0:
        return x
    kept = random.bernoulli(key, 1 - rate, x.shape)
    return torch.where(kept, x / (1 - rate), 0.0)


def channels_last(images: Tensor) -> Tensor:
    """The same images [B, C, H, W], laid out in memory as [B, H, W, C].

    Convolutions keep that layout, and in bfloat16 are a quarter faster in it. Unlike
    ``memory_format=torch.channels_last`` this goes through ``vmap``.
    """
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class BatchNorm(nn.Module):
    """Batch normalisation whose statistics come out as values, so that it is a pure function.

    The parameters and buffers have the names of ``nn.BatchNorm2d``; ``weight`` is there only with
    ``scale``, and otherwise 1. Statistics are computed and kept in float32 at the least, whatever
    the images' dtype.

    Args:
        momentum: the share of the new batch in the running statistics, as in PyTorch.
        eps: added to the variance.
        axis: the ranks that divide a batch, whose statistics are then those of the whole batch.

    Ioffe and Szegedy, "Batch normalization", https://arxiv.org/abs/1502.03167.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        scale: bool = True,
        axis: Axis = ALONE,
    ) -> None:
        super().__init__()
        self.momentum, self.eps, self.axis = momentum, eps, axis
        self.weight = nn.Parameter(torch.empty(channels)) if scale else None
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor, train: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """[B, C, H, W] normalised, and the running statistics after it.

        In training by the mean and variance of the batch, which enter the running statistics (the
        variance without bias, as in PyTorch); otherwise by the running statistics.

        Raises:
            ValueError: in training, the batch of all ranks has one value for each channel, which
                has no variance.
        """
        running = {"running_mean": self.running_mean, "running_var": self.running_var}
        mean, var = running.values()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if train:
            count = self.axis.size * (x.numel() // x.shape[1])
            if count == 1:
                raise ValueError(
                    "Expected more than 1 value per channel when training, got input size "
                    f"{list(x.shape)}; batch norm needs a batch of two images or more"
                )
            var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
            if self.axis.size > 1:
                mean, var = _over_ranks(self.axis, self.running_mean, mean, var)
            new = {"running_mean": mean, "running_var": var * (count / (count - 1))}
            running = {
                k: torch.lerp(old, new[k].detach(), self.momentum) for k, old in running.items()
            }
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = self.bias - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype), running


def _over_ranks(axis: Axis, near: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over all ranks, from those of each; all [C].

    Means are counted from ``near``, the same on each rank and close to them, so that nothing is
    lost where they are large and the variance is not.
    """
    shift = mean - near
    first, second = pmean((shift, var + shift.square()), axis)
    return near + first, (second - first.square()).clamp(min=0)


def named(prefix: str, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The buffers of a part under their names in the whole: ``prefix.name``."""
    return {f"{prefix}.{name}": value for name, value in buffers.items()}


def check_rate(name: str, rate: float) -> None:
    """Raise a ValueError unless ``rate`` is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"{name} is {shown(rate)}; it must lie in [0, 1)")


def check_number(name: str, value: float, most: float) -> None:
    """Raise a ValueError unless ``value`` is a number in [0, most]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {shown(value)}; it must lie in [0, {most:g}]")


def check_switch(name: str, value: bool) -> None:
    """Raise a ValueError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}; it must be true or false")


def check_width(name: str, width: int) -> None:
    """Raise a ValueError unless ``width`` is a number of units that a layer can have."""
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= LARGEST_WIDTH:
        raise ValueError(
            f"{name} is {shown(width)}; it must be a whole number from 1 up to {LARGEST_WIDTH:,}"
        )


def default_init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    """PyTorch's default initialisation of every parameter of ``skeleton``, drawn from ``key``.

    Args:
        skeleton: a module of ``nn.Linear``, ``nn.Conv2d`` and ``BatchNorm`` layers; only shapes are
            read, so it may live on the meta device.
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
        if isinstance(layer, BatchNorm):
            fill = {"weight": 1.0, "bias": 0.0}
            for kind, tensor in layer.named_parameters():
                params[f"{name}.{kind}"] = torch.full(
                    tensor.shape, fill[kind], device=key.device, dtype=torch.float32
                )
            continue
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise TypeError(f"no default initialisation for {type(layer).__name__} at {name!r}")
        fan_in = math.prod(layer.weight.shape[1:])
        tensors = dict(layer.named_parameters(recurse=False))
        for (kind, tensor), k in zip(
            tensors.items(), random.split(layer_key, len(tensors)), strict=True
        ):
            params[f"{name}.{kind}"] = fan_in_uniform(k, tuple(tensor.shape), fan_in)
    return params


def default_buffers(skeleton: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The running statistics of every ``BatchNorm`` of ``skeleton`` before any batch: 0 and 1."""
    start = {"running_mean": 0.0, "running_var": 1.0}
    return {
        f"{name}.{kind}": torch.full(
            layer.get_buffer(kind).shape, start[kind], device=device, dtype=torch.float32
        )
        for name, layer in skeleton.named_modules()
        if isinstance(layer, BatchNorm)
        for kind in start
    }
