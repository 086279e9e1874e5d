"""Muon: momentum orthogonalised by a Newton-Schulz iteration.

Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in
neural networks", 2024, https://kellerjordan.github.io/posts/muon/. The defaults are those of its
CIFAR-10 recipe.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import tree
from fcifar.optim.base import Optimizer, chain, stateless
from fcifar.optim.transforms import scale_by_learning_rate, trace
from fcifar.schedules import Schedule
from fcifar.tree import Tree

Coefficients = tuple[float, float, float]

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steep at 0, so that few steps suffice; singular values end near 1."""


MOST_PADDING = 1.5
"""Elements with padding, relative to those without, up to which ``orthogonalize_each`` pads."""


def orthogonalize(
    x: Tensor,
    steps: int = 3,
    coefficients: Coefficients = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Keep the singular vectors of each matrix and bring its singular values close to 1.

    Each matrix is divided by its Frobenius norm, followed by ``steps`` iterations of ``x <- a x + b
    (x x') x + c (x x')^2 x``, which map a singular value s to ``a s + b s^3 + c s^5``. With
    coefficients (1.5, -0.5, 0) the iteration converges to the nearest orthogonal matrix, ``U V'``
    of the singular value decomposition.

    Args:
        x: floating [..., m, n].
        steps: 0 or more.
        coefficients: (a, b, c).
        dtype: of the products; norm and sums are taken in at least float32.

    Returns:
        [..., m, n] in the dtype of ``x``. A zero matrix stays zero.

    >>> x = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    >>> fcifar.optim.orthogonalize(x, 20, (1.5, -0.5, 0.0), torch.float32).round(decimals=4)
    tensor([[1., 0.],
            [0., 1.]])
    """
    rows, columns = x.shape[-2:]
    wide = torch.promote_types(torch.promote_types(x.dtype, torch.float32), dtype)
    y = x.to(wide)
    norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True)
    y = (y / torch.where(norm > 0, norm, 1.0)).to(dtype)
    if rows > columns:  # the same polynomial with smaller products
        y = y.mT
    a, b, c = coefficients
    for _ in range(steps):
        # Not baddbmm, which rounds once less without vmap than with it. Compiled, each sum is one
        # fused pass, so this is not slower.
        gram = y @ y.mT
        polynomial = (b * gram.to(wide) + c * (gram @ gram)).to(dtype)
        y = (a * y.to(wide) + polynomial @ y).to(dtype)
    if rows > columns:
        y = y.mT
    return y.to(x.dtype)


def orthogonalize_each(
    matrices: Sequence[Tensor],
    steps: int = 3,
    coefficients: Coefficients = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
    *,
    pad: bool = False,
) -> list[Tensor]:
    """Orthogonalise matrices [m, n] of several shapes, those of one shape in one batched product.

    Args:
        steps, coefficients, dtype: as in ``orthogonalize``.
        pad: fill matrices of similar sizes with zeros up to a common shape, where that makes at
            most ``MOST_PADDING`` times as many elements. Zeros stay zeros; other values change by
            rounding.
    """
    wide = [x.mT if pad and x.shape[0] > x.shape[1] else x for x in matrices]
    results = list(matrices)
    for indices in _groups(wide, pad):
        rows, columns = (max(wide[i].shape[axis] for i in indices) for axis in (0, 1))
        each = [wide[i] for i in indices]
        if pad:
            each = [F.pad(x, (0, columns - x.shape[1], 0, rows - x.shape[0])) for x in each]
        orthogonal = orthogonalize(torch.stack(each), steps, coefficients, dtype)
        for i, x in zip(indices, orthogonal.unbind(), strict=True):
            x = x[: wide[i].shape[0], : wide[i].shape[1]]
            results[i] = x if x.shape == matrices[i].shape else x.mT
    return results


def _groups(matrices: Sequence[Tensor], pad: bool) -> list[list[int]]:
    """Divide matrices into those of one shape; with ``pad``, the largest first, into those of
    similar sizes.
    """
    if not pad:
        same: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for i, x in enumerate(matrices):
            same.setdefault((x.shape, x.dtype), []).append(i)
        return list(same.values())
    groups: list[list[int]] = []
    for i in sorted(range(len(matrices)), key=lambda i: -matrices[i].numel()):
        group = [*groups[-1], i] if groups else [i]
        shapes = [matrices[j].shape for j in group]
        padded = len(group) * max(m for m, _ in shapes) * max(n for _, n in shapes)
        is_similar = padded <= MOST_PADDING * sum(m * n for m, n in shapes)
        if len(group) > 1 and is_similar and len({matrices[j].dtype for j in group}) == 1:
            groups[-1] = group
        else:
            groups.append([i])
    return groups


def scale_by_muon(
    momentum: float | Tensor = 0.6,
    *,
    nesterov: bool = True,
    ns_steps: int = 3,
    coefficients: Coefficients = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
) -> Optimizer:
    """Momentum as in ``trace``, followed by ``orthogonalize`` on each leaf.

    A leaf [C, ...] is reshaped to the matrix [C, n], so that a row of a convolution kernel is one
    filter. ``init`` raises a ValueError for leaves of fewer than two dimensions. Leaves of the same
    matrix shape are orthogonalised in one batched product; on CUDA, where a single small product
    uses a part of the device, those of other shapes too (``orthogonalize_each``).
    """
    momentum_of = trace(momentum, nesterov=nesterov)

    def init(params: Tree) -> Any:
        for path, p in tree.named_leaves(params).items():
            if p.ndim < 2:
                raise ValueError(
                    f"Muon needs two dimensions or more, but {path or 'the parameter'} has shape "
                    f"{list(p.shape)}; use another optimizer for it, with multi_transform"
                )
        return momentum_of.init(params)

    def update(grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        directions, state = momentum_of.update(grads, state, params)
        leaves, unflatten = tree.flatten(directions)
        orthogonal = orthogonalize_each(
            [leaf.flatten(1) for leaf in leaves],
            *(ns_steps, coefficients, dtype),
            pad=all(leaf.is_cuda for leaf in leaves),
        )
        updates = [x.reshape(leaf.shape) for x, leaf in zip(orthogonal, leaves, strict=True)]
        return unflatten(updates), state

    return Optimizer(init, update)


def renormalize_weights() -> Optimizer:
    """Add to each update what brings the weight [C, ...] to the Frobenius norm sqrt(C).

    At the end of a chain, a weight p becomes ``p * sqrt(C) / ||p|| + update``. Leaves with fewer
    than two dimensions and zero weights only get the update.
    """

    def add_rescaling(update: Tensor, p: Tensor) -> Tensor:
        if p.ndim < 2:
            return update
        norm = torch.linalg.vector_norm(p)
        target = math.sqrt(p.shape[0])
        return update + p * (target / torch.where(norm > 0, norm, target) - 1)

    return stateless(lambda updates, params: tree.map(add_rescaling, updates, params))


def muon(
    learning_rate: float | Tensor | Schedule,
    momentum: float | Tensor = 0.6,
    *,
    nesterov: bool = True,
    ns_steps: int = 3,
    coefficients: Coefficients = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
    renormalize: bool = False,
) -> Optimizer:
    """Muon, for leaves of two dimensions or more (see ``scale_by_muon``).

    Args:
        learning_rate: roughly the singular values of an update; not adjusted to the shape.
        momentum, nesterov, ns_steps, coefficients, dtype: as in ``scale_by_muon``.
        renormalize: end with ``renormalize_weights``, as the CIFAR-10 recipe does.
    """
    parts = [
        scale_by_muon(
            momentum, nesterov=nesterov, ns_steps=ns_steps, coefficients=coefficients, dtype=dtype
        ),
        scale_by_learning_rate(learning_rate),
    ]
    return chain(*parts, renormalize_weights()) if renormalize else chain(*parts)
