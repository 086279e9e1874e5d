"""Muon: momentum, made orthogonal by a Newton-Schulz iteration.

Jordan, Jin, Boza, You, Cesista, Newhouse and Bernstein, "Muon: An optimizer for hidden layers in
neural networks", 2024, https://kellerjordan.github.io/posts/muon/. The defaults are those of its
recipe for CIFAR-10.
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
"""Jordan's: steep at 0, so that few steps do; singular values end near 1 rather than at it."""


def orthogonalize(
    x: Tensor,
    steps: int = 3,
    coefficients: Coefficients = QUINTIC,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Matrices with their singular vectors kept and their singular values brought near 1.

    Each matrix is divided by its Frobenius norm, and then ``steps`` times
    ``x <- a x + b (x x') x + c (x x')^2 x``. A singular value s becomes ``a s + b s^3 + c s^5``
    each time. With (1.5, -0.5, 0) many steps converge to the nearest orthogonal matrix, ``U V'`` of
    the singular value decomposition.

    Args:
        x: floating [..., m, n].
        steps: 0 or more.
        coefficients: (a, b, c).
        dtype: of the products; norm and sums are taken in float32 at the least.

    Returns:
        [..., m, n] in the dtype of ``x``. A matrix of zeros stays one.

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
    if rows > columns:  # the same polynomial, of smaller products
        y = y.mT
    a, b, c = coefficients
    for _ in range(steps):
        # Not baddbmm, which rounds once less by itself but not under vmap. Compiled, the sums are
        # one pass each, so that a mapped run is the same and no slower.
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
    """Momentum as ``trace`` has it, then ``orthogonalize`` for each leaf.

    A leaf [C, ...] is taken as the matrix [C, rest]: for a convolution's kernel a row is a filter.
    Leaves of one such shape are orthogonalised together, in one batched product.

    Raises:
        ValueError: from ``init``, of a leaf with less than two dimensions.
    """
    momentum_of = trace(momentum, nesterov=nesterov)

    def init(params: Tree) -> Any:
        for path, p in tree.named_leaves(params).items():
            if p.ndim < 2:
                raise ValueError(
                    f"Muon needs matrices, and {path or 'the parameter'} has the shape "
                    f"{list(p.shape)}; give it another optimizer, by multi_transform"
                )
        return momentum_of.init(params)

    def update(grads: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        directions, state = momentum_of.update(grads, state, params)
        leaves, unflatten = tree.flatten(directions)
        matrices = [leaf.flatten(1) for leaf in leaves]
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for i, matrix in enumerate(matrices):
            alike.setdefault((matrix.shape, matrix.dtype), []).append(i)
        updates = list(leaves)
        for where in alike.values():
            stacked = torch.stack([matrices[i] for i in where])
            orthogonal = orthogonalize(stacked, ns_steps, coefficients, dtype)
            for i, matrix in zip(where, orthogonal.unbind(), strict=True):
                updates[i] = matrix.reshape(leaves[i].shape)
        return unflatten(updates), state

    return Optimizer(init, update)


def renormalize_weights() -> Optimizer:
    """Add what brings each weight [C, ...] to the Frobenius norm sqrt(C), before its update.

    Last in a chain, it makes a weight p become ``p * sqrt(C) / ||p|| + update``. Leaves with less
    than two dimensions, and weights that are zero, get the update alone.
    """

    def add_missing(update: Tensor, p: Tensor) -> Tensor:
        if p.ndim < 2:
            return update
        norm = torch.linalg.vector_norm(p)
        target = math.sqrt(p.shape[0])
        return update + p * (target / torch.where(norm > 0, norm, target) - 1)

    return stateless(lambda updates, params: tree.map(add_missing, updates, params))


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
    """Muon, for leaves of two dimensions or more.

    Args:
        learning_rate: the size of an update's singular values, about; it is not adjusted to the
            shape.
        momentum, nesterov, ns_steps, coefficients, dtype: as in ``scale_by_muon``.
        renormalize: end with ``renormalize_weights``, as the recipe for CIFAR-10 does.

    Raises:
        ValueError: from ``init``, of a leaf with less than two dimensions.
    """
    parts = [
        scale_by_muon(
            momentum, nesterov=nesterov, ns_steps=ns_steps, coefficients=coefficients, dtype=dtype
        ),
        scale_by_learning_rate(learning_rate),
    ]
    return chain(*parts, renormalize_weights()) if renormalize else chain(*parts)
