"""One model over many processes: each holds some rows of a batch, and they add up what they find.

Every process (rank) makes the same step with its own rows, and gets the same new state:

    axis = across_ranks()                                   # 1 process: nothing is exchanged
    step = make_train_step(model, optimizer, axis=axis)
    images, labels = shard((images, labels), rank, axis.size)
    first = torch.tensor(rank * len(labels))
    state, metrics = step(state, Shard(images, labels, first))

``first`` is where a rank's rows begin, so that they have the draws that they have in one process.
What the ranks exchange is a sum over them, ``psum``, as in ``jax.lax``. It is made of one flat
vector, so that a step has one exchange, and it is part of the compiled step.
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
    psum: Callable[[Sequence[Tensor]], list[Tensor]]  # sums over the ranks, the same bits on each
    rank: int = 0  # which of them this is


ALONE = Axis(1, list)
"""One process, which has nothing to exchange."""


def across_ranks() -> Axis:
    """The processes of ``torch.distributed``'s default group; ``ALONE`` for one of them.

    Raises:
        RuntimeError: the group has not been made (``torch.distributed.init_process_group``).
    """
    from torch import distributed

    size = distributed.get_world_size()
    psum = functools.partial(sum_flat, sum_vector=_AllReduce.apply)
    return ALONE if size == 1 else Axis(size, psum, distributed.get_rank())


def pmean(tensors: Sequence[Tensor], axis: Axis) -> list[Tensor]:
    """The mean of each tensor over the ranks; at one rank, the tensors as they are.

    >>> fcifar.parallel.pmean([torch.tensor(3.0)], fcifar.parallel.ALONE)
    [tensor(3.)]
    """
    sums = axis.psum(tensors)
    return sums if axis.size == 1 else [total / axis.size for total in sums]


def shard(values: Tree, rank: int, size: int) -> Tree:
    """The rows of a rank: leaves [B, ...] become [B / size, ...].

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
    """The sum of each tensor over the ranks, by that of one vector which holds all of them.

    The vector has the widest dtype of the floating tensors, float32 at the least. Whole numbers are
    exact in it up to 2**24, or 2**53 beside float64.

    Args:
        sum_vector: the sum over the ranks of a vector [N].
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

    The transpose of an all-reduce sum is an all-reduce sum: a term of the sum enters the results of
    all ranks, so that its gradient is the sum of their gradients.

    A separate class because torch's gradient of this operation does not work under ``torch.func``.
    """

    @staticmethod
    def forward(vector: Tensor) -> Tensor:
        import torch.distributed._functional_collectives as collectives
        from torch import distributed

        group: Any = distributed.group.WORLD
        return collectives.wait_tensor(collectives.all_reduce(vector, "sum", group))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept for the way back."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _AllReduce.apply(gradients[0])
