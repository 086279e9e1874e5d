"""Muon: momentum orthogonalised by a Newton-Schulz iteration.

Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in
neural networks", 2024, https://kellerjordan.github.io/posts/muon/. The defaults are those of its
CIFAR-10 recipe.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fcifar import tree
from fcifar.optim.base import Optimizer, chain, stateless
from fcifar.optim.transforms import scale_by_learning_rate, trace
from fcifar.schedules import Schedule
from fcifar.tree import Tree

Coefficients = tuple[float, float, float]

QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steep at 0, so that few steps suffice; singular values end near 1."""


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
    matrix shape are orthogonalised in one batched product.
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
        matrices = [leaf.flatten(1) for leaf in leaves]
        groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for i, matrix in enumerate(matrices):
            groups.setdefault((matrix.shape, matrix.dtype), []).append(i)
        updates = list(leaves)
        for indices in groups.values():
            stacked = torch.stack([matrices[i] for i in indices])
            orthogonal = orthogonalize(stacked, ns_steps, coefficients, dtype)
            for i, matrix in zip(indices, orthogonal.unbind(), strict=True):
                updates[i] = matrix.reshape(leaves[i].shape)
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
