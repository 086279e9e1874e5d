"""Axes of tensors as units in some order, and which of these orders have to be the same.

An axis is written as parts, each of which numbers the units of a group. Where an operation combines
elements of two axes one by one, both need the same order: they are unified, as terms with variables
are. ``symmetries`` finds the axes of a model's parameters in this way.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FIXED = 0  # the group of elements whose order is given: of pixels, images, input channels, classes


class Part(NamedTuple):
    """``outer * size * inner`` elements of an axis; the middle of the three indices is the unit.

    A layer's outputs are ``Part(group, size)``. After ``flatten``, a channel is ``inner`` pixels.
    """

    group: int
    size: int
    outer: int = 1
    inner: int = 1


Axis = tuple[Part, ...]  # one after another
Axes = tuple[Axis, ...]  # of a tensor


def length(part: Part) -> int:
    """Return the number of elements of a part."""
    return part.outer * part.size * part.inner


def size(axis: Axis) -> int:
    """Return the number of elements of an axis."""
    return sum(map(length, axis))


def fixed(size: int) -> Axis:
    """Return an axis of elements that keep their order."""
    return (Part(FIXED, size),)


def is_fixed(axis: Axis) -> bool:
    """Return whether all elements keep their order."""
    return all(part.group == FIXED for part in axis)


def reorder(value: Tensor, dim: int, axis: Axis, permutations: Sequence[Tensor]) -> Tensor:
    """Put the elements of one dimension into another order: unit i becomes permutation[i].

    Args:
        permutations: int64 [size] of each group, that of group i at i - 1.
    """
    if is_fixed(axis):
        return value
    index, start = [], 0
    for part in axis:
        place = torch.arange(start, start + length(part), device=value.device)
        if part.group != FIXED:
            order = permutations[part.group - 1]
            place = place.view(part.outer, part.size, part.inner)[:, order].flatten()
        index.append(place)
        start += length(part)
    return value.index_select(dim, torch.cat(index))


def spread(axis: Axis, outer: int, inner: int) -> Axis:
    """Return the axis of the flattened index (i, element of ``axis``, j): i < outer, j < inner."""

    def widened(part: Part, outer: int) -> Part:
        wide = part._replace(outer=outer * part.outer, inner=part.inner * inner)
        return Part(FIXED, length(wide)) if part.group == FIXED else wide

    if len(axis) == 1:
        return (widened(axis[0], outer),)
    return tuple(widened(part, 1) for part in axis) * outer


def narrowed(axis: Axis, outer: int, inner: int) -> Axis | None:
    """Return the axis whose ``spread`` by outer and inner is ``axis``; None if there is none."""
    if len(axis) > 1 and outer > 1:
        return None
    if any(part.outer % outer for part in axis):
        return None
    if any((part.size if part.group == FIXED else part.inner) % inner for part in axis):
        return None
    return tuple(
        Part(FIXED, part.size // inner)
        if part.group == FIXED
        else part._replace(outer=part.outer // outer, inner=part.inner // inner)
        for part in axis
    )


class Unification:
    """What is known of each group, and of what keeps units in order.

    A group is unbound, which means that its units can have any order so far, or bound to the parts
    that it turned out to consist of. To unify two axes is to bind groups until both are the same.
    """

    def __init__(self) -> None:
        self.bound: dict[int, Axis] = {}
        self.count = FIXED
        self.fixed_by: set[str] = set()  # operations

    def fresh(self, size: int) -> Axis:
        """Return an axis of units that can have any order."""
        self.count += 1
        return (Part(self.count, size),)

    def resolve(self, axis: Axis) -> Axis:
        """Return the axis in terms of unbound groups, with neighbouring fixed parts as one."""
        parts: list[Part] = []
        for part in axis:
            known = self.bound.get(part.group)
            found = (part,) if known is None else self.resolve(known)
            for each in found if known is None else spread(found, part.outer, part.inner):
                if parts and parts[-1].group == each.group == FIXED:
                    parts[-1] = Part(FIXED, parts[-1].size + each.size)
                else:
                    parts.append(each)
        return tuple(parts)

    def unify(self, first: Axis, second: Axis) -> None:
        """Let two axes of one length number the same elements."""
        while difference := self._difference(self.resolve(first), self.resolve(second)):
            group, parts = difference
            self.bound[group] = parts

    def _difference(self, first: Axis, second: Axis) -> tuple[int, Axis] | None:
        """Return a group to bind, and to what, so that two axes differ less."""
        left, right = list(first), list(second)
        while left and right:
            one, other = left.pop(0), right.pop(0)
            longer, rest = (one, left) if length(one) > length(other) else (other, right)
            shared = min(length(one), length(other))
            if length(longer) > shared:
                if longer.group != FIXED:
                    return longer.group, self._divided(longer, shared)
                rest.insert(0, Part(FIXED, longer.size - shared))
                one, other = (
                    Part(FIXED, shared) if part is longer else part for part in (one, other)
                )
            if one == other:
                continue
            if one.group == FIXED:
                one, other = other, one
            if one.group != other.group and one == Part(one.group, one.size):
                return one.group, (other,)
            if other.group not in (FIXED, one.group):
                if other == Part(other.group, other.size):
                    return other.group, (one,)
                if (one.outer, one.inner) == (other.outer, other.inner):
                    return one.group, (Part(other.group, other.size),)
            return one.group, fixed(one.size)
        return None

    def _divided(self, part: Part, count: int) -> Axis:
        """Return two groups for one, cut after ``count`` elements; fixed, if that cuts a unit."""
        if part.outer > 1 or count % part.inner:
            return fixed(part.size)
        size = count // part.inner
        return self.fresh(size) + self.fresh(part.size - size)

    def fix(self, axes: Iterable[Axis], operation: str = "") -> None:
        """Let axes keep their order, because of an operation."""
        for axis in axes:
            for part in self.resolve(axis):
                if part.group != FIXED:
                    self.bound[part.group] = fixed(part.size)
                    if operation and part.size > 1:
                        self.fixed_by.add(operation)

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Return consecutive pieces of an axis."""
        pieces = tuple(part for size in sizes for part in self.fresh(size))
        self.unify(axis, pieces)
        return [self.resolve((piece,)) for piece in pieces]

    def broadcast(self, shape: Sequence[int], operands: Sequence[Axes]) -> Axes:
        """Unify the axes of all operands, aligned at the last one; those of length 1 repeat."""
        axes: list[Axis] = []
        for back, count in enumerate(reversed(shape), 1):
            aligned = [each[-back] for each in operands if len(each) >= back]
            own = [axis for axis in aligned if size(axis) == count] or [self.fresh(count)]
            for other in own[1:]:
                self.unify(own[0], other)
            axes.insert(0, self.resolve(own[0]))
        return tuple(axes)

    def reshape(self, axes: Axes, sizes: Sequence[int], operation: str) -> Axes:
        """Match the shortest runs of axes and of sizes that have equally many elements."""
        before, wanted, after = list(axes), list(sizes), []
        while before or wanted:
            run, new = before[:1], wanted[:1]
            del before[:1], wanted[:1]
            while (count := math.prod(map(size, run))) != (product := math.prod(new)):
                if count < product:
                    run.append(before.pop(0))
                else:
                    new.append(wanted.pop(0))
            after += self._divide(self._join(run, operation), new, operation)
        return tuple(after)

    def _join(self, run: Sequence[Axis], operation: str) -> Axis:
        """Return the axis that a run becomes; only one axis of it may have free units."""
        run = list(map(self.resolve, run))
        sizes = list(map(size, run))
        free = [i for i, axis in enumerate(run) if not is_fixed(axis) and sizes[i] > 1]
        if len(free) == 1:
            (i,) = free
            return spread(run[i], math.prod(sizes[:i]), math.prod(sizes[i + 1 :]))
        self.fix(run, operation)
        return fixed(math.prod(sizes))

    def _divide(self, axis: Axis, sizes: Sequence[int], operation: str) -> list[Axis]:
        """Return the axes that one becomes: all fixed, except for one that has all units of it."""
        if len(sizes) == 1:
            return [axis]
        axis, result = self.resolve(axis), list(map(fixed, sizes))
        for i, count in enumerate(sizes):
            found = narrowed(axis, math.prod(sizes[:i]), math.prod(sizes[i + 1 :]))
            if count > 1 and found is not None and not is_fixed(axis):
                result[i] = found
                return result
        self.fix((axis,), operation)
        return result
