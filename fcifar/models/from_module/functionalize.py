"""The forward pass of any module as a function of a key and of its statistics.

A ``Forward`` is a function mode of torch: while it is entered, functions that would draw from a
global generator draw from a key, and batch norm returns its new running statistics instead of
writing them. It is made for one call. Unlike a patch it does not affect other threads, and
``grad``, ``vmap``, ``jvp`` and ``torch.compile`` see only the functions that it calls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from fcifar import layers, random
from fcifar.models.from_module import attention, recurrent
from fcifar.models.from_module.init import complex_of
from fcifar.random import Key

STATISTICS = ("running_mean", "running_var")


class Forward(TorchFunctionMode):
    """One call of a module.

    Args:
        key: draw i comes from ``fold_in(key, i)``; None outside training.
        norms: the batch norms of the module by name, as ``layers.BatchNorm`` on the meta device.
        tensors: the module's tensors by name.
    """

    def __init__(
        self,
        key: Key | None,
        norms: Mapping[str, layers.BatchNorm],
        tensors: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.key, self.norms, self.tensors = key, norms, tensors
        self.drawn = 0
        self.order = [*norms]  # those not called yet first
        self.changed: dict[str, Tensor] = {}  # running statistics after the call, by name

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        replacement = REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        given = dict(kwargs or {})
        if given.pop("generator", None) is not None:
            raise ValueError("it draws from a generator of its own; leave generator out")
        return replacement(self, *args, **given)

    def next_key(self) -> Key:
        """The key of the next draw."""
        if self.key is None:
            raise ValueError(
                "it draws at random outside training; give functions such as F.dropout "
                "training=self.training"
            )
        self.drawn += 1
        return random.fold_in(self.key, self.drawn - 1)

    def drop(self, x: Tensor, rate: float, shape: Sequence[int] | None = None) -> Tensor:
        """``layers.dropout``, of single values or of a ``shape`` that is broadcast to them."""
        if rate == 0:
            return x
        if rate == 1:
            return x * 0
        if shape is None:
            return layers.dropout(self.next_key(), x, rate)
        kept = random.bernoulli(self.next_key(), 1 - rate, shape)
        return torch.where(kept, x / (1 - rate), 0.0)


# Batch norm --------------------------------------------------------------------------------------


def _batch_norm(
    forward: Forward,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is None or running_var is None:
        return F.batch_norm(input, None, None, weight, bias, training, momentum, eps)
    channels = input.shape[1]
    values = {"bias": input.new_zeros(channels) if bias is None else bias}
    if weight is not None:
        values["weight"] = weight
    for name in forward.order:
        names = {kind: f"{name}.{kind}" for kind in STATISTICS}
        if forward.tensors[names["running_mean"]] is not running_mean:
            continue
        forward.order.remove(name)  # a layer that shares its statistics is the next to be called
        forward.order.append(name)
        before = {"running_mean": running_mean, "running_var": running_var}
        # The second call of a layer continues from the statistics of the first.
        statistics = {kind: forward.changed.get(names[kind], old) for kind, old in before.items()}
        x = input if input.ndim == 4 else input.reshape(*input.shape[:2], -1, 1)
        y, after = functional_call(forward.norms[name], values | statistics, (x, training))
        if training:
            forward.changed |= {names[kind]: after[kind] for kind in STATISTICS}
        return y.reshape(input.shape)
    if training:
        raise ValueError("it updates running statistics that belong to no batch norm layer")
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = values["bias"] - running_mean * scale
    shape = (channels, *(1 for _ in input.shape[2:]))
    return (input * scale.reshape(shape) + shift.reshape(shape)).to(input.dtype)


# Draws -------------------------------------------------------------------------------------------


def _dropout(*, channels: bool) -> Callable[..., Tensor]:
    """Dropout of single values, or of whole channels of [B, C, ...]."""

    def dropout(
        forward: Forward,
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or p == 0:  # also in place: the backward pass may need the input
            return input
        shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if channels else None
        dropped = forward.drop(input, p, shape)
        return input.copy_(dropped) if inplace else dropped

    return dropout


def _bernoulli(forward: Forward, input: Tensor, p: float | None = None) -> Tensor:
    probability = input if p is None else p
    return random.bernoulli(forward.next_key(), probability, input.shape).to(input.dtype)


def _bernoulli_(forward: Forward, input: Tensor, p: float | Tensor = 0.5) -> Tensor:
    return input.copy_(random.bernoulli(forward.next_key(), p, input.shape))


def _uniform_(
    forward: Forward, input: Tensor, a: float = 0.0, b: float = 1.0, **named: float
) -> Tensor:
    a, b = named.get("from", a), named.get("to", b)
    return input.copy_(random.uniform(forward.next_key(), input.shape) * (b - a) + a)


def _normal_(forward: Forward, input: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    drawn = _in_dtype(random.normal, forward.next_key(), input.shape, input.dtype)
    return input.copy_(drawn * std + (complex(mean, mean) if drawn.is_complex() else mean))


def _in_dtype(
    draw: Callable[[Key, Sequence[int]], Tensor], key: Key, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """A draw; of complex numbers see ``complex_of``."""
    if not dtype.is_complex:
        return draw(key, shape).to(dtype)
    return complex_of(draw(key, (*shape, 2)), dtype, normal=draw is random.normal)


def _of_size(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.rand`` or ``randn``."""

    def of_size(
        forward: Forward, *size: Any, dtype: torch.dtype | None = None, **rest: Any
    ) -> Tensor:
        size = rest.get("size", size[0] if size and not isinstance(size[0], int) else size)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return _in_dtype(draw, forward.next_key(), tuple(size), dtype)

    return of_size


