"""The loss between trained models: on the line through two, and on the plane through three.

Linear mode connectivity: Frankle et al., "Linear mode connectivity and the lottery ticket
hypothesis", https://arxiv.org/abs/1912.05671. The plane: Garipov et al., "Loss surfaces, mode
connectivity, and fast ensembling of DNNs", https://arxiv.org/abs/1802.10026.

A point is given by weights of the models, which sum to 1. Its parameters are the weighted sum of
theirs. Batch norm needs statistics of its own there, see ``averaging.estimate_statistics``.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random, tree
from fcifar.analysis.matching import weights as weights_of
from fcifar.models import Variables
from fcifar.random import Key
from fcifar.tree import Tree

RESAMPLES = 1000  # of the bootstrap
_AT_ONCE = 50  # resamples


def combine(trees: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """Return the weighted sum of trees of the same structure, computed in at least float32.

    With weights 1 and 0 it is one of the trees, bit for bit. Leaves that are not floating-point,
    such as counters, are those of the first tree.

    Raises:
        ValueError: there are no trees, or not one weight for each.

    >>> a, b = {"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}
    >>> fcifar.analysis.interpolation.combine([a, b], [0.25, 0.75])
    {'w': tensor(2.5000)}
    """
    if not trees or len(trees) != len(weights):
        raise ValueError(f"combine needs a weight for each tree: {len(weights)} for {len(trees)}")
    kept = [(each, weight) for each, weight in zip(trees, weights, strict=True) if weight != 0]
    kept = kept or [(trees[0], 0.0)]

    def of_leaves(first: Tensor, *leaves: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first
        wide = torch.promote_types(first.dtype, torch.float32)
        parts = [leaf.to(wide) * weight for leaf, (_, weight) in zip(leaves, kept, strict=True)]
        return functools.reduce(torch.add, parts).to(first.dtype)

    return tree.map(of_leaves, trees[0], *(each for each, _ in kept))


def corners(models: Sequence[Variables]) -> Tensor:
    """Return the coordinates of three models on the plane through them, float64 [3, 2].

    The first is the origin and the second lies on the first axis. The axes are orthonormal: the
    first is the direction from the first model to the second, the other the component of that to
    the third which is orthogonal to it. Distances are those of all weights, as in ``matching``.

    Raises:
        ValueError: the models are not three, or lie on a line.

    >>> a, b, c = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [3.0, 0.0], [1.0, 2.0]))
    >>> models = [fcifar.models.Variables(params, {}) for params in (a, b, c)]
    >>> fcifar.analysis.interpolation.corners(models)
    tensor([[0., 0.],
            [3., 0.],
            [1., 2.]], dtype=torch.float64)
    """
    if len(models) != 3:
        raise ValueError(f"a plane goes through three models, not {len(models)}")
    origin, *others = (weights_of(variables) for variables in models)
    u, v = ({n: other[n].double() - origin[n] for n in origin} for other in others)
    along = tree.norm(u)
    first = sum((u[n] * v[n]).sum() for n in u) / along
    second = tree.norm({n: v[n] - u[n] * (first / along) for n in u})
    if not along > 0 or not second > 1e-6 * tree.norm(v):
        raise ValueError("the three models lie on a line; a plane needs one that does not")
    zero = torch.zeros_like(along)
    return torch.stack([zero, zero, along, zero, first, second]).reshape(3, 2)


def barycentric(corners: Tensor, point: Sequence[float]) -> tuple[float, float, float]:
    """Return the weights of three models at a point of the plane through them.

    Args:
        corners: float64 [3, 2], see ``corners``.
        point: its two coordinates.

    >>> corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0]])
    >>> fcifar.analysis.interpolation.barycentric(corners, (3.0, 0.0))
    (0.0, 1.0, 0.0)
    """
    (_, _), (along, _), (first, second) = corners.tolist()
    c = point[1] / second
    b = (point[0] - c * first) / along
    return 1 - b - c, b, c


class Barrier(NamedTuple):
    """How far a value rises above the line between its ends."""

    height: float  # >= 0, because it is 0 at the ends
    at: int  # the point with the largest rise
    interval95: tuple[float, float]


def barrier(values: Tensor, weights: Sequence[float], key: Key) -> Barrier:
    """Return the largest rise of a mean over images above the line between both ends.

    With L(w) the mean loss at weight w, that is the maximum of ``L(w) - (1 - w) L(0) - w L(1)``:
    Entezari et al., https://arxiv.org/abs/2110.06296, definition 1. The interval is the percentile
    bootstrap over images: all points are evaluated on the same resampled images, and the maximum is
    taken anew in each of ``RESAMPLES`` resamples. It holds for these models and points, not for
    other trainings. A maximum of noisy values is too large on average; where the barrier is about
    0, so is the interval.

    Args:
        values: floating [P, N], such as losses, of N images at P points.
        weights: of the second end at each point; the first is 0 and the last 1.
        key: draws the resamples.

    Raises:
        ValueError: the shapes do not fit, or the weights do not begin with 0 and end with 1.

    >>> values = torch.tensor([[0.0, 0.2], [0.5, 0.9], [0.2, 0.4]])
    >>> found = fcifar.analysis.interpolation.barrier(values, [0, 0.5, 1], fcifar.random.key(0))
    >>> round(found.height, 6), found.at, [round(end, 6) for end in found.interval95]
    (0.5, 1, [0.4, 0.6])
    """
    points, count = values.shape
    if points != len(weights) or points < 2 or (weights[0], weights[-1]) != (0, 1) or not count:
        raise ValueError(
            "a barrier needs values [P, N] and P weights from 0 to 1, not "
            f"{[*values.shape]} and {[*weights]}"
        )
    w = torch.tensor(weights, dtype=torch.float64, device=values.device)[:, None]
    values = values.double()
    rises = values - (1 - w) * values[0] - w * values[-1]  # [P, N]; 0 at both ends
    rises[0], rises[-1] = 0, 0
    means = rises.mean(1)
    at = int(means.argmax())
    found = []
    for start in range(0, RESAMPLES, _AT_ONCE):
        drawn = random.randint(random.fold_in(key, start), (_AT_ONCE, count), 0, count)
        counts = torch.zeros(_AT_ONCE, count, dtype=torch.float64, device=values.device)
        counts.scatter_add_(1, drawn.to(values.device).long(), torch.ones_like(counts))
        found.append((counts @ rises.T / count).amax(1))
    low, high = (torch.cat(found).quantile(tail).item() for tail in (0.025, 0.975))
    return Barrier(means[at].item(), at, (low, high))
