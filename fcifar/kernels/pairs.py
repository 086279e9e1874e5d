"""Finds the convolutions with a 2x2 max-pool in a graph of elementary operations.

In the graph of a training step gradients are operations like others. A pair is

    y = convolution(x, weight, bias);  pooled, indices = max_pool2d_with_indices(y, 2)

whose ``y`` serves nothing else but the gradient of the same pair,

    convolution_backward(max_pool2d_with_indices_backward(gradient, y, indices), x, weight)
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

aten = torch.ops.aten
POOLING = (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim)


class Pair(NamedTuple):
    """The nodes of a pair, and what is particular to its convolution."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    padding: int
    conv: fx.Node
    pool: fx.Node
    pooled: list[fx.Node]  # the pool's first result
    gradients: list[tuple[fx.Node, fx.Node]]  # of the pool, and of the convolution


def find(graph: fx.Graph) -> Iterator[Pair]:
    """Every pair in a graph, which may be replaced before the next is asked for."""
    _look_through_views(graph)
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        if (pair := _pair_of(node)) is not None:
            yield pair


def _pair_of(conv: fx.Node) -> Pair | None:
    arguments: Any = conv.args
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
    if transposed or (stride, dilation, groups) != ([1, 1], [1, 1], 1) or padding[0] != padding[1]:
        return None
    pools = [user for user in conv.users if _is_pool(user, conv)]
    if len(pools) != 1:
        return None
    pooled, indices = _items(pools[0])
    unpools = [user for user in conv.users if user is not pools[0]]
    backwards = [b for u in unpools if (b := _backward_of(u, conv, indices)) is not None]
    if len(backwards) != len(unpools) or any(set(i.users) - set(unpools) for i in indices):
        return None
    gradients = list(zip(unpools, backwards, strict=True))
    return Pair(x, weight, bias, padding[0], conv, pools[0], pooled, gradients)


def _look_through_views(graph: fx.Graph) -> None:
    """Give each pool its convolution directly where only changes of shape, undone, lie between.

    ``vmap`` puts them there.
    """
    for node in graph.find_nodes(op="call_function", target=POOLING[0]):
        source: Any = node.args[0]
        while source.target in _VIEWS or _is_idle_permute(source):
            source = source.args[0]
        if source.target is aten.convolution.default:
            values = [n.meta["val"] for n in (source, node.args[0])]
            if values[0].shape == values[1].shape:
                node.update_arg(0, source)


def _is_idle_permute(node: fx.Node) -> bool:
    """Whether a node permutes dimensions and leaves each where it was."""
    dims: Any = node.args[1] if node.target is aten.permute.default else None
    return dims is not None and dims == sorted(dims)


def _is_pool(node: fx.Node, conv: fx.Node) -> bool:
    """Whether a node is the 2x2 max-pool of a convolution."""
    return node.target is POOLING[0] and node.args[0] is conv and _is_two_by_two(node.args[1:])


def _is_two_by_two(settings: Sequence[Any]) -> bool:
    """Whether kernel, stride, padding, dilation and ``ceil_mode``, as far as given, are those."""
    kernel, stride, *rest = [*settings, *[[], [0, 0], [1, 1], False][len(settings) - 1 :]]
    return kernel == [2, 2] == (stride or kernel) and rest == [[0, 0], [1, 1], False]


def _items(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """Those users of a node of two results that take the first, and the second."""
    parts: tuple[list[fx.Node], list[fx.Node]] = ([], [])
    for user in node.users:
        number: Any = user.args[1]
        parts[number].append(user)
    return parts


def _backward_of(unpool: fx.Node, conv: fx.Node, indices: list[fx.Node]) -> fx.Node | None:
    """The gradient of a convolution behind that of its pool; None if it is anything else."""
    if unpool.target is not POOLING[1] or unpool.args[1] is not conv:
        return None
    if not _is_two_by_two(unpool.args[2:-1]) or unpool.args[-1] not in indices:
        return None
    if len(unpool.users) != 1:
        return None
    (backward,) = unpool.users
    if backward.target is not aten.convolution_backward.default or backward.args[0] is not unpool:
        return None
    same = backward.args[1:3] == conv.args[:2] and backward.args[4:10] == conv.args[3:9]
    return backward if same else None
