"""Insert the kernels into a compiled graph.

``torch.compile`` passes a step as one graph of elementary operations, or a module as the joint
graph of its forward and backward pass. Every pair of a convolution and a max-pool that ``pattern``
finds there becomes

    conv_pool and conv_pool_backward                in float32, if it is small
    conv_pool and conv_pool_backward_each           the same with a gradient for each image
    winograd_conv_pool and wide_conv_backward       in bfloat16, if it is wide; or
    winograd_conv_pool_backward, if faster

and every other wide convolution in bfloat16 ``winograd_conv`` and its backward. All other
operations are left to inductor.
"""

import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from fcifar.kernels import build, conv_pool, norm_gelu, pattern, wide_conv, winograd

aten = torch.ops.aten
Prepare = Callable[[ModuleType, Any], None]


def load_now(kernel: ModuleType, shape: Any) -> None:
    """Build and load the library of a kernel, not only at the first step."""
    kernel.library(shape)


def may_be_pool(values: Tensor) -> bool:
    """Whether a kernel may replace a pool of these values, or its gradient."""
    return _may_be_small(values) or _may_be_wide(values)


def _may_be_small(values: Tensor) -> bool:
    """Whether ``conv_pool`` may replace a pool of these values."""
    return values.dtype == torch.float32 and values.shape[-3] <= conv_pool.WIDEST


def _may_be_wide(values: Tensor) -> bool:
    """Whether ``winograd`` may replace a pool of these values, or its gradient."""
    return (
        values.dtype == torch.bfloat16
        and values.shape[-3] % winograd.COLUMNS == 0
        and winograd.why_not() is None
    )


def fuse(graph: fx.Graph, prepare: Prepare = load_now) -> int:
    """Replace every pair and convolution in ``graph`` that has a kernel; return their number.

    ``prepare`` is called with the module and the shape of each kernel.
    """
    pairs = pattern.find(graph)
    count = sum(_fuse_small(graph, p, prepare) or _fuse_wide(graph, p, prepare) for p in pairs)
    graph.eliminate_dead_code()
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        count += _replace_wide(graph, node, prepare)
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        _replace_wide_backward(graph, node, prepare)
    count += norm_gelu.fuse(graph)
    _compute_in_float32(graph)
    _write_before_permuting(graph)
    _decompose_remaining(graph)
    return count


def _fuse_small(graph: fx.Graph, pair: pattern.Pair, prepare: Prepare) -> bool:
    x, weight, bias, pad = pair.x, pair.weight, pair.bias, pair.padding
    if bias is None or not all(_is_plain(n, torch.float32) for n in (x, weight, bias)):
        return False
    shape = conv_pool.shape_of(x.meta["val"], weight.meta["val"], pad)
    if not conv_pool.fits(shape):
        return False
    prepare(conv_pool, shape)
    with graph.inserting_before(pair.pool):
        pooled, which = _call(graph, conv_pool.conv_pool, x, weight, bias, pad)
    for old in pair.pooled:
        old.replace_all_uses_with(pooled)
    for unpool, backward in pair.gradients:
        arguments = (unpool.args[0], which, x, weight, pad)
        if isinstance(backward, pattern.Each):
            _fuse_each(graph, unpool, backward, arguments)
            continue
        with graph.inserting_before(backward):
            mask: Any = backward.args[-1]
            results = _call(graph, conv_pool.conv_pool_backward, *arguments, mask[0])
            _replace(graph, backward, results)
        graph.erase_node(unpool)
    return True


def _fuse_each(graph: fx.Graph, unpool: fx.Node, each: pattern.Each, arguments: Any) -> None:
    with graph.inserting_before(unpool):
        op, input_too = conv_pool.conv_pool_backward_each, each.input is not None
        of_input, of_weight, of_bias = _call(graph, op, *arguments, input_too)
        (weight,) = each.weight.users
        shape = weight.meta["val"].shape
        _replace(graph, each.weight, [of_input, _reshaped(graph, of_weight, shape), of_bias])
        if each.input is not None:
            _replace(graph, each.input, [of_input, of_weight, of_bias])
        if each.bias is not None:
            shape = each.bias.meta["val"].shape
            each.bias.replace_all_uses_with(_reshaped(graph, of_bias, shape))
            graph.erase_node(each.bias)


def _reshaped(graph: fx.Graph, node: fx.Node, shape: Sequence[int]) -> fx.Node:
    made = graph.call_function(aten.reshape.default, (node, list(shape)))
    made.meta["val"] = node.meta["val"].reshape(shape)
    return made