def _of_like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.rand_like`` or ``randn_like``."""

    def of_like(
        forward: Forward, input: Tensor, *, dtype: torch.dtype | None = None, **rest: Any
    ) -> Tensor:
        dtype = input.dtype if dtype is None else dtype
        return _in_dtype(draw, forward.next_key(), input.shape, dtype)

    return of_like


def _empty(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Memory to draw into; under ``vmap`` over keys it has to depend on the key."""

    def empty(forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        made = function(*args, **kwargs)
        if forward.key is None:
            return made
        return torch.zeros_like(made) + (forward.key[0] * 0).to(made.dtype)

    return empty


# Operations without a rule for vmap ---------------------------------------------------------------


def _adaptive_avg_pool2d(forward: Forward, input: Tensor, output_size: Any) -> Tensor:
    if output_size in (1, (1, 1), [1, 1]):
        return input.mean((-2, -1), keepdim=True)
    return F.adaptive_avg_pool2d(input, output_size)


def _weight_norm(forward: Forward, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [i for i in range(v.ndim) if i != dim]  # all of them where dim is -1
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


def _with_drop(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes dropout as its first argument."""
    return lambda forward, *args, **kwargs: function(forward.drop, *args, **kwargs)


def _without_forward(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda forward, *args, **kwargs: function(*args, **kwargs)


_LAYOUTS = (torch.channels_last, torch.channels_last_3d)


def _in_layout(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    if memory_format == torch.channels_last and x.ndim == 4:
        return layers.channels_last(x)
    if memory_format == torch.channels_last_3d and x.ndim == 5:
        return x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    return x.contiguous()


def _contiguous(
    forward: Forward, input: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    return _in_layout(input, memory_format)


def _is_contiguous(
    forward: Forward, input: Tensor, memory_format: torch.memory_format = torch.contiguous_format
) -> bool:
    return memory_format not in _LAYOUTS and input.is_contiguous()


def _with_layout(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function with an argument ``memory_format``."""

    def make(forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("memory_format") not in _LAYOUTS:
            return function(*args, **kwargs)
        memory_format = kwargs.pop("memory_format")
        return _in_layout(function(*args, **kwargs), memory_format)

    return make


def _deform_conv2d(
    forward: Forward,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *settings: int,
) -> Tensor:
    """``torchvision.ops.deform_conv2d``: a convolution at learned offsets, bilinearly sampled.

    Zhu et al., "Deformable ConvNets v2", https://arxiv.org/abs/1811.11168.
    """
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, *rest = settings
    offset_groups, use_mask = rest
    n, channels, height, width = input.shape
    kernel_h, kernel_w = weight.shape[-2:]
    out_h, out_w = offset.shape[-2:]
    taps, wide = kernel_h * kernel_w, torch.promote_types(input.dtype, torch.float32)

    def count(size: int, step: int) -> Tensor:
        return torch.arange(size, device=input.device, dtype=wide) * step

    # Sampling positions of each tap: [n, offset_groups, taps, out_h, out_w].
    moved = offset.to(wide).reshape(n, offset_groups, taps, 2, out_h, out_w)
    taps_y = count(kernel_h, dilation_h).repeat_interleave(kernel_w)[:, None, None] - pad_h
    taps_x = count(kernel_w, dilation_w).repeat(kernel_h)[:, None, None] - pad_w
    y = moved[:, :, :, 0] + taps_y + count(out_h, stride_h)[:, None]
    x = moved[:, :, :, 1] + taps_x + count(out_w, stride_w)
    pixels = input.reshape(n, offset_groups, channels // offset_groups, height * width)
    columns: Any = 0
    for corner_y in (y.floor(), y.floor() + 1):
        for corner_x in (x.floor(), x.floor() + 1):
            share = (1 - (y - corner_y).abs()) * (1 - (x - corner_x).abs())
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            share = torch.where(inside, share, 0.0)
            at = corner_y.clamp(0, height - 1) * width + corner_x.clamp(0, width - 1)
            at = at.to(torch.int64).flatten(2)[:, :, None].expand(-1, -1, pixels.shape[2], -1)
            seen = pixels.gather(-1, at).unflatten(-1, (taps, out_h, out_w))
            columns = columns + seen * share[:, :, None]
    if use_mask:
        columns = columns * mask.reshape(n, offset_groups, 1, taps, out_h, out_w)
    columns = columns.to(input.dtype).reshape(n, groups, -1, out_h * out_w)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = (kernels @ columns).reshape(n, weight.shape[0], out_h, out_w)
    return result + bias[:, None, None]


def _replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Functions by the ones that they replace."""
    of_torch = {
        **{k: _with_drop(recurrent.layers_function(k)) for k in recurrent.CELLS},
        **{f"{k}_cell": _without_forward(recurrent.cell_function(k)) for k in recurrent.CELLS},
        "clone": _with_layout(torch.clone),
        "dropout": _dropout(channels=False),
        "bernoulli": _bernoulli,
        "rand": _of_size(random.uniform),
        "randn": _of_size(random.normal),
        "rand_like": _of_like(random.uniform),
        "randn_like": _of_like(random.normal),
        "_weight_norm": _weight_norm,
        "empty": _empty(torch.empty),
        "empty_like": _empty(torch.empty_like),
    }
    of_functional = {
        "adaptive_avg_pool2d": _adaptive_avg_pool2d,
        "batch_norm": _batch_norm,
        "dropout": _dropout(channels=False),
        **{f"dropout{n}d": _dropout(channels=True) for n in (1, 2, 3)},
        "scaled_dot_product_attention": _with_drop(attention.scaled_dot_product),
        "multi_head_attention_forward": _with_drop(attention.multi_head),
    }
    of_tensor = {
        "bernoulli": _bernoulli,
        "bernoulli_": _bernoulli_,
        "uniform_": _uniform_,
        "normal_": _normal_,
        "new_empty": _empty(Tensor.new_empty),
        "contiguous": _contiguous,
        "is_contiguous": _is_contiguous,
        "clone": _with_layout(Tensor.clone),
        "to": _with_layout(Tensor.to),
    }
    owners = ((torch, of_torch), (nn.functional, of_functional), (Tensor, of_tensor))
    return {getattr(owner, name): new for owner, table in owners for name, new in table.items()}


REPLACEMENTS = _replacements()


def replace_torchvision() -> None:
    """Add replacements for operations of torchvision, if it has been imported."""
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        REPLACEMENTS[torch.ops.torchvision.deform_conv2d] = _deform_conv2d
