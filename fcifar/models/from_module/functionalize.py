"""The forward pass of any module as a function of a key and of its statistics.

A ``Forward`` is a function mode of torch: while it is entered, functions that would draw from a
global generator draw from a key, and batch norm returns its new running statistics instead of
writing them. It is made for one call. Unlike a patch it does not affect other threads, and
``grad``, ``vmap``, ``jvp`` and ``torch.compile`` see only the functions that it calls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from fcifar import layers, random
from fcifar.models.from_module import operations
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
        self, key: Key | None, norms: dict[str, layers.BatchNorm], tensors: dict[str, Tensor]
    ) -> None:
        super().__init__()
        self.key, self.norms, self.tensors = key, norms, tensors
        self.drawn = 0
        self.order = [*norms]  # those not called yet first
        self.changed: dict[str, Tensor] = {}  # running statistics after the call, by name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        given = dict(kwargs or {})
        if given.pop("generator", None) is not None:
            raise ValueError("it draws from a separate generator; leave generator out")
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


def _drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.rand`` or ``randn``, of a size or like a tensor."""

    def drawn(
        forward: Forward, *args: Any, dtype: torch.dtype | None = None, **rest: Any
    ) -> Tensor:
        given = rest.get("size", rest.get("input", args[0] if len(args) == 1 else args))
        default = given.dtype if isinstance(given, Tensor) else torch.get_default_dtype()
        size = given.shape if isinstance(given, Tensor) else given
        shape = (size,) if isinstance(size, int) else tuple(size)
        return _in_dtype(draw, forward.next_key(), shape, default if dtype is None else dtype)

    return drawn


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


def _replacements() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Functions by the ones that they replace."""
    of_torch = {
        **{k: _with_drop(operations.layers_function(k)) for k in operations.CELLS},
        **{f"{k}_cell": _without_forward(operations.cell_function(k)) for k in operations.CELLS},
        "clone": _with_layout(torch.clone),
        "dropout": _dropout(channels=False),
        "bernoulli": _bernoulli,
        **dict.fromkeys(("rand", "rand_like"), _drawn(random.uniform)),
        **dict.fromkeys(("randn", "randn_like"), _drawn(random.normal)),
        "_weight_norm": _weight_norm,
        "empty": _empty(torch.empty),
        "empty_like": _empty(torch.empty_like),
    }
    of_functional = {
        "adaptive_avg_pool2d": _adaptive_avg_pool2d,
        "batch_norm": _batch_norm,
        "dropout": _dropout(channels=False),
        **{f"dropout{n}d": _dropout(channels=True) for n in (1, 2, 3)},
        "scaled_dot_product_attention": _with_drop(operations.scaled_dot_product),
        "multi_head_attention_forward": _with_drop(operations.multi_head),
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
        new = _without_forward(operations.deform_conv2d)
        REPLACEMENTS[torch.ops.torchvision.deform_conv2d] = new
