"""Find the convolutions with a 2x2 max-pool in a graph of elementary operations.

A pair is

    y = convolution(x, weight, bias);  pooled, indices = max_pool2d_with_indices(y, 2)

whose ``y`` is used only there and in the gradient of the pair,

    convolution_backward(max_pool2d_with_indices_backward(gradient, y, indices), x, weight)

Under ``vmap(grad)``, with a gradient for each of N images, the gradient of the pair consists of
operations on views of ``spread = max_pool2d_with_indices_backward(gradient, y, indices)``:

    convolution_backward(spread, any, weight), for the input
    convolution_backward(spread [1, N O, ...], x [1, N C, ...], any, groups=N), for the weight
    sum(spread) over the positions, for the bias
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

aten = torch.ops.aten
POOLING = (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim)


class Each(NamedTuple):
    """The gradients of a convolution, of weight and bias for each image."""

    input: fx.Node | None
    weight: fx.Node
    bias: fx.Node | None


class Pair(NamedTuple):
    """The nodes of a pair."""

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    padding: int
    conv: fx.Node
    pool: fx.Node
    pooled: list[fx.Node]  # the pool's first result
    gradients: list[tuple[fx.Node, fx.Node | Each]]  # of the pool, and of the convolution


def find(graph: fx.Graph) -> Iterator[Pair]:
    """Yield every pair in a graph, which may be replaced before the next one."""
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
    pools = [u for u in conv.users if u.target is POOLING[0] and _is_two_by_two(u.args[1:])]
    if len(pools) != 1:
        return None
    pooled, indices = _items(pools[0])
    unpools = [user for user in conv.users if user is not pools[0]]
    gradients = [(u, b) for u in unpools if (b := _backward_of(u, conv, indices)) is not None]
    if len(gradients) != len(unpools) or any(set(i.users) - set(unpools) for i in indices):
        return None
    return Pair(x, weight, bias, padding[0], conv, pools[0], pooled, gradients)


def _look_through_views(graph: fx.Graph) -> None:
    """Connect pools and their gradients directly where ``vmap`` put views in between."""
    for op, positions in zip(POOLING, ((0,), (1, -1)), strict=True):
        for node in graph.find_nodes(op="call_function", target=op):
            for i in positions:
                given: Any = node.args[i]
                source = _origin(given)
                if source.meta["val"].shape == given.meta["val"].shape:
                    node.update_arg(i % len(node.args), source)


def _origin(node: Any) -> Any:
    """The node that ``node`` is a view of, with the same elements in the same order."""
    while _is_view(node):
        node = node.args[0]
    return node


def _is_view(node: Any) -> bool:
    """Whether a node only changes the shape, not the order of the elements."""
    if node.target is not aten.permute.default:
        return node.target in _VIEWS
    shape, dims = node.args[0].meta["val"].shape, [d % len(node.args[1]) for d in node.args[1]]
    moved = [d for d in dims if shape[d] != 1]
    return moved == sorted(moved)


def _uses(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The users of a node, or of a view of it, each with its argument."""
    for user in node.users:
        if _is_view(user):
            yield from _uses(user)
        else:
            yield user, node


def _is_two_by_two(settings: Sequence[Any]) -> bool:
    """Whether kernel, stride, padding, dilation and ``ceil_mode``, if given, are of a 2x2 pool."""
    kernel, stride, *rest = [*settings, *[[], [0, 0], [1, 1], False][len(settings) - 1 :]]
    return kernel == [2, 2] == (stride or kernel) and rest == [[0, 0], [1, 1], False]


def _items(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The users of the first and of the second result of a node."""
    parts: tuple[list[fx.Node], list[fx.Node]] = ([], [])
    for user in node.users:
        number: Any = user.args[1]
        parts[number].append(user)
    return parts


def _backward_of(unpool: fx.Node, conv: fx.Node, indices: list[fx.Node]) -> fx.Node | Each | None:
    """The gradient of a convolution after that of its pool; None if there are other operations."""
    if unpool.target is not POOLING[1] or unpool.args[1] is not conv:
        return None
    if not _is_two_by_two(unpool.args[2:-1]) or unpool.args[-1] not in indices:
        return None
    backward = next(iter(unpool.users))
    if (
        len(unpool.users) == 1
        and backward.target is aten.convolution_backward.default
        and backward.args[:3] == (unpool, *conv.args[:2])
        and backward.args[4:10] == conv.args[3:9]
    ):
        return backward
    return _each_of(unpool, conv)


def _each_of(unpool: fx.Node, conv: fx.Node) -> Each | None:
    """The gradients for each image; None if there are other operations."""
    found: dict[str, fx.Node] = {}
    for user, given in _uses(unpool):
        kinds = [kind for kind, is_it in _KINDS.items() if is_it(user, given, conv)]
        if len(kinds) != 1 or kinds[0] in found:
            return None
        found[kinds[0]] = user
    if "weight" not in found:
        return None
    return Each(found.get("input"), found["weight"], found.get("bias"))


def _is_of_input(user: fx.Node, given: fx.Node, conv: fx.Node) -> bool:
    return (
        _is_backward(user, given, [True, False, False])
        and user.args[2] is conv.args[1]
        and user.args[4:10] == conv.args[3:9]
        and _shape(given) == _shape(conv)
        and _shape(user.args[1]) == _shape(conv.args[0])
    )


def _is_of_weight(user: fx.Node, given: fx.Node, conv: fx.Node) -> bool:
    x: Any = conv.args[0]
    count, *plane = _shape(conv)
    images, *image = _shape(x)
    return (
        _is_backward(user, given, [False, True, False])
        and _origin(user.args[1]) is _origin(x)
        and user.args[4:10] == (*conv.args[3:8], count)
        and _shape(given) == [1, count * plane[0], *plane[1:]]
        and _shape(user.args[1]) == [1, images * image[0], *image[1:]]
    )


def _is_of_bias(user: fx.Node, given: fx.Node, conv: fx.Node) -> bool:
    """A sum over the positions, and over dimensions of one element."""
    if user.target is not aten.sum.dim_IntList or user.kwargs:
        return False
    shape = _shape(given)
    dims: Any = [d % len(shape) for d in user.args[1]]  # type: ignore[union-attr]
    long = [d for d in range(len(shape)) if shape[d] != 1]
    summed = [d in dims for d in long]
    kept = math.prod(shape[d] for d in long if d not in dims)
    return summed == sorted(summed) and kept == math.prod(_shape(conv)[:2])


def _is_backward(user: fx.Node, given: fx.Node, mask: list[bool]) -> bool:
    is_it = user.target is aten.convolution_backward.default
    return is_it and user.args[0] is given and user.args[-1] == mask


def _shape(node: Any) -> list[int]:
    return list(node.meta["val"].shape)


_KINDS = {"input": _is_of_input, "weight": _is_of_weight, "bias": _is_of_bias}
