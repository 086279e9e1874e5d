"""Finds the convolutions with a max-pool in a compiled graph, and puts our kernel there.

``torch.compile`` hands over a step as one graph of elementary operations, in which gradients are
operations like others. In it, every

    y = convolution(x, weight, bias);  pooled, indices = max_pool2d_with_indices(y, 2)

whose ``y`` serves nothing else but the gradient of the same pair,

    convolution_backward(max_pool2d_with_indices_backward(gradient, y, indices), x, weight)

becomes ``conv_pool`` and ``conv_pool_backward``. What does not look exactly like this stays with
the compiler.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from fcifar.kernels import building
from fcifar.kernels.conv_pool import (
    SOURCE,
    WIDEST,
    conv_pool,
    conv_pool_backward,
    fits,
    library,
    shape_of,
)

aten = torch.ops.aten
_POOLING = (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim)


def backend(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """A backend for ``torch.compile``: its own, inductor, and our kernels where they fit."""
    from torch._inductor.compile_fx import compile_fx

    on_cpu = all(x.device.type == "cpu" for x in inputs if isinstance(x, Tensor))
    patches: dict[str, Any] = {"deterministic": torch.are_deterministic_algorithms_enabled()}
    if not on_cpu or building.why_not() is not None:
        return compile_fx(graph, inputs, config_patches=patches)
    patches["post_grad_custom_pre_pass"] = _make_pass()
    return compile_fx(graph, inputs, decompositions=_Table(), config_patches=patches)


def _make_pass() -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Fuse(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            fuse(graph)

        def uuid(self) -> Any:  # by which the compiler's cache knows this pass
            return get_hash_for_files((__file__, building.__file__, str(SOURCE)))

    return Fuse()


class _Table(dict[Any, Callable[..., Any]]):
    """Inductor's decompositions, but for the small pools that ``fuse`` may want to find."""

    def __init__(self) -> None:
        from torch._inductor.decomposition import select_decomp_table

        table = select_decomp_table()
        super().__init__(table)
        self.update({op: _unless_small(table[op]) for op in _POOLING if op in table})

    def __reduce__(self) -> tuple[Any, ...]:
        """What the compiler's cache knows it by; its functions have no such name."""
        return _Table, ()


def _unless_small(decompose: Callable[..., Any]) -> Callable[..., Any]:
    def decompose_large(*arguments: Any, **settings: Any) -> Any:
        values = arguments[0]
        small = values.dtype == torch.float32 and values.shape[-3] <= WIDEST
        return NotImplemented if small else decompose(*arguments, **settings)

    return decompose_large


def fuse(graph: fx.Graph) -> int:
    """Replace every such pair of operations in ``graph``; how many there were."""
    _look_through_views(graph)
    graph.eliminate_dead_code()
    found = 0
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        found += _fuse_one(graph, node)
    graph.eliminate_dead_code()
    return found


def _look_through_views(graph: fx.Graph) -> None:
    """Give each pool its convolution directly where only changes of shape, undone, lie between.

    ``vmap`` puts them there.
    """
    for node in graph.find_nodes(op="call_function", target=_POOLING[0]):
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


def _fuse_one(graph: fx.Graph, conv: fx.Node) -> bool:
    arguments: Any = conv.args
    x, weight, bias, stride, padding, dilation, transposed, _, groups = arguments
    if (
        bias is None
        or transposed
        or (stride, dilation, groups) != ([1, 1], [1, 1], 1)
        or padding[0] != padding[1]
        or not all(_is_plain(node) for node in (x, weight, bias))
        or not fits(shape_of(x.meta["val"], weight.meta["val"], padding[0]))
    ):
        return False
    pools = [user for user in conv.users if _is_pool(user, conv)]
    if len(pools) != 1:
        return False
    values, indices = _items(pools[0])
    unpools = [user for user in conv.users if user is not pools[0]]
    backwards = [b for u in unpools if (b := _backward_of(u, conv, indices)) is not None]
    if len(backwards) != len(unpools) or any(set(i.users) - set(unpools) for i in indices):
        return False

    pad = padding[0]
    library(shape_of(x.meta["val"], weight.meta["val"], pad))  # built now, not at the first step
    with graph.inserting_before(pools[0]):
        pooled, which = _call(graph, conv_pool, x, weight, bias, pad)
    for old in values:
        old.replace_all_uses_with(pooled)
    for unpool, backward in zip(unpools, backwards, strict=True):
        with graph.inserting_before(backward):
            mask: Any = backward.args[-1]
            gradient = unpool.args[0]
            results = _call(graph, conv_pool_backward, gradient, which, x, weight, pad, mask[0])
        for item in list(backward.users):
            number: Any = item.args[1]
            item.replace_all_uses_with(results[number])
            graph.erase_node(item)
        graph.erase_node(backward)
        graph.erase_node(unpool)
    return True


def _is_plain(node: Any) -> bool:
    """Whether a node is a float32 tensor on the CPU whose shape is known."""
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and all(isinstance(size, int) for size in value.shape)
        and value.dim() in (1, 4)
    )


def _is_pool(node: fx.Node, conv: fx.Node) -> bool:
    """Whether a node is the 2x2 max-pool of a convolution."""
    return node.target is _POOLING[0] and node.args[0] is conv and _is_two_by_two(node.args[1:])


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
    if unpool.target is not _POOLING[1] or unpool.args[1] is not conv:
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


def _call(graph: fx.Graph, op: Any, *arguments: Any) -> list[fx.Node]:
    """Call an operation in a graph; the nodes of its results, which know their shapes."""
    node = graph.call_function(op, arguments)
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments]
    with next(v for v in values if isinstance(v, FakeTensor)).fake_mode:
        node.meta["val"] = op(*values)
    results = []
    for i, value in enumerate(node.meta["val"]):
        results.append(graph.call_function(operator.getitem, (node, i)))
        results[-1].meta["val"] = value
    return results
