"""Gradient transformations, the parts of chained optimizers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.optim.base import CountState, Optimizer, stateless, zero_count
from fcifar.schedules import Schedule
from fcifar.tree import Tree


class TraceState(NamedTuple):
    """The momentum."""

    trace: Tree  # like params


class AdamState(NamedTuple):
    """The moments of Adam."""

    count: Tensor  # int64 []
    mu: Tree  # first moment, like params
    nu: Tree  # second moment, like params


def scale(factor: float | Tensor) -> Optimizer:
    """Multiply by ``factor``."""
    return stateless(lambda grads, params: tree.map(lambda g: g * factor, grads))


def scale_by_schedule(schedule: Schedule) -> Optimizer:
    """Multiply by ``schedule(count)``, where the count of updates starts at 0.

    The schedule is evaluated in the dtype of each gradient, in at least float32.

    >>> half = fcifar.optim.scale_by_schedule(fcifar.schedules.linear_schedule(1.0, 0.0, 2))
    >>> g, state = torch.tensor(8.0), half.init(torch.tensor(0.0))
    >>> first, state = half.update(g, state, g)
    >>> first, half.update(g, state, g)[0]
    (tensor(8.), tensor(4.))
    """

    def update(grads: Tree, state: CountState, params: Tree) -> tuple[Tree, CountState]:
        values = {
            dtype: schedule(state.count.to(torch.promote_types(dtype, torch.float32)))
            for dtype in {g.dtype for g in tree.leaves(grads)}
        }
        updates = tree.map(lambda g: (g * values[g.dtype]).to(g.dtype), grads)
        return updates, CountState(state.count + 1)

    return Optimizer(lambda params: CountState(zero_count(params)), update)


def scale_by_learning_rate(learning_rate: float | Tensor | Schedule) -> Optimizer:
    """Multiply by minus the learning rate."""
    if isinstance(learning_rate, float | int | Tensor):
        return scale(-learning_rate)
    return scale_by_schedule(lambda count: -learning_rate(count))


def trace(decay: float | Tensor, *, nesterov: bool = False) -> Optimizer:
    """Momentum: the exponentially discounted sum of past gradients.

    With ``nesterov``, in the form of Sutskever et al. ("On the importance of initialisation and
    momentum in deep learning", 2013).

    Args:
        decay: in [0, 1), a number or a 0-d tensor.

    >>> momentum = fcifar.optim.trace(0.5)
    >>> g, state = torch.tensor(1.0), momentum.init(torch.tensor(0.0))
    >>> first, state = momentum.update(g, state, g)
    >>> first, momentum.update(g, state, g)[0]
    (tensor(1.), tensor(1.5000))
    """

    def accumulate(g: Tensor, t: Tensor) -> Tensor:
        # The trace first: a sum has the memory layout of its first term. The gradient may have
        # another, and a state whose layout changes would cause a recompilation.
        return decay * t + g

    def update(grads: Tree, state: TraceState, params: Tree) -> tuple[Tree, TraceState]:
        new_trace = tree.map(accumulate, grads, state.trace)
        updates = tree.map(accumulate, grads, new_trace) if nesterov else new_trace
        return updates, TraceState(new_trace)

    return Optimizer(lambda params: TraceState(tree.zeros_like(params)), update)


def scale_by_adam(
    b1: float | Tensor = 0.9, b2: float | Tensor = 0.999, eps: float = 1e-8
) -> Optimizer:
    """Adam's direction with bias correction. Kingma and Ba, https://arxiv.org/abs/1412.6980.

    Args:
        b1, b2: decay rates of the moments in [0, 1), or 0-d tensors, whose values are not checked.
        eps: above 0, added to the root of the second moment.
    """

    def update(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        count = state.count + 1
        mu = tree.map(lambda g, m: b1 * m + (1 - b1) * g, grads, state.mu)
        nu = tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, grads, state.nu)

        def direction(m: Tensor, v: Tensor) -> Tensor:
            c1, c2 = one_minus_power(b1, count, m.dtype), one_minus_power(b2, count, v.dtype)
            # The clamp changes no value. Without it, the gradient of the root is infinite where the
            # second moment is 0, as for dead units, and a gradient through training is NaN.
            root = torch.sqrt((v / c2).clamp(min=torch.finfo(v.dtype).tiny))
            return (m / c1) / (root + eps)

        return tree.map(direction, mu, nu), AdamState(count, mu, nu)

    def init(params: Tree) -> AdamState:
        return AdamState(zero_count(params), tree.zeros_like(params), tree.zeros_like(params))

    return Optimizer(init, update)


def add_decayed_weights(weight_decay: float | Tensor) -> Optimizer:
    """Add ``weight_decay * params``.

    At the start of a chain this is the L2 penalty that ``torch.optim.SGD`` and ``Adam`` call
    ``weight_decay``. Between the preconditioner and the learning rate, as in ``adamw``, it is
    decoupled (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101).

    >>> decay = fcifar.optim.add_decayed_weights(0.5)
    >>> decay.update(torch.tensor(1.0), decay.init(torch.tensor(4.0)), torch.tensor(4.0))[0]
    tensor(3.)
    """
    return stateless(
        lambda grads, params: tree.map(lambda g, p: g + weight_decay * p, grads, params)
    )


def clip_by_global_norm(max_norm: float | Tensor) -> Optimizer:
    """Scale the gradients down to a global norm of at most ``max_norm`` (> 0).

    Pascanu, Mikolov and Bengio, https://arxiv.org/abs/1211.5063.

    >>> clip = fcifar.optim.clip_by_global_norm(1.0)
    >>> w = {"a": torch.zeros(1), "b": torch.zeros(1)}
    >>> clip.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, clip.init(w), w)[0]
    {'a': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    if not isinstance(max_norm, Tensor) and not max_norm > 0:
        raise ValueError(f"clip_by_global_norm needs a norm above 0, not {max_norm}")

    def clip(grads: Tree, params: Tree) -> Tree:
        norm = tree.norm(grads)
        # Not min(1, max_norm / norm), which divides by 0 if the norm is 0.
        factor = max_norm / torch.clamp(norm, min=max_norm)
        return tree.map(lambda g: g * factor.to(g.dtype), grads)

    return stateless(clip)


def clip(max_delta: float) -> Optimizer:
    """Clamp each element to [-max_delta, max_delta], with ``max_delta`` > 0."""
    if not max_delta > 0:
        raise ValueError(f"clip needs a bound above 0, not {max_delta}")
    return stateless(
        lambda grads, params: tree.map(lambda g: g.clamp(-max_delta, max_delta), grads)
    )


def one_minus_power(base: float | Tensor, count: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 - base**count``; expm1 keeps the digits that are lost when base is near 1."""
    if isinstance(base, Tensor):
        log: float | Tensor = torch.log(base).to(dtype)
    else:
        log = math.log(base) if base else -math.inf
    return -torch.expm1(count.to(dtype) * log)
