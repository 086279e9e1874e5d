"""Averages of parameters and buffers over training.

An ``Average`` is used next to an optimizer. After each step, ``update`` takes the new variables and
returns the variables to continue with::

    average = ema(0.999)
    state = average.init(variables)
    variables, state = average.update(variables, state)  # after each step
    evaluate(average.value(variables, state))

The variables may be any tree. Floating-point leaves are averaged; other leaves, such as counters,
are copied. Counts are tensors and no branch depends on a value, so that averages work under
``vmap`` and ``torch.compile``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.schedules import Schedule
from fcifar.tree import Tree


class Average(NamedTuple):
    """A running average of variables, as three pure functions.

    ``init(variables) -> state`` before the first step, ``update(variables, state) -> (variables,
    state)`` after each step, and ``value(variables, state) -> variables`` for evaluation.
    """

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any], tuple[Tree, Any]]
    value: Callable[[Tree, Any], Tree]


class AverageState(NamedTuple):
    """The average and the number of steps so far."""

    count: Tensor  # int64 []
    average: Tree  # like the variables; shares no memory with them


def none() -> Average:
    """No average: ``value`` returns the variables unchanged, and the state is ``()``."""
    return Average(
        init=lambda variables: (),
        update=lambda variables, state: (variables, state),
        value=lambda variables, state: variables,
    )


def ema(decay: float | Tensor | Schedule, every: int = 1) -> Average:
    """Exponential moving average: ``average * decay + variables * (1 - decay)``.

    It starts from the variables before the first step and needs no bias correction. Training is not
    affected. With ``decay=lambda count: count / (count + 1)`` it is the plain mean of the variables
    before the first step and after each step (Polyak and Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992).

    Args:
        decay: in [0, 1], or a schedule of the number of steps, which is 1 after the first step.
        every: update the average every ``every`` steps (>= 1).

    Raises:
        ValueError: ``decay`` or ``every`` is out of range.

    >>> average = fcifar.averaging.ema(0.5)
    >>> state = average.init({"w": torch.tensor(0.0)})
    >>> variables, state = average.update({"w": torch.tensor(1.0)}, state)
    >>> average.value(variables, state)
    {'w': tensor(0.5000)}
    """
    _check(decay, every)

    def update(variables: Tree, state: AverageState) -> tuple[Tree, AverageState]:
        _, state = _average(variables, state, decay, every)
        return variables, state

    return Average(_init, update, _value)


def lookahead(decay: float | Tensor | Schedule, every: int = 5) -> Average:
    """Lookahead: slow variables that the fast ones are reset to.

    Every ``every`` steps the slow variables become ``slow * decay + fast * (1 - decay)``, and
    training continues from them. The average is the slow variables. Arguments and errors are those
    of ``ema``.

    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back",
    https://arxiv.org/abs/1907.08610, where ``decay`` is 1 - alpha. Buffers are included and the
    decay may be a schedule, as in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
    https://arxiv.org/abs/2404.00498.

    >>> average = fcifar.averaging.lookahead(0.5, every=1)
    >>> state = average.init({"w": torch.tensor(0.0)})
    >>> average.update({"w": torch.tensor(1.0)}, state)[0]
    {'w': tensor(0.5000)}
    """
    _check(decay, every)

    def update(variables: Tree, state: AverageState) -> tuple[Tree, AverageState]:
        due, state = _average(variables, state, decay, every)
        fast = tree.map(lambda f, s: torch.where(due, s, f), variables, state.average)
        return fast, state

    return Average(_init, update, _value)


def _init(variables: Tree) -> AverageState:
    count = torch.zeros((), dtype=torch.int64, device=tree.device(variables))
    # Clone: a donating step must not find the same tensor twice in its state.
    return AverageState(count, tree.map(torch.clone, variables))


def _value(variables: Tree, state: AverageState) -> Tree:
    return state.average


def _average(
    variables: Tree, state: AverageState, decay: float | Tensor | Schedule, every: int
) -> tuple[Tensor, AverageState]:
    """Return whether the average is due after this step, and the new state."""
    count = state.count + 1
    due = count % every == 0

    def mean(new: Tensor, old: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new.clone()
        # lerp, because the average of equal values is then exactly that value.
        return torch.where(due, torch.lerp(old, new, weights[new.dtype]), old)

    dtypes = {leaf.dtype for leaf in tree.leaves(variables) if leaf.is_floating_point()}
    weights = {dtype: _weight(decay, count, dtype) for dtype in dtypes}
    return due, AverageState(count, tree.map(mean, variables, state.average))


def _weight(decay: float | Tensor | Schedule, count: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 - decay``, computed in at least float32, since bfloat16 cannot represent 0.999."""
    wide = torch.promote_types(dtype, torch.float32)
    value = decay if isinstance(decay, float | int | Tensor) else decay(count.to(wide))
    if not isinstance(value, Tensor):
        return torch.full((), 1 - value, dtype=dtype, device=count.device)
    return (1 - value.to(wide)).to(dtype)


def _check(decay: float | Tensor | Schedule, every: int) -> None:
    if isinstance(decay, float | int) and not 0 <= decay <= 1:
        raise ValueError(f"the decay of an average must lie in [0, 1], not {decay}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"an average needs every=1 or more whole steps, not {every}")
