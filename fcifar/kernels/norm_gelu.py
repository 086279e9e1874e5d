"""Batch norm and GELU of bfloat16 images with channels last, in two passes each way.

Four operations of torch, by ``norm_gelu.c``, and ``fuse``, which inserts them into a graph of
elementary operations. There, whatever the normalisation is, GELU's argument is

    y = scale * x + shift,    with a scale and a shift for each channel,

and the gradient of x is affine in x and in ``g = dz * gelu'(y)``, with coefficients that depend on
the sums of g and of g * x. ``fuse`` reads scale, shift and those coefficients off the graph.
"""

import ctypes
import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from fcifar.kernels import build

SOURCE = Path(__file__).with_name("norm_gelu.c")
LAST = torch.channels_last
MOST = 2048  # channels
CHANNELS = 8  # the number of channels must be a multiple
aten, prims = torch.ops.aten, torch.ops.prims


@functools.cache
def library() -> ctypes.CDLL:
    """Load the kernels; raises as ``build.load``."""
    made = build.load(SOURCE, {})
    for name, pointers in _POINTERS.items():
        function = getattr(made, name)
        function.argtypes = [*[ctypes.c_int64] * 2, *[ctypes.c_void_p] * pointers]
    made.norm_gelu.restype = made.norm_gelu_backward.restype = None
    return made


_POINTERS = {"norm_gelu": 4, "norm_gelu_backward": 8, "norm_gelu_sums": 6, "moments": 3}


# Operations --------------------------------------------------------------------------------------


def _call(name: str, *tensors: Tensor) -> None:
    """Call a kernel. Tensors of four dimensions have their channels last."""
    images = next(t for t in tensors if t.dim() == 4)
    channels = images.shape[1]
    rows = images.numel() // channels
    if getattr(library(), name)(rows, channels, *(t.data_ptr() for t in tensors)):
        raise MemoryError("no memory for the sums of each thread")


def _dense(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous(memory_format=LAST) if t.dim() == 4 else t.contiguous() for t in tensors]


def _like(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=LAST)


def _two_sums(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1:2]
    return x.new_empty(channels, dtype=torch.float32), x.new_empty(channels, dtype=torch.float32)


def _images(name: str) -> Callable[..., Tensor]:
    def call(*tensors: Tensor) -> Tensor:
        result = _like(tensors[0])
        _call(name, *_dense(*tensors), result)
        return result

    return call


