"""Keyed initialisers, layers with explicit keys or statistics, constants, and checks of model
options.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fcifar import random
from fcifar.errors import shown
from fcifar.parallel import ALONE, Axis, pmean
from fcifar.random import Key

LARGEST_WIDTH = 10**9  # the product of two widths still fits in 64 bits


def fan_in_uniform(key: Key, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw uniform float32 in [-1/sqrt(fan_in), 1/sqrt(fan_in)).

    This is PyTorch's default initialisation of the weights and biases of ``nn.Linear`` and
    ``nn.Conv2d``: ``kaiming_uniform_(a=sqrt(5))`` has the same bound.
    """
    bound = 1 / math.sqrt(fan_in)
    return random.uniform(key, shape, -bound, bound)


def dropout(key: Key | None, x: Tensor, rate: float) -> Tensor:
    """Set a fraction ``rate`` of the elements to zero and divide the others by ``1 - rate``.

    Args:
        key: None, as in evaluation, returns ``x`` unchanged.
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


def constant(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor [n] of numbers, on the device of ``like`` and, by default, in its dtype.

    On a GPU the numbers are filled in one by one, because the copy of ``torch.tensor`` waits for
    the GPU in each call. In a compiled graph they are constants, and nothing is copied.
    """
    dtype = dtype or like.dtype
    if like.is_cpu or torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=like.device)
    return torch.stack([torch.full((), v, dtype=dtype, device=like.device) for v in values])


def channels_last(images: Tensor) -> Tensor:
    """Return the images [B, C, H, W] with the memory layout of [B, H, W, C].

    Convolutions keep this layout and are a quarter faster in it in bfloat16. Unlike
    ``memory_format=torch.channels_last``, this works under ``vmap``.
    """
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class BatchNorm(nn.Module):
    """Batch normalisation that returns its statistics instead of updating them in place.

    Parameters and buffers have the names of ``nn.BatchNorm2d``. Statistics are computed and kept in
    at least float32, whatever the dtype of the images. If ``frozen`` is set, training normalises
    with the running statistics too, and does not change them.

    Args:
        momentum: weight of the new batch in the running statistics, as in PyTorch.
        eps: added to the variance.
        scale: whether there is a learned ``weight``; otherwise the scale is 1.
        axis: ranks that share a batch; statistics are taken over the whole batch.

    Ioffe and Szegedy, "Batch normalisation", https://arxiv.org/abs/1502.03167.
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
        self.frozen = False
        self.weight = nn.Parameter(torch.empty(channels)) if scale else None
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor, train: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalise [B, C, H, W], and return the result and the new running statistics.

        Training uses the mean and variance of the batch, and adds them to the running statistics
        (the variance unbiased, as in PyTorch). Evaluation uses the running statistics.

        Raises:
            ValueError: in training, the batch over all ranks has one value per channel, hence no
                variance.
        """
        running = {"running_mean": self.running_mean, "running_var": self.running_var}
        mean, var = running.values()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if train and not self.frozen:
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
    """Return mean and variance [C] over all ranks, given those of each rank.

    Means are taken relative to ``near``, which is equal on all ranks and close to the means: no
    digits are lost where the mean is large compared with the variance.
    """
    shift = mean - near
    first, second = pmean((shift, var + shift.square()), axis)
    return near + first, (second - first.square()).clamp(min=0)


def named(prefix: str, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prefix the names of buffers: ``prefix.name``."""
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


def check_width(name: str, width: int, most: int = LARGEST_WIDTH) -> None:
    """Raise a ValueError unless ``width`` is an integer in [1, most]."""
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= most:
        raise ValueError(
            f"{name} is {shown(width)}; it must be a whole number from 1 up to {most:,}"
        )


def default_init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    """Draw PyTorch's default initialisation of every parameter of ``skeleton``.

    Args:
        skeleton: module of ``nn.Linear``, ``nn.Conv2d`` and ``BatchNorm`` layers. Only shapes are
            read, so it may be on the meta device.
        key: determines the draws and the device.

    Returns:
        float32 tensors by the names of ``skeleton.state_dict()``.

    Raises:
        TypeError: a layer of another type has parameters.
    """
    layers = [
        (name, layer)
        for name, layer in skeleton.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    params = {}
    for (name, layer), layer_key in zip(layers, random.split(key, len(layers)), strict=True):
        if isinstance(layer, BatchNorm):
            for kind, tensor in layer.named_parameters():
                fill = torch.ones if kind == "weight" else torch.zeros
                params[f"{name}.{kind}"] = fill(
                    tensor.shape, device=key.device, dtype=torch.float32
                )
            continue
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise TypeError(f"no default initialisation for {type(layer).__name__} at {name!r}")
        fan_in = math.prod(layer.weight.shape[1:])
        tensors = dict(layer.named_parameters(recurse=False))
        keys = random.split(layer_key, len(tensors))
        for (kind, tensor), k in zip(tensors.items(), keys, strict=True):
            params[f"{name}.{kind}"] = fan_in_uniform(k, tuple(tensor.shape), fan_in)
    return params


def kaiming_init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    """Like ``default_init``, with convolution weights normal of variance 2 / fan-out.

    The fan-out is the number of output channels times the area of the kernel. torchvision's and
    Facebook's residual networks start so (https://github.com/facebookarchive/fb.resnet.torch).

    He et al., "Delving deep into rectifiers", https://arxiv.org/abs/1502.01852.
    """
    default_key, convs_key = random.split(key)
    params = default_init(skeleton, default_key)
    convs = [name for name, value in params.items() if value.ndim == 4]
    for name, k in zip(convs, random.split(convs_key, len(convs)), strict=True):
        outputs, _, height, breadth = shape = tuple(params[name].shape)
        std = math.sqrt(2 / (outputs * height * breadth))
        params[name] = std * random.normal(k, shape)
    return params


def init_weights(
    skeleton: nn.Module, key: Key, draw: Callable[[Key, str, tuple[int, ...]], Tensor]
) -> dict[str, Tensor]:
    """Initialise every parameter of ``skeleton``: weights by ``draw``, vectors by constants.

    Args:
        skeleton: any module. Only shapes are read, so it may be on the meta device.
        key: determines the draws and the device.
        draw: ``(key, name, shape) -> float32 tensor``, for parameters of two dimensions or more.

    Returns:
        float32 tensors by the names of ``skeleton.state_dict()``. Vectors are 0, except the weights
        of normalisation layers, which are 1.
    """
    named = dict(skeleton.named_parameters())
    params = {}
    for (name, leaf), k in zip(named.items(), random.split(key, len(named)), strict=True):
        shape = tuple(leaf.shape)
        if leaf.ndim > 1:
            params[name] = draw(k, name, shape)
        else:
            fill = torch.ones if name.endswith("weight") else torch.zeros
            params[name] = fill(shape, device=key.device, dtype=torch.float32)
    return params


def default_buffers(skeleton: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Return the initial running statistics of every ``BatchNorm`` of ``skeleton``: mean 0,
    variance 1.
    """
    start = {"running_mean": 0.0, "running_var": 1.0}
    return {
        f"{name}.{kind}": torch.full(
            layer.get_buffer(kind).shape, start[kind], device=device, dtype=torch.float32
        )
        for name, layer in skeleton.named_modules()
        if isinstance(layer, BatchNorm)
        for kind in start
    }
