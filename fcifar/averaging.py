"""Averages of parameters and buffers over training.

An ``Average`` goes beside an optimizer: after each step it takes the new variables, and it may put
others in their place::

    average = ema(0.999)
    state = average.init(variables)
    variables, state = average.update(variables, state)  # after each step
    evaluate(average.value(variables, state))

The variables may be any tree. Leaves that are floating are averaged; others, such as counters, are
copied. Counts are tensors and nothing branches on a value, so that ``vmap`` and ``compile`` go
around an average.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.schedules import Schedule
from fcifar.tree import Tree


class Average(NamedTuple):
    """How to keep an average of the variables of a training run.

    ``init(variables) -> state`` before the first step, ``update(variables, state) ->
    (variables, state)`` after each, and ``value(variables, state) -> variables`` for evaluation.
    """

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any], tuple[Tree, Any]]
    value: Callable[[Tree, Any], Tree]


class AverageState(NamedTuple):
    """An average, and how many steps have been made."""

    count: Tensor  # int64 []
    average: Tree  # like the variables, in memory of its own


def none() -> Average:
    """No average: the variables as they are, with the state ``()``."""
    return Average(
        init=lambda variables: (),
        update=lambda variables, state: (variables, state),
        value=lambda variables, state: variables,
    )


def ema(decay: float | Tensor | Schedule, every: int = 1) -> Average:
    """Exponential moving average: ``average * decay + variables * (1 - decay)``.

    It starts as the variables before the first step, hence needs no correction of a bias. Training
    goes on as without it. With ``decay=lambda count: count / (count + 1)`` it is the plain mean of
    the variables before the first step and after each (Polyak and Juditsky, "Acceleration of
    stochastic approximation by averaging", 1992).

    Args:
        decay: in [0, 1], or a schedule of the number of steps made, which is 1 after the first.
        every: average after each ``every``-th step (>= 1).

    Raises:
        ValueError: ``decay`` or ``every`` is outside its range.

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
    """Slow variables that the fast ones return to.

    After each ``every``-th step the slow variables become ``slow * decay + fast * (1 - decay)``,
    and training goes on from there. The average is the slow variables.

    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back",
    https://arxiv.org/abs/1907.08610, where ``decay`` is 1 - alpha; over the buffers too, and with
    a decay that grows, as in Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
    https://arxiv.org/abs/2404.00498.

    Args:
        decay: in [0, 1], or a schedule of the number of steps made, which is 1 after the first.
        every: 1 or more.

    Raises:
        ValueError: ``decay`` or ``every`` is outside its range.

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
    # Copies: a step that writes into the memory of its state must not meet the same tensor twice.
    return AverageState(count, tree.map(torch.clone, variables))


def _value(variables: Tree, state: AverageState) -> Tree:
    return state.average


def _average(
    variables: Tree, state: AverageState, decay: float | Tensor | Schedule, every: int
) -> tuple[Tensor, AverageState]:
    """Whether the average is due after this step, and the new state."""
    count = state.count + 1
    due = count % every == 0

    def mean(new: Tensor, old: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new.clone()
        # lerp rather than a sum of products: the average of equal values is then that value.
        return torch.where(due, torch.lerp(old, new, weights[new.dtype]), old)

    dtypes = {leaf.dtype for leaf in tree.leaves(variables) if leaf.is_floating_point()}
    weights = {dtype: _weight(decay, count, dtype) for dtype in dtypes}
    return due, AverageState(count, tree.map(mean, variables, state.average))


def _weight(decay: float | Tensor | Schedule, count: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 - decay``, computed in float32 at the least: 0.999 has no neighbour in bfloat16."""
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