def _sums(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        results = _two_sums(*tensors)
        _call(name, *_dense(*tensors), *results)
        return results

    return call


_TAGS = (torch.Tag.flexible_layout,)
norm_gelu = build.define(
    "norm_gelu(Tensor x, Tensor scale, Tensor shift) -> Tensor",
    *(_images("norm_gelu"), _like, _TAGS),
)
"""x [N, C, H, W] bfloat16, scale, shift [C] float32 -> gelu(scale * x + shift), bfloat16."""
norm_gelu_sums = build.define(
    "norm_gelu_sums(Tensor dz, Tensor x, Tensor scale, Tensor shift) -> (Tensor, Tensor)",
    *(_sums("norm_gelu_sums"), _two_sums, _TAGS),
)
"""dz, x -> the sums of g = dz * gelu'(scale * x + shift), and of g * x, float32 [C]."""
norm_gelu_backward = build.define(
    "norm_gelu_backward(Tensor dz, Tensor x, Tensor scale, Tensor shift, Tensor a, Tensor b, "
    "Tensor c) -> Tensor",
    *(_images("norm_gelu_backward"), _like, _TAGS),
)
"""dz, x and six float32 [C] -> a * g + b * x + c, bfloat16."""
moments = build.define(
    "moments(Tensor x) -> (Tensor, Tensor)", *(_sums("moments"), _two_sums, _TAGS)
)
"""x [N, C, H, W] bfloat16 -> the variance, without correction, and the mean, float32 [C]."""


GELUS = (aten.gelu.default, aten.gelu_backward.default)


def supports(values: Tensor) -> bool:
    """Whether GELU of values like these may be replaced."""
    return (
        values.dtype == torch.bfloat16
        and values.device.type == "cpu"
        and values.dim() >= 4
        and all(isinstance(size, int) for size in values.shape)
        and 0 < values.shape[-3] <= MOST
        and values.shape[-3] % CHANNELS == 0
        and build.why_not_bfloat16() is None
    )


# In a graph --------------------------------------------------------------------------------------

Coefficient = Any  # a number, a node with a value for each channel, or (operation, left, right)


class Affine(NamedTuple):
    """``scale * x + shift``, where x is a bfloat16 node."""

    x: fx.Node
    scale: Coefficient
    shift: Coefficient


def fuse(graph: fx.Graph) -> int:
    """Replace each GELU of normalised images, its gradient, and moments; return their number."""
    if build.why_not_bfloat16() is not None:
        return 0
    count = 0
    for node in graph.find_nodes(op="call_function", target=aten.gelu_backward.default):
        count += _fuse_backward(graph, node)
    for node in graph.find_nodes(op="call_function", target=aten.gelu.default):
        count += _fuse_forward(graph, node)
    for node in graph.find_nodes(op="call_function", target=aten.var_mean.correction):
        count += _fuse_moments(graph, node)
    graph.eliminate_dead_code()
    return count


def _fuse_forward(graph: fx.Graph, node: fx.Node) -> bool:
    argument: Any = node.args[0]
    if node.kwargs.get("approximate", "none") != "none" or (y := _argument(argument)) is None:
        return False
    with graph.inserting_before(node):
        channels = [_emit(graph, c, y.x) for c in (y.scale, y.shift)]
        made = _add(graph, norm_gelu, _flat(graph, y.x), *channels)
        result = _shaped(graph, made, node.meta["val"])
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return True


def _fuse_backward(graph: fx.Graph, node: fx.Node) -> bool:
    dz, argument = node.args
    if node.kwargs.get("approximate", "none") != "none" or (y := _argument(argument)) is None:
        return False
    if not _is_image(dz):
        return False
    if (y.scale, y.shift) == (1.0, 0.0):
        with graph.inserting_before(node):
            dx = _emit_backward(graph, dz, y, (1.0, 0.0, 0.0))
            result = _shaped(graph, dx, node.meta["val"])
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        return True
    wide = _only_user(node)
    if wide is None or not _converts(wide, torch.float32):
        return False
    found = _gradient_of(wide, y.x)
    if found is None:
        return False
    of_g, of_gx, dx, coefficients = found
    with graph.inserting_before(node):
        channels = [_emit(graph, c, y.x) for c in (y.scale, y.shift)]
        call = _add(graph, norm_gelu_sums, *(_flat(graph, n) for n in (dz, y.x)), *channels)
        for i, old in enumerate((of_g, of_gx)):
            part = graph.call_function(operator.getitem, (call, i))
            part.meta["val"] = call.meta["val"][i]
            old.replace_all_uses_with(_shaped(graph, part, old.meta["val"]))
    with graph.inserting_before(dx):
        result = _shaped(graph, _emit_backward(graph, dz, y, coefficients), dx.meta["val"])
    dx.replace_all_uses_with(result)
    return True


def _emit_backward(graph: fx.Graph, dz: Any, y: Affine, coefficients: Sequence[Any]) -> fx.Node:
    channels = [_emit(graph, c, y.x) for c in (y.scale, y.shift, *coefficients)]
    return _add(graph, norm_gelu_backward, *(_flat(graph, n) for n in (dz, y.x)), *channels)


def _fuse_moments(graph: fx.Graph, node: fx.Node) -> bool:
    """Replace variance and mean, and the mean alone, of the same images."""
    wide: Any = node.args[0]
    if node.kwargs.get("correction") != 0 or not _is_over_images(node, wide):
        return False
    if not _converts(wide, torch.float32) or not _is_image(x := wide.args[0]):
        return False
    means = [u for u in wide.users if u.target is aten.mean.dim and _is_over_images(u, wide)]
    with graph.inserting_before(node):
        call = _add(graph, moments, _flat(graph, x))
        parts = [graph.call_function(operator.getitem, (call, i)) for i in range(2)]
        for part, value in zip(parts, call.meta["val"], strict=True):
            part.meta["val"] = value
        for item in list(node.users):
            number: Any = item.args[1]
            item.replace_all_uses_with(_shaped(graph, parts[number], item.meta["val"]))
            graph.erase_node(item)
    for mean in means:
        with graph.inserting_before(mean):
            mean.replace_all_uses_with(_shaped(graph, parts[1], mean.meta["val"]))
    graph.erase_node(node)
    return True


def _argument(node: Any) -> Affine | None:
    """What GELU is applied to: a convolution's result, or one that is scaled and shifted."""
    if _is_image(node) and node.target in _MADE:
        return Affine(node, 1.0, 0.0)
    if not _converts(node, torch.bfloat16):
        return None
    roots = [n for n in _reach(node.args[0]) if _converts(n, torch.float32)]
    roots = [n for n in roots if _is_image(n.args[0]) and _shape(n) == _shape(node)]
    if len(roots) != 1:
        return None
    terms = _terms(node.args[0], roots, _shape(node))
    if terms is None:
        return None
    x: Any = roots[0].args[0]
    return Affine(x, terms.get(roots[0], 0.0), terms.get(None, 0.0))


def _gradient_of(wide: fx.Node, x: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, Any] | None:
    """From g in float32: its sum, that of g * x, the gradient of x, and its three coefficients."""
    roots = [u for u in x.users if _converts(u, torch.float32)]
    sums: list[fx.Node] = []
    products: list[fx.Node] = []
    others: list[fx.Node] = []
    for user in wide.users:
        if _is_over_images(user, wide) and user.target is aten.sum.dim_IntList:
            sums.append(user)
        elif user.target is aten.mul.Tensor and any(root in user.args for root in roots):
            products.append(user)
        else:
            others.append(user)
    if (len(sums), len(products), len(others)) != (1, 1, 1):
        return None
    of_product = _only_user(products[0])
    if of_product is None or of_product.target is not aten.sum.dim_IntList:
        return None
    dx: fx.Node | None = others[0]
    while dx is not None and not _converts(dx, torch.bfloat16):
        dx = _only_user(dx)
    if dx is None or not _is_over_images(of_product, products[0]):
        return None
    terms = _terms(dx.args[0], [wide, *roots], _shape(wide))
    if terms is None:
        return None
    of_x: Coefficient = 0.0
    for root in roots:
        of_x = _plus(of_x, terms.get(root, 0.0))
    return sums[0], of_product, dx, (terms.get(wide, 0.0), of_x, terms.get(None, 0.0))


def _terms(node: Any, leaves: Sequence[fx.Node], shape: Sequence[int]) -> dict[Any, Any] | None:
    """The coefficients of ``leaves`` in a node, and the rest (None), if it is affine in them."""
    if isinstance(node, int | float):
        return {None: float(node)}
    if node in leaves:
        return {node: 1.0}
    if _is_of_channels(node, shape):
        return {None: node}
    if node.target is aten.expand.default:
        return _terms(node.args[0], leaves, shape)
    if node.target not in _ARITHMETIC or node.kwargs:
        return None
    left, right = (_terms(argument, leaves, shape) for argument in node.args)
    if left is None or right is None:
        return None
    kind = _ARITHMETIC[node.target]
    if kind in ("add", "sub"):
        sign = 1.0 if kind == "add" else -1.0
        keys = dict.fromkeys([*left, *right])
        return {k: _plus(left.get(k, 0.0), _times(sign, right.get(k, 0.0))) for k in keys}
    if kind == "div":
        if list(right) != [None] or not isinstance(right[None], float):
            return None
        right = {None: 1 / right[None]}
    if list(left) == [None]:
        left, right = right, left
    if list(right) != [None]:
        return None
    return {key: _times(value, right[None]) for key, value in left.items()}


_ARITHMETIC = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.mul.Scalar: "mul",
    aten.div.Scalar: "div",
}


