"""Schedule-free optimizers: an average of the iterates in place of a decaying learning rate.

Defazio, Yang, Mehta, Mishchenko, Khaled and Cutkosky, "The road less scheduled",
https://arxiv.org/abs/2405.15682.

Three sequences: the base optimizer moves ``z`` by gradients that are taken at ``y``, ``x`` is a
weighted mean of z, and ``y = (1 - b1) z + b1 x``. The trained parameters are y. ``x`` is to be
evaluated and saved, and is what ``Optimizer.value`` returns::

    optimizer = schedule_free_sgd(1.0)
    updates, state = optimizer.update(grads, state, params)   # params and grads are at y
    params = apply_updates(params, updates)
    evaluate(optimizer.value(params, state))                  # x

Running statistics of batch norm are gathered at y. The authors recommend to recompute them at x
before an evaluation, by forward passes over training images (``averaging.estimate_statistics``),
which ``fcifar train`` does not do: near the end of a run x and y are close, in its first epochs the
difference costs accuracy.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.optim.base import Optimizer, chain, zero_count
from fcifar.optim.transforms import add_decayed_weights, one_minus_power, scale_by_learning_rate
from fcifar.schedules import Schedule
from fcifar.tree import Tree


class ScheduleFreeState(NamedTuple):
    """The state of ``schedule_free``."""

    count: Tensor  # int64 []
    max_rate: Tensor  # [], the largest learning rate so far
    weight_sum: Tensor  # [], of the weights in the mean, for a learning rate of ``max_rate``
    z: Tree  # like params; shares no memory with them
    base: Any  # state of the base optimizer


class SecondMomentState(NamedTuple):
    """The second moment of Adam."""

    count: Tensor  # int64 []
    nu: Tree  # like params


def schedule_free(
    base: Optimizer,
    learning_rate: float | Tensor | Schedule,
    b1: float | Tensor = 0.9,
    *,
    weight_lr_power: float = 2.0,
    weight_count_power: float = 0.0,
) -> Optimizer:
    """Make ``base`` schedule-free.

    Step k, from 0, has the weight ``(k + 1)**weight_count_power * max_rate**weight_lr_power`` in
    the mean, where ``max_rate`` is the largest learning rate so far. For a constant rate and the
    default powers this is the plain mean of z. It must be the last part of a ``chain``.

    Args:
        base: an optimizer without momentum, such as ``sgd(learning_rate)``. Its updates are added
            to z; the parameters that it is given are y.
        learning_rate: that of ``base``: a number, a 0-d tensor or a schedule, such as a warm-up.
        b1: in (0, 1), in the place of momentum; a number or a 0-d tensor, whose value is not
            checked. Longer runs profit from larger values, such as 0.95 or 0.98.
        weight_lr_power: 0 or more. The default gives the steps of a warm-up less weight.
        weight_count_power: 0 or more; the authors' ``r``. Positive values give later steps more
            weight.

    Raises:
        ValueError: a number is out of range.

    >>> rate = 0.5
    >>> optimizer = fcifar.optim.schedule_free(fcifar.optim.sgd(rate), rate)
    >>> y, state = torch.tensor(1.0), optimizer.init(torch.tensor(1.0))
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(y, state, y)  # of y**2 / 2
    ...     y = fcifar.optim.apply_updates(y, updates)
    >>> state.z, optimizer.value(y, state)  # 1 -> 0.5 -> 0.25, and their mean without the start
    (tensor(0.2500), tensor(0.3750))
    """
    if not isinstance(b1, Tensor) and not 0 < b1 < 1:
        raise ValueError(f"schedule_free needs b1 above 0 and below 1, such as 0.9, not {b1}")
    for name, power in (("lr", weight_lr_power), ("count", weight_count_power)):
        if not power >= 0:
            raise ValueError(f"schedule_free needs weight_{name}_power of 0 or more, not {power}")

    def init(params: Tree) -> ScheduleFreeState:
        zero = torch.zeros((), dtype=_widest(params), device=tree.device(params))
        z = tree.map(torch.clone, params)
        return ScheduleFreeState(zero_count(params), zero, zero.clone(), z, base.init(params))

    def update(grads: Tree, state: ScheduleFreeState, params: Tree) -> tuple[Tree, Any]:
        rate, dtype = learning_rate, state.max_rate.dtype
        if not isinstance(rate, float | int | Tensor):
            rate = rate(state.count.to(dtype))
        lowest = rate.to(dtype) if isinstance(rate, Tensor) else rate
        max_rate = torch.clamp(state.max_rate, min=lowest)
        # The sum is kept relative to the weight of this rate, since rates squared may overflow.
        divisor = torch.where(max_rate > 0, max_rate, 1.0)
        counted = max_rate > 0 if weight_lr_power else torch.ones_like(max_rate, dtype=torch.bool)
        number = (state.count + 1).to(dtype)
        weight = torch.where(counted, number**weight_count_power, 0.0)
        weight_sum = state.weight_sum * (state.max_rate / divisor) ** weight_lr_power + weight
        share = weight / torch.where(weight_sum > 0, weight_sum, 1.0)

        moves, base_state = base.update(grads, state.base, params)

        def step(y: Tensor, z: Tensor, move: Tensor) -> Tensor:
            c = share.to(y.dtype)
            return c * (z - y) + (1 - b1 * (1 - c)) * move

        updates = tree.map(step, params, state.z, moves)
        z = tree.map(lambda z, move: z + move.to(z.dtype), state.z, moves)
        count = state.count + 1
        return updates, ScheduleFreeState(count, max_rate, weight_sum, z, base_state)

    def value(params: Tree, state: ScheduleFreeState) -> Tree:
        return tree.map(lambda y, z: y + (1 / b1 - 1) * (y - z), params, state.z)

    return Optimizer(init, update, value)


def schedule_free_sgd(
    learning_rate: float | Tensor | Schedule,
    b1: float | Tensor = 0.9,
    *,
    weight_decay: float | Tensor = 0.0,
    weight_lr_power: float = 2.0,
    weight_count_power: float = 0.0,
) -> Optimizer:
    """Schedule-free SGD; the parameters of the authors' ``schedulefree.SGDScheduleFree``.

    The authors suggest learning rates 10 to 50 times those of SGD with momentum.

    Args:
        learning_rate: as in ``schedule_free``. Their ``warmup_steps=n`` is
            ``schedules.warmup(constant_schedule(lr), lr / n, lr, n - 1)``.
        b1: their ``momentum``.
        weight_decay: an L2 penalty at y, 0 or more.
        weight_lr_power, weight_count_power: as in ``schedule_free``.
    """
    base = chain(add_decayed_weights(weight_decay), scale_by_learning_rate(learning_rate))
    return schedule_free(
        *(base, learning_rate, b1),
        weight_lr_power=weight_lr_power,
        weight_count_power=weight_count_power,
    )


def schedule_free_adamw(
    learning_rate: float | Tensor | Schedule,
    b1: float | Tensor = 0.9,
    b2: float | Tensor = 0.999,
    eps: float = 1e-8,
    *,
    weight_decay: float | Tensor = 0.0,
    weight_lr_power: float = 2.0,
    weight_count_power: float = 0.0,
) -> Optimizer:
    """Schedule-free AdamW; the parameters of the authors' ``schedulefree.AdamWScheduleFree``.

    Args:
        learning_rate: as in ``schedule_free_sgd``; the authors suggest 1 to 10 times that of
            AdamW.
        b1: the first of their ``betas``.
        b2, eps: decay rate of the second moment in [0, 1), and what is added to its root.
        weight_decay: decoupled, at y; 0 or more, and multiplied by the learning rate.
        weight_lr_power, weight_count_power: as in ``schedule_free``.
    """
    base = chain(
        _scale_by_second_moment(b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    return schedule_free(
        *(base, learning_rate, b1),
        weight_lr_power=weight_lr_power,
        weight_count_power=weight_count_power,
    )


def _scale_by_second_moment(b2: float | Tensor, eps: float) -> Optimizer:
    """Adam's direction without its first moment."""

    def init(params: Tree) -> SecondMomentState:
        return SecondMomentState(zero_count(params), tree.zeros_like(params))

    def update(grads: Tree, state: SecondMomentState, params: Tree) -> tuple[Tree, Any]:
        count = state.count + 1
        nu = tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, grads, state.nu)

        def direction(g: Tensor, v: Tensor) -> Tensor:
            corrected = v / one_minus_power(b2, count, v.dtype)
            # The clamp keeps the derivative of the root finite, as in ``scale_by_adam``.
            return g / (torch.sqrt(corrected.clamp(min=torch.finfo(v.dtype).tiny)) + eps)

        return tree.map(direction, grads, nu), SecondMomentState(count, nu)

    return Optimizer(init, update)


def _widest(params: Tree) -> torch.dtype:
    """Return the widest dtype of the leaves, at least float32."""
    dtype = torch.float32
    for leaf in tree.leaves(params):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return dtype
