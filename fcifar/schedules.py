"""Schedules: pure functions from a step count to a value, with optax's names.

A schedule maps a 0-d tensor to a 0-d tensor, and computes in the dtype of the count if that is
floating, otherwise in the default dtype. Since the count is a tensor, a schedule never causes a
recompilation. Parameters may be 0-d tensors too; invalid ones raise a ValueError. At both ends a
schedule equals the given values exactly.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Schedule = Callable[[Tensor], Tensor]


def constant_schedule(value: float | Tensor) -> Schedule:
    """``value`` at every step.

    >>> fcifar.schedules.constant_schedule(0.5)(torch.tensor(3))
    tensor(0.5000)
    """
    return lambda count: value * torch.ones_like(_real(count))


def linear_schedule(
    init_value: float | Tensor, end_value: float | Tensor, transition_steps: int
) -> Schedule:
    """Linear from ``init_value`` at step 0 to ``end_value`` at ``transition_steps``, then constant.

    >>> schedule = fcifar.schedules.linear_schedule(1.0, 0.0, 4)
    >>> schedule(torch.tensor([0, 1, 4, 9]))
    tensor([1.0000, 0.7500, 0.0000, 0.0000])
    """
    _check_steps(transition_steps)

    def schedule(count: Tensor) -> Tensor:
        part = _progress(count, transition_steps)
        # The sum would lose the digits of an end value much smaller than the initial value.
        return torch.where(part < 1, init_value + (end_value - init_value) * part, end_value)

    return schedule


def cosine_decay_schedule(
    init_value: float | Tensor, decay_steps: int, alpha: float = 0.0
) -> Schedule:
    """Half a cosine from ``init_value`` at step 0 to ``alpha * init_value``, then constant.

    Loshchilov and Hutter, "SGDR", https://arxiv.org/abs/1608.03983.

    >>> schedule = fcifar.schedules.cosine_decay_schedule(1.0, 3, alpha=0.2)
    >>> schedule(torch.tensor([0, 1, 2, 3, 9]))
    tensor([1.0000, 0.8000, 0.4000, 0.2000, 0.2000])
    """
    _check_steps(decay_steps)

    def schedule(count: Tensor) -> Tensor:
        part = _progress(count, decay_steps)
        cosine = 0.5 * (1 + torch.cos(math.pi * part))
        value = init_value * ((1 - alpha) * cosine + alpha)
        value = torch.where(part > 0, value, init_value)
        return torch.where(part < 1, value, init_value * alpha)

    return schedule


def piecewise_linear_schedule(points: Sequence[tuple[float, float | Tensor]]) -> Schedule:
    """Linear interpolation between ``points`` (step, value), constant outside them.

    optax's ``piecewise_interpolate_schedule("linear", ...)`` takes each value as a factor of the
    one before. A steep rise and a slow decay over 100 steps::

        piecewise_linear_schedule([(0, 0.2), (23, 1.0), (100, 0.07)])

    Args:
        points: two or more, with increasing steps, which need not be integers.

    >>> schedule = fcifar.schedules.piecewise_linear_schedule([(0, 0.0), (2, 1.0), (6, 0.5)])
    >>> schedule(torch.tensor([0, 1, 2, 4, 9]))
    tensor([0.0000, 0.5000, 1.0000, 0.7500, 0.5000])
    """
    steps = [step for step, _ in points]
    if len(points) < 2 or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(
            f"piecewise_linear_schedule needs two or more points with steps that increase, "
            f"not {list(points)}"
        )

    def schedule(count: Tensor) -> Tensor:
        at = _real(count)
        value = _like(at, points[0][1])
        for (start, _), (end, end_value) in itertools.pairwise(points):
            # lerp is exact at both ends and for equal values. The comparison is needed because with
            # fractional steps the part may not reach 1.
            part = ((at - start) / (end - start)).clamp(0.0, 1.0)
            last = _like(at, end_value)
            value = torch.where(at < end, torch.lerp(value, last, part), last)
        return value

    return schedule


def piecewise_constant_schedule(
    init_value: float | Tensor, boundaries_and_scales: Mapping[int, float]
) -> Schedule:
    """``init_value``, multiplied by each scale from the step of its boundary on.

    With one scale, torch's ``MultiStepLR`` has ``milestones`` for boundaries and ``gamma`` for the
    scale.

    >>> schedule = fcifar.schedules.piecewise_constant_schedule(1.0, {2: 0.5, 4: 0.1})
    >>> schedule(torch.arange(6))
    tensor([1.0000, 1.0000, 0.5000, 0.5000, 0.0500, 0.0500])
    """

    def schedule(count: Tensor) -> Tensor:
        at = _real(count)
        value, scale = _like(at, init_value), 1.0
        for boundary in sorted(boundaries_and_scales):
            scale *= boundaries_and_scales[boundary]
            value = torch.where(at < boundary, value, _like(at, init_value * scale))
        return value

    return schedule


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Apply schedules one after another; each counts from its own boundary, and boundaries
    increase.

    >>> up, down = (fcifar.schedules.linear_schedule(a, 1 - a, 2) for a in (0.0, 1.0))
    >>> fcifar.schedules.join_schedules([up, down], [3])(torch.arange(6))
    tensor([0.0000, 0.5000, 1.0000, 1.0000, 0.5000, 0.0000])
    """
    if len(boundaries) != len(schedules) - 1 or list(boundaries) != sorted(set(boundaries)):
        raise ValueError(
            f"join_schedules needs one increasing boundary between schedules, "
            f"not {len(schedules)} schedules and boundaries {list(boundaries)}"
        )

    def schedule(count: Tensor) -> Tensor:
        value = schedules[0](count)
        for start, following in zip(boundaries, schedules[1:], strict=True):
            value = torch.where(count < start, value, following(count - start))
        return value

    return schedule


def warmup(
    schedule: Schedule, init_value: float | Tensor, peak_value: float | Tensor, steps: int
) -> Schedule:
    """Linear from ``init_value`` to ``peak_value`` over ``steps``, followed by ``schedule``.

    >>> cosine = fcifar.schedules.cosine_decay_schedule(1.0, 2)
    >>> fcifar.schedules.warmup(cosine, 0.0, 1.0, steps=2)(torch.arange(5))
    tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.0000])
    """
    return join_schedules([linear_schedule(init_value, peak_value, steps), schedule], [steps])


def _progress(count: Tensor, steps: int) -> Tensor:
    return (_real(count) / steps).clamp(0.0, 1.0)


def _real(count: Tensor) -> Tensor:
    return count if count.is_floating_point() else count.to(torch.get_default_dtype())


def _like(at: Tensor, value: float | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(at.dtype).expand_as(at)
    return torch.full_like(at, value)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"a schedule needs at least 1 step, not {steps}")