def _plus(left: Coefficient, right: Coefficient) -> Coefficient:
    if isinstance(left, float) and isinstance(right, float):
        return left + right
    if left == 0.0 or right == 0.0:
        return right if left == 0.0 else left
    return (aten.add.Tensor, left, right)


def _times(left: Coefficient, right: Coefficient) -> Coefficient:
    if isinstance(left, float) and isinstance(right, float):
        return left * right
    if 1.0 in (left, right):
        return right if left == 1.0 else left
    return 0.0 if 0.0 in (left, right) else (aten.mul.Tensor, left, right)


def _emit(graph: fx.Graph, coefficient: Coefficient, x: fx.Node) -> fx.Node:
    """A node with a coefficient for each channel, float32 [C]."""
    channels = _shape(x)[-3]
    if isinstance(coefficient, float):
        settings = {"dtype": torch.float32, "device": x.meta["val"].device}
        made = graph.call_function(aten.full.default, ([channels], coefficient), settings)
        made.meta["val"] = x.meta["val"].new_empty((channels,), dtype=torch.float32)
        return made
    if isinstance(coefficient, fx.Node):
        value = coefficient.meta["val"]
        if value.dtype != torch.float32:
            coefficient = _add(
                graph, prims.convert_element_type.default, coefficient, torch.float32
            )
        if value.numel() == channels:
            return _shaped(graph, coefficient, value.new_empty((channels,), dtype=torch.float32))
        return _add(
            graph,
            aten.expand.default,
            _add(graph, aten.reshape.default, coefficient, [1]),
            [channels],
        )
    op, *sides = coefficient
    if isinstance(sides[0], float):
        sides.reverse()  # both operations commute
    nodes = [s if isinstance(s, float) else _emit(graph, s, x) for s in sides]
    return _add(graph, op, *nodes)


