"""Data parallelism: each process holds some rows of a batch and sums are exchanged.

Every process (rank) makes the same step with its own rows and gets the same new state:

    axis = across_ranks()                                   # with 1 process, nothing is exchanged
    step = make_train_step(model, optimizer, axis=axis)
    images, labels = shard((images, labels), rank, axis.size)
    first = torch.tensor(rank * len(labels))
    state, metrics = step(state, Shard(images, labels, first))

``first`` is the index of a rank's first row in the batch, so that each row has the same draws as in
one process. The ranks exchange a sum, ``psum`` as in ``jax.lax``, of one flat vector: one
collective per step, inside the compiled step.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.tree import Tree


class Axis(NamedTuple):
    """The ranks that divide each batch into equal parts."""

    size: int
    psum: Callable[[Sequence[Tensor]], list[Tensor]]  # sums over the ranks, bit-equal on each
    rank: int = 0  # of this process


ALONE = Axis(1, list)
"""A single process: nothing is exchanged."""


def across_ranks() -> Axis:
    """The axis of ``torch.distributed``'s default group; ``ALONE`` if it has one process.

    Raises:
        RuntimeError: the group is not initialised (``torch.distributed.init_process_group``).
    """
    from torch import distributed

    size = distributed.get_world_size()
    psum = functools.partial(sum_flat, sum_vector=_AllReduce.apply)
    return ALONE if size == 1 else Axis(size, psum, distributed.get_rank())


def pmean(tensors: Sequence[Tensor], axis: Axis) -> list[Tensor]:
    """Return the mean of each tensor over the ranks.

    >>> fcifar.parallel.pmean([torch.tensor(3.0)], fcifar.parallel.ALONE)
    [tensor(3.)]
    """
    sums = axis.psum(tensors)
    return sums if axis.size == 1 else [total / axis.size for total in sums]


def shard(values: Tree, rank: int, size: int) -> Tree:
    """Return the rows of a rank: leaves [B, ...] become [B / size, ...].

    Raises:
        ValueError: the rows cannot be divided into ``size`` equal parts.

    >>> fcifar.parallel.shard({"rows": torch.arange(6)}, rank=1, size=3)
    {'rows': tensor([2, 3])}
    """

    def part(leaf: Tensor) -> Tensor:
        if len(leaf) % size:
            raise ValueError(f"{len(leaf)} rows cannot be divided into {size} equal parts")
        return leaf.tensor_split(size)[rank]

    return tree.map(part, values)


def sum_flat(tensors: Sequence[Tensor], *, sum_vector: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Sum each tensor over the ranks, by one sum of their concatenation.

    The vector has the widest dtype of the floating tensors, at least float32. Integers are exact up
    to 2**24, or 2**53 in float64.

    Args:
        sum_vector: sums a vector [N] over the ranks.
    """
    floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    dtype = functools.reduce(torch.promote_types, floating, torch.float32)
    total = sum_vector(torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors]))
    parts = total.split([tensor.numel() for tensor in tensors])
    return [
        part.reshape(tensor.shape).to(tensor.dtype)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


class _AllReduce(torch.autograd.Function):
    """The sum of a vector over all ranks.

    The transpose of an all-reduce sum is an all-reduce sum. A separate class, because torch's
    gradient of this operation does not work under ``torch.func``.
    """

    @staticmethod
    def forward(vector: Tensor) -> Tensor:
        import torch.distributed._functional_collectives as collectives
        from torch import distributed

        group: Any = distributed.group.WORLD
        return collectives.wait_tensor(collectives.all_reduce(vector, "sum", group))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """No tensor is saved for the backward pass."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _AllReduce.apply(gradients[0])
