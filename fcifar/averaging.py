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

``mean`` and ``greedy_soup`` average models that were trained separately. Averaged parameters have
other activations than each of their parts: ``estimate_statistics`` fits batch norm to them.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fcifar import tree
from fcifar.schedules import Schedule
from fcifar.tree import Tree

T = TypeVar("T")
STATISTICS = ("running_mean", "running_var")  # the last parts of their names in the buffers
_SMALLEST_MOMENTUM = 1e-5


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


def swa(start: int, every: int = 1) -> Average:
    """Stochastic weight averaging: the mean of the variables after some steps, all with one weight.

    The steps are ``start``, ``start + every``, ``start + 2 * every`` and so on. Before the first of
    them, ``value`` returns the latest variables. Training is not affected.

    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging weights leads to wider optima and
    better generalization", https://arxiv.org/abs/1803.05407. Its batch norm has statistics of the
    averaged parameters, see ``estimate_statistics``.

    Args:
        start: the first step whose variables count (>= 1; step 1 is the first of training).
        every: steps between two of them (>= 1).

    Raises:
        ValueError: ``start`` or ``every`` is out of range.

    >>> average = fcifar.averaging.swa(2)
    >>> state = average.init({"w": torch.tensor(0.0)})
    >>> for w in (5.0, 1.0, 3.0):
    ...     variables, state = average.update({"w": torch.tensor(w)}, state)
    >>> average.value(variables, state)
    {'w': tensor(2.)}
    """
    _check(0.0, every)
    if isinstance(start, bool) or not isinstance(start, int) or start < 1:
        raise ValueError(f"an average needs start=1 or a later step, not {start}")

    def update(variables: Tree, state: AverageState) -> tuple[Tree, AverageState]:
        count = state.count + 1
        since = count - start
        due = torch.logical_or(since < 0, since % every == 0)
        number = (torch.div(since, every, rounding_mode="floor") + 1).clamp(min=1)
        # As a quotient in each dtype, because the decay 1 - 1 / number would round.
        averaged = _mix(
            variables, state.average, due, lambda dtype: (1 / number.to(_wide(dtype))).to(dtype)
        )
        return variables, AverageState(count, averaged)

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
    averaged = _mix(variables, state.average, due, lambda dtype: _weight(decay, count, dtype))
    return due, AverageState(count, averaged)


def _mix(
    variables: Tree, average: Tree, due: Tensor, weight: Callable[[torch.dtype], Tensor]
) -> Tree:
    """Move the average towards the variables by a weight, 0-d in each dtype, where it is due."""

    def mean(new: Tensor, old: Tensor) -> Tensor:
        if not new.is_floating_point():
            return new.clone()
        # lerp, because the average of equal values is then exactly that value.
        return torch.where(due, torch.lerp(old, new, weights[new.dtype]), old)

    dtypes = {leaf.dtype for leaf in tree.leaves(variables) if leaf.is_floating_point()}
    weights = {dtype: weight(dtype) for dtype in dtypes}
    return tree.map(mean, variables, average)


