"""Weight matching: put the units of one network into the order of another's.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin: merging models modulo permutation symmetries",
https://arxiv.org/abs/2209.04836, algorithm 1. Two trainings number their hidden units differently.
Before their parameters are compared or averaged, those of the second are permuted, which does not
change its function (see ``symmetries``), so that their inner product with the first's is large, and
the distance between both small.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.analysis.axes import Part, length, reorder
from fcifar.analysis.symmetries import Symmetries, permute
from fcifar.averaging import STATISTICS
from fcifar.models import Variables

Assign = Callable[[Tensor], Tensor]
"""Linear assignment: the permutation, int64 [n], for which the sum of ``gains[i, permutation[i]]``
is largest, of float64 [n, n]. For example ``scipy.optimize.linear_sum_assignment``."""

SWEEPS = 100  # at most; a dozen are usual
_PROGRESS = 1e-12  # of the inner product, relative to the norms; less is rounding


class Matching(NamedTuple):
    """The second network in the order of the first."""

    permutations: tuple[Tensor, ...]  # int64 [size] for each group, for ``symmetries.permute``
    variables: Variables  # of the second network, permuted
    distance_before: float  # Euclidean, between all weights of both networks
    distance: float  # the same, with the second permuted
    sweeps: int  # over all groups, with the last one, which changed nothing


def weights(variables: Variables) -> dict[str, Tensor]:
    """Return what is matched: parameters and frozen ones, without the statistics of batch norm."""
    tensors = {**variables.params, **variables.buffers}
    return {
        name: value
        for name, value in tensors.items()
        if value.is_floating_point() and name.rpartition(".")[2] not in STATISTICS
    }


def match(symmetries: Symmetries, first: Variables, second: Variables, assign: Assign) -> Matching:
    """Permute the units of ``second`` so that its weights are close to those of ``first``.

    Coordinate ascent on the inner product of the weights. In turn, the best order of one group of
    units is found, given the orders of all others: a linear assignment. That is repeated until no
    group changes; the result is a local optimum. The paper draws the order of the groups at random.
    Here it is that of ``symmetries``, from the first layer to the last: the inputs of each layer
    are matched before its outputs, which recovers a permuted copy of a network more often.

    Args:
        symmetries: of the model of both, from ``symmetries.find``.
        first, second: on one device.
        assign: see ``Assign``.

    >>> model = fcifar.models.lenet()
    >>> symmetries = fcifar.analysis.symmetries.find(model)
    >>> first = model.init(fcifar.random.key(0))
    >>> orders = [torch.arange(group.size).flip(0) for group in symmetries.groups]
    >>> second = fcifar.analysis.symmetries.permute(symmetries, orders, first)
    >>> import scipy.optimize
    >>> def assign(gains):
    ...     return torch.as_tensor(scipy.optimize.linear_sum_assignment(gains, maximize=True)[1])
    >>> found = fcifar.analysis.matching.match(symmetries, first, second, assign)
    >>> found.distance_before > 0, found.distance
    (True, 0.0)
    """
    a, b = weights(first), weights(second)
    uses = [list(_uses(symmetries, a, i)) for i in range(1, 1 + len(symmetries.groups))]
    device = tree.device(second)
    orders = [torch.arange(group.size, device=device) for group in symmetries.groups]
    scale = _PROGRESS * max(_product(a, a), _product(b, b))

    def permuted(name: str, orders: Sequence[Tensor], but: int = -1) -> Tensor:
        """Return a tensor of the second network, with one dimension in the old order."""
        value = b[name]
        for dim, axis in enumerate(symmetries.axes[name]):
            value = value if dim == but else reorder(value, dim, axis, orders)
        return value

    def gain(group: int, orders: Sequence[Tensor]) -> float:
        names = {use.name for use in uses[group]}
        return sum(float((a[n].double() * permuted(n, orders)).sum()) for n in sorted(names))

    sweeps, changed = 0, True
    while changed and sweeps < SWEEPS:
        changed = False
        for group in (i for i, own in enumerate(uses) if own):
            gains = [
                use.rows(a[use.name]) @ use.rows(permuted(use.name, orders, but=use.dim)).T
                for use in uses[group]
            ]
            tried = [*orders]
            tried[group] = assign(torch.stack(gains).sum(0)).to(device)
            # Where a group has two axes of a tensor, the assignment holds one of them still.
            if gain(group, tried) > gain(group, orders) + scale:
                orders, changed = tried, True
        sweeps += 1
    found = permute(symmetries, orders, second)
    return Matching(tuple(orders), found, distance(first, second), distance(first, found), sweeps)


def distance(first: Variables, second: Variables) -> float:
    """Return the Euclidean distance of all weights of two networks."""
    a, b = weights(first), weights(second)
    return sum(float((a[n].double() - b[n]).square().sum()) for n in a) ** 0.5


class _Use(NamedTuple):
    """A part of a dimension of a tensor whose elements are the units of a group."""

    name: str
    dim: int
    start: int
    part: Part

    def rows(self, value: Tensor) -> Tensor:
        """Return float64 [units, everything else]."""
        inside = value.narrow(self.dim, self.start, length(self.part))
        shape = (self.part.outer, self.part.size, self.part.inner)
        return inside.double().unflatten(self.dim, shape).movedim(self.dim + 1, 0).flatten(1)


def _uses(symmetries: Symmetries, tensors: dict[str, Tensor], group: int) -> Iterator[_Use]:
    for name in tensors:
        for dim, axis in enumerate(symmetries.axes[name]):
            start = 0
            for part in axis:
                if part.group == group:
                    yield _Use(name, dim, start, part)
                start += length(part)


def _product(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name]).sum()) for name in a)