def _add(graph: fx.Graph, op: Any, *arguments: Any) -> fx.Node:
    """Call an operation in a graph, and give the node its value."""
    made = graph.call_function(op, arguments)
    values = [a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments]
    with next(v for v in values if isinstance(v, FakeTensor)).fake_mode:
        made.meta["val"] = op(*values)
    return made


def _shaped(graph: fx.Graph, node: fx.Node, like: Tensor) -> fx.Node:
    if node.meta["val"].shape == like.shape:
        return node
    return _add(graph, aten.reshape.default, node, list(like.shape))


def _flat(graph: fx.Graph, node: Any) -> fx.Node:
    """Images [..., C, H, W] as [N, C, H, W] with channels last."""
    from torch._inductor.inductor_prims import force_stride_order

    shape = _shape(node)
    if len(shape) != 4:
        node = _add(graph, aten.reshape.default, node, [-1, *shape[-3:]])
    value = node.meta["val"]
    strides = torch.empty(value.shape, device="meta", memory_format=LAST).stride()
    made = graph.call_function(force_stride_order, (node, list(strides)))
    made.meta["val"] = value.new_empty_strided(value.shape, strides)
    return made


def _is_image(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and supports(value)


def _is_of_channels(node: fx.Node, shape: Sequence[int]) -> bool:
    """Whether a node has one value for each channel of images of this shape, or a single one."""
    own = _shape(node)
    if len(own) > len(shape):
        return False
    aligned = [1] * (len(shape) - len(own)) + own
    return all(a == 1 or (i == len(shape) - 3 and a == shape[i]) for i, a in enumerate(aligned))


def _is_over_images(node: fx.Node, of: fx.Node) -> bool:
    """Whether a reduction of ``of`` leaves its channels."""
    rank = len(_shape(of))
    dims: Any = node.args[1] if len(node.args) > 1 else None
    if node.args[0] is not of or not isinstance(dims, list | tuple):
        return False
    return {d % rank for d in dims} == set(range(rank)) - {rank - 3}


def _reach(node: Any) -> list[fx.Node]:
    """The nodes that arithmetic leads to from a node."""
    seen: list[fx.Node] = []
    waiting = [node]
    while waiting:
        if not isinstance(one := waiting.pop(), fx.Node) or one in seen:
            continue
        seen.append(one)
        if one.target in _ARITHMETIC or one.target is aten.expand.default:
            waiting += one.args
    return seen


def _converts(node: Any, dtype: torch.dtype) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.target is prims.convert_element_type.default
        and node.args[1] == dtype
    )


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _shape(node: fx.Node) -> list[int]:
    return list(node.meta["val"].shape)


_MADE: tuple[Any, ...] = (aten.convolution.default, aten.view.default, aten.reshape.default)
