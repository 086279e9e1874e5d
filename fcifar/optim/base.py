"""The optimizer interface: pure functions, and chains of optimizers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.tree import Tree


def same_params(params: Tree, state: Any) -> Tree:
    """Return ``params``: the ``value`` of an optimizer that trains what is evaluated."""
    return params


class Optimizer(NamedTuple):
    """``init(params) -> state`` and ``update(grads, state, params) -> (updates, state)``.

    ``value(params, state) -> params`` gives the parameters to evaluate and to save. They are those
    that are trained, except for ``schedule_free``.
    """

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any, Tree], tuple[Tree, Any]]
    value: Callable[[Tree, Any], Tree] = same_params


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

    def value(params: Tree, states: tuple[Any, ...]) -> Tree:
        for optimizer, state in zip(optimizers, states, strict=True):
            params = optimizer.value(params, state)
        return params

    return Optimizer(init, update, value)


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