def _fuse_wide(graph: fx.Graph, pair: pattern.Pair, prepare: Prepare) -> bool:
    x, weight = pair.x, pair.weight
    gradients = [(u, b) for u, b in pair.gradients if isinstance(b, fx.Node)]
    if len(gradients) != len(pair.gradients) or not _is_wide(pair.conv.args, pool=True):
        return False
    values = x.meta["val"], weight.meta["val"]
    shape, of_backward = winograd.shape_of(*values, True), wide_conv.wide_conv_backward
    prepare(winograd, shape)
    if gradients and winograd.is_best_behind_pool(shape):
        of_backward = winograd.conv_pool_backward
        prepare(winograd, shape._replace(gradient=True))
    elif gradients:
        prepare(wide_conv, wide_conv.shape_of(*values))
    with graph.inserting_before(pair.pool):
        inputs = [_channels_last(graph, n) for n in (x, weight)]
        pooled, which = _call(graph, winograd.conv_pool, *inputs)
    for old in pair.pooled:
        old.replace_all_uses_with(pooled)
    for unpool, backward in gradients:
        with graph.inserting_before(backward):
            mask: Any = backward.args[-1]
            gradient, *inputs = (_channels_last(graph, n) for n in (unpool.args[0], x, weight))
            arguments = (gradient, which, *inputs, *mask[:2])
            _replace(graph, backward, _call(graph, of_backward, *arguments))
        graph.erase_node(unpool)
    return True


def _replace_wide(graph: fx.Graph, conv: fx.Node, prepare: Prepare) -> bool:
    """Replace a convolution without a pool."""
    if not _is_wide(conv.args, pool=False):
        return False
    arguments: Any = conv.args
    x, weight = arguments[:2]
    prepare(winograd, winograd.shape_of(x.meta["val"], weight.meta["val"], False))
    with graph.inserting_before(conv):
        inputs = [_channels_last(graph, n) for n in (x, weight)]
        (y,) = _call(graph, winograd.conv, *inputs)
        conv.replace_all_uses_with(_laid_out_like(graph, y, conv.meta["val"]))
    graph.erase_node(conv)
    return True


def _replace_wide_backward(graph: fx.Graph, backward: fx.Node, prepare: Prepare) -> None:
    """Replace the gradient of a convolution without a pool."""
    arguments: Any = backward.args
    gradient, x, weight, _, *settings, mask = arguments
    if mask[2] or not _is_plain(gradient, torch.bfloat16):
        return
    if not _is_wide((x, weight, None, *settings), pool=False):
        return
    prepare(winograd, winograd.shape_of(x.meta["val"], weight.meta["val"], False, True))
    with graph.inserting_before(backward):
        inputs = [_channels_last(graph, n) for n in (gradient, x, weight)]
        results = _call(graph, winograd.conv_backward, *inputs, *mask[:2])
        wanted = zip(results, backward.meta["val"], mask, strict=False)
        results = [_laid_out_like(graph, r, v) if is_wanted else r for r, v, is_wanted in wanted]
        _replace(graph, backward, results)


def _is_wide(arguments: Any, *, pool: bool) -> bool:
    """Whether these are the arguments of a convolution that ``winograd`` supports."""
    x, weight, bias, *settings = arguments
    return (
        bias is None
        and settings == [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
        and all(_is_plain(n, torch.bfloat16) for n in (x, weight))
        and weight.meta["val"].shape[2:] == (3, 3)
        and winograd.fits(winograd.shape_of(x.meta["val"], weight.meta["val"], pool))
        and winograd.why_not() is None
    )


def _write_before_permuting(graph: fx.Graph) -> None:
    """Compute images of few channels as [N, C, H, W] before a copy with channels last.

    Inductor would compute them along the last dimension, in vectors of three elements.
    """
    for node in graph.find_nodes(op="call_function", target=aten.permute.default):
        images: Any = node.args[0]
        value = images.meta["val"]
        if node.args[1] != [0, 2, 3, 1] or images.op == "placeholder" or value.device.type != "cpu":
            continue
        if value.shape[1] < _FEW and all(isinstance(size, int) for size in value.shape):
            with graph.inserting_before(node):
                strides = torch.empty(value.shape, device="meta").stride()
                node.update_arg(0, _with_strides(graph, images, strides))


_FEW = 16  # channels; fewer do not fill a vector


def _compute_in_float32(graph: fx.Graph) -> None:
    """Compute the remaining products of matrices and convolutions of bfloat16 in float32, where
    that is faster.
    """
    if winograd.why_not() is not None or not build.has_float16():
        return
    for op in _PRODUCTS:
        for node in graph.find_nodes(op="call_function", target=op):
            tensors = [a for a in node.args if isinstance(a, fx.Node)]
            values = [n.meta["val"] for n in tensors]
            if all(v.dtype == torch.bfloat16 and v.device.type == "cpu" for v in values):
                _in_float32(graph, node)


_PRODUCTS = (
    aten.bmm.default,
    aten.mm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
)


def _in_float32(graph: fx.Graph, node: fx.Node) -> None:
    """Convert the tensors that an operation takes to float32, and its results to bfloat16."""

    def convert(tensor: fx.Node, dtype: torch.dtype) -> fx.Node:
        made = graph.call_function(torch.ops.prims.convert_element_type.default, (tensor, dtype))
        made.meta["val"] = tensor.meta["val"].to(dtype)
        return made

    with graph.inserting_before(node):
        tensors = [a for a in node.args if isinstance(a, fx.Node)]
        wide = {tensor: convert(tensor, torch.float32) for tensor in dict.fromkeys(tensors)}
    node.args = tuple(wide[a] if isinstance(a, fx.Node) else a for a in node.args)
    value = node.meta["val"]
    if isinstance(value, Tensor):
        node.meta["val"] = value.to(torch.float32)
        results = [node]
    else:
        node.meta["val"] = tuple(v if v is None else v.to(torch.float32) for v in value)
        results = list(node.users)
    for result in results:
        if (of_result := result.meta["val"]) is None:
            continue
        result.meta["val"] = of_result.to(torch.float32)
        with graph.inserting_after(result):
            narrow = convert(result, torch.bfloat16)
        result.replace_all_uses_with(
            narrow, delete_user_cb=lambda user, own=narrow: user is not own
        )


def _is_plain(node: Any, dtype: torch.dtype) -> bool:
    """Whether a node is a tensor of this dtype on the CPU with a static shape."""
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.dtype == dtype
        and value.device.type == "cpu"
        and all(isinstance(size, int) for size in value.shape)
        and value.dim() in (1, 4)
    )


