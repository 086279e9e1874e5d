"""Optimizers by name, made of transformations."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fcifar import entries
from fcifar.optim.base import Optimizer, chain
from fcifar.optim.combine import multi_transform
from fcifar.optim.muon import muon
from fcifar.optim.schedule_free import schedule_free_adamw, schedule_free_sgd
from fcifar.optim.transforms import (
    add_decayed_weights,
    scale_by_adam,
    scale_by_learning_rate,
    trace,
)
from fcifar.schedules import Schedule


def sgd(
    learning_rate: float | Tensor | Schedule,
    momentum: float | Tensor | None = None,
    *,
    nesterov: bool = False,
) -> Optimizer:
    """Stochastic gradient descent; the updates of ``torch.optim.SGD`` without dampening.

    Args:
        learning_rate: a number, a 0-d tensor, or a schedule of the number of updates.
        momentum: in [0, 1). With None there is no momentum and no state of the size of the
            parameters.
        nesterov: Nesterov momentum, as in ``trace``; requires ``momentum``.

    >>> optimizer = fcifar.optim.sgd(0.5, momentum=0.9)
    >>> w, state = torch.tensor(1.0), optimizer.init(torch.tensor(1.0))
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(2 * w, state, w)  # of w**2
    ...     w = fcifar.optim.apply_updates(w, updates)
    >>> w
    tensor(-0.9000)
    """
    if momentum is None:
        if nesterov:
            raise ValueError("sgd needs momentum for nesterov=True; give momentum, such as 0.9")
        return chain(scale_by_learning_rate(learning_rate))
    return chain(trace(momentum, nesterov=nesterov), scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: float | Tensor | Schedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float = 1e-8,
) -> Optimizer:
    """Adam; the updates of ``torch.optim.Adam``.

    Kingma and Ba, https://arxiv.org/abs/1412.6980.

    Args:
        learning_rate: a number, a 0-d tensor, or a schedule of the number of updates.
        b1, b2, eps: as in ``scale_by_adam``.

    >>> optimizer = fcifar.optim.adam(fcifar.schedules.cosine_decay_schedule(0.1, 1000))
    >>> w = torch.tensor([1.0, 1.0])
    >>> updates, state = optimizer.update(torch.tensor([5.0, -0.1]), optimizer.init(w), w)
    >>> updates
    tensor([-0.1000,  0.1000])
    """
    return chain(scale_by_adam(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: float | Tensor | Schedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float = 1e-8,
    weight_decay: float | Tensor = 1e-4,
) -> Optimizer:
    """Adam with decoupled weight decay; the updates of ``torch.optim.AdamW``.

    Loshchilov and Hutter, https://arxiv.org/abs/1711.05101. The default ``weight_decay`` is
    optax's; PyTorch's is 1e-2. It is 0 or more, and is multiplied by the learning rate. Other
    arguments are those of ``adam``.
    """
    return chain(
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )


def muon_and_sgd(
    learning_rate: float | Tensor | Schedule, *, dtype: torch.dtype = torch.float32
) -> Optimizer:
    """Muon for convolution kernels, SGD with Nesterov momentum 0.85 for all other parameters.

    Both use the same learning rate; use ``multi_transform`` for two rates.

    Args:
        learning_rate: a number, a 0-d tensor or a schedule.
        dtype: of Muon's products. In float32, a ``vmap`` over seeds agrees with single runs to the
            usual rounding; bfloat16, the original choice, is meant for large kernels on a GPU.
    """
    return multi_transform(
        {"muon": muon(learning_rate, dtype=dtype), "sgd": sgd(learning_rate, 0.85, nesterov=True)},
        lambda path, leaf: "muon" if leaf.ndim == 4 else "sgd",
    )


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "momentum": functools.partial(sgd, momentum=0.9),
    "nesterov": functools.partial(sgd, momentum=0.9, nesterov=True),
    "adam": adam,
    "adamw": adamw,
    "muon": muon_and_sgd,
    "schedule_free": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
}
"""Optimizers by name; each can be called with only a learning rate."""

REGISTERED: dict[str, Callable[..., Optimizer]] = {}
"""Optimizers added by ``register``."""


def register(name: str, factory: Callable[..., Optimizer]) -> None:
    """Add an optimizer to ``OPTIMIZERS``, for recipes and the command line (see
    ``$FCIFAR_IMPORT``).

    Args:
        name: the value of ``--optimizer``.
        factory: ``(learning_rate) -> Optimizer``; the learning rate is a number, a 0-d tensor or a
            schedule. In a recipe, its weight decay is an L2 penalty.

    Raises:
        ValueError: the name is taken or invalid, or ``factory`` is not callable.
    """
    entries.add_function(OPTIMIZERS, "an optimizer", name, factory)
    REGISTERED[name] = factory
