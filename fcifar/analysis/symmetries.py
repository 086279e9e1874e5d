"""The permutation symmetries of a model: which axes of which tensors number the same units.

If the units of a layer are put into another order, and the inputs of the layers that read them
accordingly, the parameters are others and the function is the same. ``find`` finds these orders for
any model. It follows the axes of all parameters and buffers through ``model.apply``, on the meta
device, and unifies axes wherever an operation combines their elements one by one.

Entezari et al., "The role of permutation invariance in linear mode connectivity of neural
networks", https://arxiv.org/abs/2110.06296.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import random
from fcifar.analysis.axes import (
    FIXED,
    Axes,
    Axis,
    Part,
    Unification,
    fixed,
    length,
    reorder,
    size,
)
from fcifar.models import Model, Variables


class Group(NamedTuple):
    """Units that can be put into any order."""

    name: str  # of the first tensor that has an axis for them
    size: int  # >= 2


class Symmetries(NamedTuple):
    """The groups of a model, and where their units are."""

    groups: tuple[Group, ...]
    axes: dict[str, Axes]  # by the names of parameters and buffers; ``Part.group`` i is groups[i-1]
    fixed_by: tuple[str, ...]  # operations that are not understood, or that no order would survive


def find(model: Model) -> Symmetries:
    """Find all groups of units of a model that can be permuted without a change of its function.

    Convolutions, linear layers, normalisation, elementwise operations, pooling, residual
    connections, padding and concatenation with other channels, and ``flatten`` are followed. The
    heads of attention, grouped convolutions except depthwise ones, and operations that are not
    known keep their units in order; ``fixed_by`` names them.

    Raises:
        ValueError: ``apply`` needs values, and cannot run on the meta device.

    >>> symmetries = fcifar.analysis.symmetries.find(fcifar.models.conv3())
    >>> [(group.name, group.size) for group in symmetries.groups]
    [('conv1.weight', 16), ('conv2.weight', 32), ('conv3.weight', 64), ('fc1.weight', 500)]
    >>> symmetries.axes["fc1.weight"]  # a channel of conv3 is 4x4 inputs
    ((Part(group=4, size=500, outer=1, inner=1),), (Part(group=3, size=64, outer=1, inner=16),))
    """
    variables = model.init(random.key(0, device="meta"))
    tensors = {**variables.params, **variables.buffers}
    follow = _Follow()
    for value in tensors.values():
        follow.set(value, tuple(map(follow.units.fresh, value.shape)))
    try:
        with torch.device("meta"), torch.no_grad():
            images = torch.empty(2, 3, 32, 32)
            with follow:
                logits, _ = model.apply(variables, images)
    except RuntimeError as error:
        raise ValueError(
            "the model's forward pass depends on values, so that its units cannot be followed: "
            f"{str(error).splitlines()[0]}"
        ) from error
    follow.units.fix(follow.of(logits))
    axes = {name: tuple(map(follow.units.resolve, follow.of(v))) for name, v in tensors.items()}
    # Named by the tensor whose first axis they are, such as the weight of their layer.
    named = [(part, name) for name, parts in axes.items() for part in sum(parts[:1], ())]
    named += [(part, name) for name, parts in axes.items() for part in sum(parts[1:], ())]
    groups: dict[int, Group] = {}
    for part, name in named:
        if part.group != FIXED and part.size > 1:
            groups.setdefault(part.group, Group(name, part.size))
    numbers = {group: i for i, group in enumerate(groups, 1)}

    def numbered(axis: Axis) -> Axis:
        return tuple(
            part._replace(group=numbers[part.group])
            if part.group in numbers
            else Part(FIXED, length(part))
            for part in axis
        )

    found = {name: tuple(map(numbered, parts)) for name, parts in axes.items()}
    return Symmetries(tuple(groups.values()), found, tuple(sorted(follow.units.fixed_by)))


def permute(
    symmetries: Symmetries, permutations: Sequence[Tensor], variables: Variables
) -> Variables:
    """Put the units of each group into another order: unit ``i`` becomes unit ``permutation[i]``.

    Args:
        permutations: int64 [size] for each of ``symmetries.groups``, on the device of the
            variables.
        variables: of the model that the symmetries are of.

    >>> model = fcifar.models.lenet()
    >>> symmetries = fcifar.analysis.symmetries.find(model)
    >>> orders = [torch.arange(group.size).flip(0) for group in symmetries.groups]
    >>> variables = model.init(fcifar.random.key(0))
    >>> permuted = fcifar.analysis.symmetries.permute(symmetries, orders, variables)
    >>> torch.equal(permuted.params["conv1.bias"], variables.params["conv1.bias"].flip(0))
    True
    """

    def permuted(name: str, value: Tensor) -> Tensor:
        for dim, axis in enumerate(symmetries.axes[name]):
            value = reorder(value, dim, axis, permutations)
        return value

    return Variables(*({n: permuted(n, v) for n, v in part.items()} for part in variables))


class _Follow(TorchDispatchMode):
    """The axes of all tensors in a forward pass, from the rules of its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.units = Unification()
        self.seen: dict[int, tuple[Tensor, Axes]] = {}  # with the tensor, so that ids stay its own

    def of(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; those of a constant are fixed."""
        if id(tensor) not in self.seen:
            self.seen[id(tensor)] = tensor, tuple(map(fixed, tensor.shape))
        return self.seen[id(tensor)][1]

    def set(self, tensor: Tensor, axes: Axes) -> None:
        if id(tensor) in self.seen:  # changed in place
            for old, new in zip(self.of(tensor), axes, strict=True):
                self.units.unify(old, new)
        self.seen[id(tensor)] = tensor, axes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2].removesuffix("_")
        rule = _RULES.get(name)
        if rule is None and _is_elementwise(func):
            rule = _elementwise
        if rule is None and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        results = [x for x in _flat(output) if isinstance(x, Tensor)]
        call = _Call(self, name, _arguments(func, args, kwargs), results)
        for result, axes in zip(results, (rule or _unknown)(call), strict=True):
            self.set(result, axes)
        return output


def _flat(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return [each for value in values for each in _flat(value)]
    return [values]


def _arguments(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, with defaults."""
    schema = function._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return defaults | dict(zip((a.name for a in schema), args, strict=False)) | kwargs


def _is_elementwise(function: Any) -> bool:
    tags = function.tags
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


# Operations: what becomes of the axes of their arguments -----------------------------------------


class _Call(NamedTuple):
    """A call of an operation."""

    follow: _Follow
    name: str
    given: dict[str, Any]  # arguments by name
    results: list[Tensor]

    @property
    def units(self) -> Unification:
        return self.follow.units

    def axes(self) -> Axes:
        return self.follow.of(self.given["self"])

    def operands(self) -> list[Axes]:
        """Return the axes of all arguments that are tensors."""
        values = _flat(list(self.given.values()))
        return [self.follow.of(value) for value in values if isinstance(value, Tensor)]

    def dims(self, name: str = "dim") -> set[int]:
        """Return the dimensions of an argument; all of the tensor, if none are given."""
        dims, count = self.given.get(name), self.given["self"].ndim
        dims = [dims] if isinstance(dims, int) else dims
        return {dim % count for dim in dims} if dims and count else set(range(count))

    def without(self, axes: Axes, dims: Container[int]) -> list[Axes]:
        """Return the axes of the results, from which dimensions are gone or have a fixed order."""
        rest = tuple(axis for dim, axis in enumerate(axes) if dim not in dims)

        def ordered(shape: Sequence[int]) -> Axes:
            pairs = enumerate(zip(shape, axes, strict=True))
            return tuple(fixed(count) if dim in dims else axis for dim, (count, axis) in pairs)

        shapes = [result.shape for result in self.results]
        return [rest if len(shape) < len(axes) else ordered(shape) for shape in shapes]


_Rule = Callable[[_Call], Sequence[Axes]]


def _unknown(call: _Call) -> list[Axes]:
    """Keep everything in order."""
    for axes in call.operands():
        call.units.fix(axes, call.name)
    return [tuple(map(fixed, result.shape)) for result in call.results]


def _elementwise(call: _Call) -> list[Axes]:
    """Also softmax and layer norm, whose sums are the same in any order."""
    operands = call.operands()
    return [call.units.broadcast(result.shape, operands) for result in call.results]


def _uniform(call: _Call) -> list[Axes]:
    """A tensor of one value can be permuted in any way."""
    return [tuple(map(call.units.fresh, result.shape)) for result in call.results]


def _convolution(call: _Call) -> list[Axes]:
    images, weight, *bias = call.operands()
    outputs, inputs = weight[:2] if not call.given["transposed"] else weight[1::-1]
    groups, (result,) = call.given["groups"], call.results
    call.units.fix((*images[2:], *weight[2:]))  # pixels
    if groups == 1:
        call.units.unify(images[1], inputs)
    elif groups == result.shape[1] == size(images[1]) and not call.given["transposed"]:
        call.units.unify(images[1], outputs)  # depthwise
    else:
        call.units.fix((images[1], *weight[:2]), "grouped convolution")
        outputs = fixed(result.shape[1])
    for (each,) in bias:
        call.units.unify(outputs, each)
    return [(images[0], outputs, *map(fixed, result.shape[2:]))]


def _product(call: _Call) -> list[Axes]:
    """Products of matrices: a sum over the last axis of the left and the first of the right."""
    *added, left, right = call.operands()
    for one, other in zip((*left[:-2], left[-1]), right[:-1], strict=True):
        call.units.unify(one, other)
    product = (*left[:-1], right[-1])
    return [call.units.broadcast(result.shape, [product, *added]) for result in call.results]


def _channel_norm(call: _Call) -> list[Axes]:
    """Batch and group norm, with a mean and a scale for each channel."""
    images, *vectors = call.operands()
    if call.given.get("group", 1) not in (1, call.given.get("C")):
        call.units.fix((images[1],), call.name)
    for (vector,) in vectors:
        call.units.unify(images[1], vector)
    return [images, *(tuple(map(fixed, result.shape)) for result in call.results[1:])]


def _pooling(call: _Call) -> list[Axes]:
    """Pooling and interpolation of each channel alone."""
    axes = call.operands()[0]
    call.units.fix(axes[-2:])
    return call.without(axes, range(len(axes))[-2:])


def _reduction(call: _Call) -> list[Axes]:
    """Sums and the like, the same in any order."""
    return call.without(call.axes(), call.dims())


def _along(call: _Call) -> list[Axes]:
    """Operations that depend on the order along some dimensions, and not on that along others."""
    axes = call.axes()
    if len(call.operands()) > 1:
        return _unknown(call)
    dims = call.dims("dims" if "dims" in call.given else "dim")
    call.units.fix([axis for dim, axis in enumerate(axes) if dim in dims], call.name)
    return call.without(axes, dims)


# Operations that move elements -------------------------------------------------------------------


def _permute(call: _Call) -> list[Axes]:
    axes = call.axes()
    order = list(range(len(axes)))
    if "dims" in call.given:
        order = call.given["dims"]
    elif len(axes) > 1:
        first, second = call.given.get("dim0", 0), call.given.get("dim1", 1)
        order[first], order[second] = order[second], order[first]
    return [tuple(axes[dim] for dim in order)]


def _slice(call: _Call) -> list[Axes]:
    axes, (dim,) = call.axes(), call.dims()
    count = size(axes[dim])
    start, stop, step = slice(*(call.given[n] for n in ("start", "end", "step"))).indices(count)
    if step != 1:
        return _along(call)
    sizes = (start, stop - start, count - stop)
    pieces = call.units.cut(axes[dim], [n for n in sizes if n])
    return [(*axes[:dim], pieces[int(start > 0)], *axes[dim + 1 :])]


def _split(call: _Call) -> list[Axes]:
    axes, (dim,) = call.axes(), call.dims()
    pieces = call.units.cut(axes[dim], [result.shape[dim] for result in call.results])
    return [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces]


def _cat(call: _Call) -> list[Axes]:
    count = call.results[0].ndim
    dim = call.given["dim"] % count
    all_axes = [list(axes) for axes in call.operands() if len(axes) == count]
    joined = tuple(part for axes in all_axes for part in axes.pop(dim))
    for axes in all_axes[1:]:
        for first, other in zip(all_axes[0], axes, strict=True):
            call.units.unify(first, other)
    return [(*all_axes[0][:dim], joined, *all_axes[0][dim:])]


def _pad(call: _Call) -> list[Axes]:
    """Padding is of one value: its elements can be permuted in any way."""
    axes, pad = list(call.axes()), call.given["pad"]
    if min(pad, default=0) < 0:
        return _unknown(call)
    for back, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        around = [call.units.fresh(n) if n else () for n in (before, after)]
        axes[-back] = around[0] + axes[-back] + around[1]
    return [tuple(axes)]


def _reshape(call: _Call) -> list[Axes]:
    (result,) = call.results
    if call.given["self"].numel() != result.numel():  # of another dtype
        return _unknown(call)
    return [call.units.reshape(call.axes(), result.shape, call.name)]


_NAMES: dict[_Rule, str] = {
    _elementwise: "alias detach lift_fresh lift_fresh_copy _to_copy copy fill zero expand _softmax "
    "_log_softmax native_layer_norm",
    _uniform: "full zeros ones empty scalar_tensor new_full new_zeros new_ones new_empty full_like "
    "zeros_like ones_like empty_like",
    _convolution: "convolution",
    _product: "mm bmm addmm baddbmm",
    _channel_norm: "_native_batch_norm_legit_no_training native_group_norm",
    _pooling: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d reflection_pad2d replication_pad2d",
    _reduction: "mean sum amax amin prod var std var_mean linalg_vector_norm logsumexp",
    _along: "flip roll cumsum max min argmax argmin select unbind",
    _permute: "permute transpose t",
    _slice: "slice",
    _split: "split split_with_sizes",
    _cat: "cat",
    _pad: "constant_pad_nd",
    _reshape: "view _unsafe_view _reshape_alias squeeze unsqueeze",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}
