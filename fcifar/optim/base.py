"""The optimizer interface: a pair of pure functions, and chains of such pairs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.tree import Tree


class Optimizer(NamedTuple):
    """``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``."""

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any, Tree], tuple[Tree, Any]]


def apply_updates(params: Tree, updates: Tree) -> Tree:
    """Return ``params + updates``, leaf by leaf, in the dtype of the parameters.

    >>> fcifar.optim.apply_updates({"w": torch.tensor(1.0)}, {"w": torch.tensor(-0.25)})
    {'w': tensor(0.7500)}
    """
    return tree.map(lambda p, u: p + u.to(p.dtype), params, updates)


def chain(*optimizers: Optimizer) -> Optimizer:
    """Compose optimizers: the updates of each are the gradients of the next.

    >>> optimizer = fcifar.optim.chain(fcifar.optim.clip(1.0), fcifar.optim.scale(-0.5))
    >>> w = torch.tensor([0.0, 0.0])
    >>> optimizer.update(torch.tensor([3.0, -0.5]), optimizer.init(w), w)[0]
    tensor([-0.5000,  0.2500])
    """

    def init(params: Tree) -> tuple[Any, ...]:
        return tuple(optimizer.init(params) for optimizer in optimizers)

    def update(grads: Tree, states: tuple[Any, ...], params: Tree) -> tuple[Tree, tuple[Any, ...]]:
        new_states = []
        for optimizer, state in zip(optimizers, states, strict=True):
            grads, state = optimizer.update(grads, state, params)
            new_states.append(state)
        return grads, tuple(new_states)

    return Optimizer(init, update)


class EmptyState(NamedTuple):
    """The state of a stateless transformation."""


class CountState(NamedTuple):
    """The number of updates so far."""

    count: Tensor  # int64 []


def stateless(function: Callable[[Tree, Tree], Tree]) -> Optimizer:
    """The transformation ``updates = function(grads, params)``.

    >>> sign = fcifar.optim.stateless(lambda grads, params: fcifar.tree.map(torch.sign, grads))
    >>> sign.update(torch.tensor([3.0, -0.5]), sign.init(torch.zeros(2)), torch.zeros(2))
    (tensor([ 1., -1.]), EmptyState())
    """
    return Optimizer(
        init=lambda params: EmptyState(),
        update=lambda grads, state, params: (function(grads, params), state),
    )


def zero_count(params: Tree) -> Tensor:
    """Return the initial count, int64 [], on the device of the parameters."""
    return torch.zeros((), dtype=torch.int64, device=tree.device(params))