def _weight(decay: float | Tensor | Schedule, count: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 - decay``, computed in at least float32, since bfloat16 cannot represent 0.999."""
    wide = _wide(dtype)
    value = decay if isinstance(decay, float | int | Tensor) else decay(count.to(wide))
    if not isinstance(value, Tensor):
        return torch.full((), 1 - value, dtype=dtype, device=count.device)
    return (1 - value.to(wide)).to(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check(decay: float | Tensor | Schedule, every: int) -> None:
    if isinstance(decay, float | int) and not 0 <= decay <= 1:
        raise ValueError(f"the decay of an average must lie in [0, 1], not {decay}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"an average needs every=1 or more whole steps, not {every}")


# Models that were trained separately --------------------------------------------------------------


def mean(trees: Sequence[Tree]) -> Tree:
    """Return the mean of trees of the same structure, summed in at least float32.

    Leaves that are not floating-point, such as counters, are those of the first tree.

    Raises:
        ValueError: ``trees`` is empty.

    >>> fcifar.averaging.mean([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}])
    {'w': tensor(2.)}
    """
    if not trees:
        raise ValueError("a mean needs at least one tree")

    def of_leaves(first: Tensor, *others: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first
        total = first.to(_wide(first.dtype))
        for other in others:
            total = total + other
        return (total / (1 + len(others))).to(first.dtype)

    return tree.map(of_leaves, *trees)


class Attempt(NamedTuple):
    """One step of ``greedy_soup``."""

    index: int  # of the tree that was tried
    score: float  # of the soup with it
    kept: bool


def greedy_soup(
    trees: Sequence[Tree], score: Callable[[Tree], float]
) -> tuple[Tree, tuple[Attempt, ...]]:
    """Add trees to a mean one by one, and keep each that does not lower its score.

    Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
    without increasing inference time", https://arxiv.org/abs/2203.05482, recipe 1.

    Args:
        trees: of the same structure, in the order in which they are tried: the best first.
        score: of a mean, higher is better, such as the accuracy on validation images.

    Returns:
        The mean of those that are kept, and what was tried.

    Raises:
        ValueError: ``trees`` is empty.

    >>> trees = [{"w": torch.tensor(w)} for w in (1.0, 8.0, 2.0)]
    >>> soup, attempts = fcifar.averaging.greedy_soup(trees, lambda t: -abs(t["w"].item() - 1.6))
    >>> soup, [attempt.kept for attempt in attempts]
    ({'w': tensor(1.5000)}, [True, False, True])
    """
    soup, kept = mean(trees[:1]), list(trees[:1])
    attempts = [Attempt(0, score(soup), True)]
    best = attempts[0].score
    for index, candidate in enumerate(trees[1:], 1):
        tried = mean([*kept, candidate])
        found = score(tried)
        attempts.append(Attempt(index, found, found >= best))
        if found >= best:
            soup, best = tried, found
            kept.append(candidate)
    return soup, tuple(attempts)


def estimate_statistics(
    update: Callable[[dict[str, Tensor], T], dict[str, Tensor]],
    buffers: dict[str, Tensor],
    batches: Iterable[T],
) -> dict[str, Tensor]:
    """Return the buffers with running statistics that are means over batches, all with one weight.

    As ``torch.optim.swa_utils.update_bn`` with a momentum of None, for functions: the momentum of
    each layer is found by a second pass over the first batch, because new statistics are
    ``(1 - momentum) * old + momentum * those of the batch``. Statistics with a momentum of 0 and
    other buffers stay unchanged; without statistics, no batch is used.

    Args:
        update: the buffers after a forward pass in training, given those before and a batch. Frozen
            ones are the same tensors as before, and are what their layers normalise with.
        buffers: by name; statistics are those whose names end in ``STATISTICS``.
        batches: one or more, such as images with a key.
    """
    statistics = [name for name in buffers if name.rpartition(".")[2] in STATISTICS]
    batches = list(batches) if statistics else []
    if not batches:
        return buffers
    after = update(buffers, batches[0])
    names = [name for name in statistics if after[name] is not buffers[name]]
    zeros = {name: torch.zeros_like(buffers[name]) for name in names}
    parts = [update({**buffers, **zeros}, batch) for batch in batches]
    # As large as what is added to them, so that their difference keeps its digits.
    olds = {name: 1 + parts[0][name].abs() for name in names}
    moved = update({**buffers, **olds}, batches[0])

    def mean(name: str) -> Tensor:
        momentum = 1 - ((moved[name] - parts[0][name]) / olds[name]).mean()
        total = functools.reduce(torch.add, [part[name] for part in parts])
        estimated = total / len(parts) / momentum
        return torch.where(momentum > _SMALLEST_MOMENTUM, estimated, buffers[name])

    found = {name: mean(name) for name in names}
    return {**buffers, **found}