def _channels_last(graph: fx.Graph, node: Any) -> fx.Node:
    """The same values with channels last."""
    value = node.meta["val"]
    strides = torch.empty(value.shape, device="meta", memory_format=torch.channels_last).stride()
    return _with_strides(graph, node, strides)


def _laid_out_like(graph: fx.Graph, node: fx.Node, value: Tensor) -> fx.Node:
    """The same values with the strides of ``value``, which views in the graph may rely on."""
    if node.meta["val"].stride() == value.stride():
        return node
    return _with_strides(graph, node, value.stride())


def _with_strides(graph: fx.Graph, node: Any, strides: Sequence[int]) -> fx.Node:
    from torch._inductor.inductor_prims import force_stride_order

    value = node.meta["val"]
    made = graph.call_function(force_stride_order, (node, list(strides)))
    made.meta["val"] = value.new_empty_strided(value.shape, strides)
    return made


def _call(graph: fx.Graph, op: Any, *arguments: Any) -> list[fx.Node]:
    """Call an operation in a graph; return the nodes of its results, with their shapes."""
    node = graph.call_function(op, arguments)
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments]
    with next(v for v in values if isinstance(v, FakeTensor)).fake_mode:
        node.meta["val"] = op(*values)
    if isinstance(node.meta["val"], Tensor):
        return [node]
    results = []
    for i, value in enumerate(node.meta["val"]):
        results.append(graph.call_function(operator.getitem, (node, i)))
        results[-1].meta["val"] = value
    return results


def _replace(graph: fx.Graph, node: fx.Node, results: list[fx.Node]) -> None:
    """Replace the results of a node."""
    for item in list(node.users):
        number: Any = item.args[1]
        item.replace_all_uses_with(results[number])
        graph.erase_node(item)
    graph.erase_node(node)


def _decompose_remaining(graph: fx.Graph) -> None:
    """Decompose what ``backends`` left and no kernel replaced, except pools in float32."""
    from torch._inductor import lowering  # noqa: F401  # needed by decompositions
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    table = select_decomp_table()
    for op in (*pattern.POOLING, *norm_gelu.GELUS):
        for node in graph.find_nodes(op="call_function", target=op):
            inputs = [a for a in node.args if isinstance(a, fx.Node)]
            values = [n.meta["val"] for n in inputs]
            is_pool = op in pattern.POOLING
            if op not in table or (is_pool and not _may_be_wide(values[0])):
                continue

            def decomposed(*tensors: Tensor, node: fx.Node = node) -> Any:
                left = iter(tensors)
                arguments = [next(left) if isinstance(a, fx.Node) else a for a in node.args]
                return node.target(*arguments, **node.kwargs)  # type: ignore[operator]

            with values[0].fake_mode:
                module = make_fx(decomposed, decomposition_table=table)(*values)
            arguments = dict(zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True))
            with graph.inserting_before(node):
                result: Any = graph.graph_copy(module.graph, arguments)
            if isinstance(result, fx.Node):
                node.replace_all_uses_with(result)
                graph.erase_node(node)
            else:
                _replace(graph, node, list(result))
