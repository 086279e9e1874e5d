"""The permutation symmetries of a model: which axes of which tensors number the same units.

If the units of a layer are put into another order, and the inputs of the layers that read them
accordingly, the parameters are others and the function is the same. ``find`` finds these orders for
any model. It follows the axes of all parameters and buffers through ``model.apply``, on the meta
device, and unifies axes wherever an operation combines their elements one by one.

Entezari et al., "The role of permutation invariance in linear mode connectivity of neural
networks", https://arxiv.org/abs/2110.06296.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import random
from fcifar.models import Model, Variables

FIXED = 0  # the group of elements whose order is given: of pixels, images, input channels, classes


class Part(NamedTuple):
    """``outer * size * inner`` elements of an axis; the middle of the three indices is the unit.

    A layer's outputs are ``Part(group, size)``. After ``flatten``, a channel is ``inner`` pixels.
    """

    group: int
    size: int
    outer: int = 1
    inner: int = 1


Axis = tuple[Part, ...]  # one after another
Axes = tuple[Axis, ...]  # of a tensor


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
        follow.set(value, tuple(follow.fresh(size) for size in value.shape))
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
    follow.fix(follow.of(logits))
    axes = {name: tuple(map(follow.resolve, follow.of(v))) for name, v in tensors.items()}
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
            part._replace(group=numbers[part.group]) if part.group in numbers else _still(part)
            for part in axis
        )

    found = {name: tuple(map(numbered, parts)) for name, parts in axes.items()}
    return Symmetries(tuple(groups.values()), found, tuple(sorted(follow.fixed_by)))


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


def reorder(value: Tensor, dim: int, axis: Axis, permutations: Sequence[Tensor]) -> Tensor:
    """Put the elements of one dimension into another order, see ``permute``."""
    if all(part.group == FIXED for part in axis):
        return value
    index, start = [], 0
    for part in axis:
        place = torch.arange(start, start + length(part), device=value.device)
        if part.group != FIXED:
            order = permutations[part.group - 1]
            place = place.view(part.outer, part.size, part.inner)[:, order].flatten()
        index.append(place)
        start += length(part)
    return value.index_select(dim, torch.cat(index))


# Axes --------------------------------------------------------------------------------------------


def length(part: Part) -> int:
    """Return the number of elements of a part."""
    return part.outer * part.size * part.inner


def _fixed(size: int) -> Axis:
    return (Part(FIXED, size),)


def _still(part: Part) -> Part:
    return Part(FIXED, length(part))


def _is_fixed(axis: Axis) -> bool:
    return all(part.group == FIXED for part in axis)


def _spread(axis: Axis, outer: int, inner: int) -> Axis:
    """Return the axis of the flattened index (i, element of ``axis``, j): i < outer, j < inner."""

    def widened(part: Part, outer: int) -> Part:
        wide = part._replace(outer=outer * part.outer, inner=part.inner * inner)
        return _still(wide) if part.group == FIXED else wide

    if len(axis) == 1:
        return (widened(axis[0], outer),)
    return tuple(widened(part, 1) for part in axis) * outer


def _narrowed(axis: Axis, outer: int, inner: int) -> Axis | None:
    """Return the axis whose ``_spread`` by outer and inner is ``axis``; None if there is none."""
    if len(axis) > 1 and outer > 1:
        return None
    if any(part.outer % outer for part in axis):
        return None
    if any((part.size if part.group == FIXED else part.inner) % inner for part in axis):
        return None
    return tuple(
        Part(FIXED, part.size // inner)
        if part.group == FIXED
        else part._replace(outer=part.outer // outer, inner=part.inner // inner)
        for part in axis
    )


class _Follow(TorchDispatchMode):
    """The axes of all tensors in a forward pass, and what is known of each group of units.

    A group is unbound, which means that its units can have any order so far, or bound to the parts
    that it turned out to consist of. To unify two axes is to bind groups until both are the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bound: dict[int, Axis] = {}
        self.count = FIXED
        self.seen: dict[int, tuple[Tensor, Axes]] = {}  # with the tensor, so that ids stay its own
        self.fixed_by: set[str] = set()

    def fresh(self, size: int) -> Axis:
        self.count += 1
        return (Part(self.count, size),)

    def resolve(self, axis: Axis) -> Axis:
        """Return the axis in terms of unbound groups, with neighbouring fixed parts as one."""
        parts: list[Part] = []
        for part in axis:
            known = self.bound.get(part.group)
            found = (part,) if known is None else self.resolve(known)
            for each in found if known is None else _spread(found, part.outer, part.inner):
                if parts and parts[-1].group == each.group == FIXED:
                    parts[-1] = Part(FIXED, parts[-1].size + each.size)
                else:
                    parts.append(each)
        return tuple(parts)

    def unify(self, first: Axis, second: Axis) -> None:
        """Let two axes of one length number the same elements."""
        while difference := self._difference(self.resolve(first), self.resolve(second)):
            group, parts = difference
            self.bound[group] = parts

    def _difference(self, first: Axis, second: Axis) -> tuple[int, Axis] | None:
        """Return a group to bind, and to what, so that two axes differ less."""
        left, right = list(first), list(second)
        while left and right:
            one, other = left.pop(0), right.pop(0)
            longer, rest = (one, left) if length(one) > length(other) else (other, right)
            shared = min(length(one), length(other))
            if length(longer) > shared:
                if longer.group != FIXED:
                    return longer.group, self._divided(longer, shared)
                rest.insert(0, Part(FIXED, longer.size - shared))
                one, other = (
                    Part(FIXED, shared) if part is longer else part for part in (one, other)
                )
            if one == other:
                continue
            if one.group == FIXED:
                one, other = other, one
            if one.group != other.group and one == Part(one.group, one.size):
                return one.group, (other,)
            if other.group not in (FIXED, one.group):
                if other == Part(other.group, other.size):
                    return other.group, (one,)
                if (one.outer, one.inner) == (other.outer, other.inner):
                    return one.group, (Part(other.group, other.size),)
            return one.group, _fixed(one.size)
        return None

    def _divided(self, part: Part, count: int) -> Axis:
        """Return two groups for one, cut after ``count`` elements; fixed, if that cuts a unit."""
        if part.outer > 1 or count % part.inner:
            return _fixed(part.size)
        size = count // part.inner
        return self.fresh(size) + self.fresh(part.size - size)

    def fix(self, axes: Iterable[Axis], operation: str = "") -> None:
        """Let axes keep their order, because of an operation."""
        for axis in axes:
            for part in self.resolve(axis):
                if part.group != FIXED:
                    self.bound[part.group] = _fixed(part.size)
                    if operation and part.size > 1:
                        self.fixed_by.add(operation)

    def cut(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Return consecutive pieces of an axis."""
        pieces = tuple(part for size in sizes for part in self.fresh(size))
        self.unify(axis, pieces)
        return [self.resolve((piece,)) for piece in pieces]

    def of(self, tensor: Tensor) -> Axes:
        """Return the axes of a tensor; those of a constant are fixed."""
        if id(tensor) not in self.seen:
            self.seen[id(tensor)] = tensor, tuple(map(_fixed, tensor.shape))
        return self.seen[id(tensor)][1]

    def set(self, tensor: Tensor, axes: Axes) -> None:
        if id(tensor) in self.seen:  # changed in place
            for old, new in zip(self.of(tensor), axes, strict=True):
                self.unify(old, new)
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

    def axes(self, name: str) -> Axes:
        return self.follow.of(self.given[name])

    def tensors(self) -> list[Tensor]:
        return [x for x in _flat(list(self.given.values())) if isinstance(x, Tensor)]

    def fix(self, axes: Iterable[Axis]) -> None:
        self.follow.fix(axes, self.name)

    def dims(self, count: int, name: str = "dim") -> set[int]:
        """Return the dimensions of an argument with ``count`` of them; all, if none are given."""
        dims = self.given.get(name)
        dims = [dims] if isinstance(dims, int) else dims
        return {dim % count for dim in dims} if dims else set(range(count))


_Rule = Callable[[_Call], Sequence[Axes]]


def _unknown(call: _Call) -> list[Axes]:
    """Keep everything in order."""
    for tensor in call.tensors():
        call.fix(call.follow.of(tensor))
    return [tuple(map(_fixed, result.shape)) for result in call.results]


def _elementwise(call: _Call) -> list[Axes]:
    operands = [call.follow.of(tensor) for tensor in call.tensors()]
    return [_broadcast(call.follow, result.shape, operands) for result in call.results]


def _broadcast(follow: _Follow, shape: Sequence[int], operands: Sequence[Axes]) -> Axes:
    """Unify the axes of all operands, aligned at the last one; those of length 1 are repeated."""
    axes: list[Axis] = []
    for back, size in enumerate(reversed(shape), 1):
        aligned = [each[-back] for each in operands if len(each) >= back]
        own = [axis for axis in aligned if sum(map(length, axis)) == size] or [follow.fresh(size)]
        for other in own[1:]:
            follow.unify(own[0], other)
        axes.insert(0, follow.resolve(own[0]))
    return tuple(axes)


def _uniform(call: _Call) -> list[Axes]:
    """A tensor of one value can be permuted in any way."""
    return [tuple(map(call.follow.fresh, result.shape)) for result in call.results]


def _convolution(call: _Call) -> list[Axes]:
    images, weight = call.axes("input"), call.axes("weight")
    call.follow.fix((*images[2:], *weight[2:]))  # pixels
    outputs, inputs = weight[:2] if not call.given["transposed"] else weight[1::-1]
    groups, bias = call.given["groups"], call.given["bias"]
    count = call.results[0].shape[1]
    if groups == 1:
        call.follow.unify(images[1], inputs)
    elif groups == count == call.given["input"].shape[1] and not call.given["transposed"]:
        call.follow.unify(images[1], outputs)  # depthwise
    else:
        call.follow.fix((images[1], *weight[:2]), "grouped convolution")
        outputs = _fixed(count)
    if bias is not None:
        call.follow.unify(outputs, call.axes("bias")[0])
    return [(images[0], outputs, *map(_fixed, call.results[0].shape[2:]))]


def _product(call: _Call) -> list[Axes]:
    """Products of matrices, which sum over the last axis of the left and one of the right."""
    left, right = call.tensors()[-2:]
    one, other = call.follow.of(left), call.follow.of(right)
    summed = max(right.ndim - 2, 0)
    call.follow.unify(one[-1], other[summed])
    for batch, same in zip(one[: left.ndim - 2], other, strict=False):
        call.follow.unify(batch, same)
    return [one[:-1] + other[summed + 1 :]]


def _sum_and_product(call: _Call) -> list[Axes]:
    operands = [*_product(call), call.axes("self")]
    return [_broadcast(call.follow, call.results[0].shape, operands)]


def _layer_norm(call: _Call) -> list[Axes]:
    """Mean and variance of all units are the same in any order."""
    operands = [call.follow.of(tensor) for tensor in call.tensors()]
    axes = _broadcast(call.follow, call.results[0].shape, operands)
    return [axes, *(_reduced(axes, result.shape) for result in call.results[1:])]


def _batch_norm(call: _Call) -> list[Axes]:
    images, *vectors = map(call.follow.of, call.tensors())
    for (vector,) in vectors:
        call.follow.unify(images[1], vector)
    return [images, *(tuple(map(_fixed, result.shape)) for result in call.results[1:])]


def _group_norm(call: _Call) -> list[Axes]:
    images, *vectors = map(call.follow.of, call.tensors())
    if call.given["group"] not in (1, call.given["C"]):
        call.fix((images[1],))
    for (vector,) in vectors:
        call.follow.unify(images[1], vector)
    return [images, *(tuple(map(_fixed, result.shape)) for result in call.results[1:])]


def _of_pixels(call: _Call) -> list[Axes]:
    """Pooling and interpolation, of each channel alone."""
    axes = call.axes("input" if "input" in call.given else "self")
    call.follow.fix(axes[-2:])
    return [(*axes[:-2], *map(_fixed, result.shape[-2:])) for result in call.results]


def _reduction(call: _Call) -> list[Axes]:
    """Sums and the like, the same in any order."""
    axes = call.axes("self")
    if not axes:
        return [() for _ in call.results]
    dims = call.dims(len(axes))
    if call.given.get("keepdim"):
        kept = tuple(_fixed(1) if dim in dims else axis for dim, axis in enumerate(axes))
    else:
        kept = tuple(axis for dim, axis in enumerate(axes) if dim not in dims)
    return [kept for _ in call.results]


def _along(call: _Call) -> list[Axes]:
    """Operations that depend on the order along some dimensions, and not on that along others."""
    if len(call.tensors()) > 1:
        return _unknown(call)
    axes = call.axes("self")
    dims = call.dims(len(axes), "dims" if "dims" in call.given else "dim")
    call.fix(axis for dim, axis in enumerate(axes) if dim in dims)
    rest = tuple(axis for dim, axis in enumerate(axes) if dim not in dims)
    return [axes if result.ndim == len(axes) else rest for result in call.results]


def _reduced(axes: Axes, shape: Sequence[int]) -> Axes:
    return tuple(_fixed(1) if n == 1 else axis for axis, n in zip(axes, shape, strict=True))


# Operations that move elements -------------------------------------------------------------------


def _permute(call: _Call) -> list[Axes]:
    axes = call.axes("self")
    order = list(range(len(axes)))
    if "dims" in call.given:
        order = call.given["dims"]
    elif len(axes) > 1:
        first, second = call.given.get("dim0", 0), call.given.get("dim1", 1)
        order[first], order[second] = order[second], order[first]
    return [tuple(axes[dim] for dim in order)]


def _squeeze(call: _Call) -> list[Axes]:
    shape = call.given["self"].shape
    dims = call.dims(len(shape)) if shape else set()
    axes = enumerate(call.axes("self"))
    return [tuple(axis for dim, axis in axes if shape[dim] != 1 or dim not in dims)]


def _unsqueeze(call: _Call) -> list[Axes]:
    axes, dim = call.axes("self"), call.given["dim"] % call.results[0].ndim
    return [(*axes[:dim], _fixed(1), *axes[dim:])]


def _expand(call: _Call) -> list[Axes]:
    return [_broadcast(call.follow, call.results[0].shape, [call.axes("self")])]


def _slice(call: _Call) -> list[Axes]:
    axes, size, (result,) = list(call.axes("self")), call.given["self"].shape, call.results
    dim = call.given["dim"] % len(axes)
    start, stop, step = slice(*(call.given[n] for n in ("start", "end", "step"))).indices(size[dim])
    if step == 1:
        sizes = (start, stop - start, size[dim] - stop)
        pieces = call.follow.cut(axes[dim], [n for n in sizes if n])
        axes[dim] = pieces[int(start > 0)]
    else:
        call.fix((axes[dim],))
        axes[dim] = _fixed(result.shape[dim])
    return [tuple(axes)]


def _select(call: _Call) -> list[Axes]:
    axes = list(call.axes("self"))
    call.fix((axes.pop(call.given["dim"] % len(axes)),))
    return [tuple(axes) for _ in call.results]


def _split(call: _Call) -> list[Axes]:
    axes = call.axes("self")
    dim = call.given["dim"] % len(axes)
    pieces = call.follow.cut(axes[dim], [result.shape[dim] for result in call.results])
    return [(*axes[:dim], piece, *axes[dim + 1 :]) for piece in pieces]


def _cat(call: _Call) -> list[Axes]:
    tensors = call.given["tensors"]
    dim = call.given["dim"] % call.results[0].ndim
    all_axes = [list(call.follow.of(t)) for t in tensors if t.ndim == call.results[0].ndim]
    joined = tuple(part for axes in all_axes for part in axes.pop(dim))
    for axes in all_axes[1:]:
        for first, other in zip(all_axes[0], axes, strict=True):
            call.follow.unify(first, other)
    return [(*all_axes[0][:dim], joined, *all_axes[0][dim:])]


def _pad(call: _Call) -> list[Axes]:
    """Padding is of one value: its elements can be permuted in any way."""
    axes, pad = list(call.axes("self")), call.given["pad"]
    for back in range(len(pad) // 2):
        before, after = pad[2 * back : 2 * back + 2]
        if min(before, after) < 0:
            return _unknown(call)
        around = [call.follow.fresh(n) if n else () for n in (before, after)]
        axes[-1 - back] = around[0] + axes[-1 - back] + around[1]
    return [tuple(axes)]


def _reshape(call: _Call) -> list[Axes]:
    """Match the shortest runs of dimensions before and after that have equally many elements."""
    if call.given["self"].numel() != call.results[0].numel():  # of another dtype
        return _unknown(call)
    before, after = [*zip(call.given["self"].shape, call.axes("self"), strict=True)], []
    sizes = list(call.results[0].shape)
    while before or sizes:
        old, new = before[:1], sizes[:1]
        del before[:1], sizes[:1]
        while (count := math.prod(n for n, _ in old)) != (wanted := math.prod(new)):
            if count < wanted:
                old.append(before.pop(0))
            else:
                new.append(sizes.pop(0))
        after += _split_axis(call, _joined(call, old), new)
    return [tuple(after)]


def _joined(call: _Call, run: Sequence[tuple[int, Axis]]) -> Axis:
    """Return the axis that a run of dimensions becomes; only one of them may have free units."""
    axes = [call.follow.resolve(axis) for _, axis in run]
    free = [i for i, axis in enumerate(axes) if not _is_fixed(axis) and run[i][0] > 1]
    sizes = [size for size, _ in run]
    if len(free) == 1:
        (i,) = free
        return _spread(axes[i], math.prod(sizes[:i]), math.prod(sizes[i + 1 :]))
    call.fix(axes)
    return _fixed(math.prod(sizes))


def _split_axis(call: _Call, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Return the axes that one becomes: all fixed, except for one that has all units of it."""
    if len(sizes) == 1:
        return [axis]
    axis, result = call.follow.resolve(axis), list(map(_fixed, sizes))
    for i, size in enumerate(sizes):
        found = _narrowed(axis, math.prod(sizes[:i]), math.prod(sizes[i + 1 :]))
        if size > 1 and found is not None and not _is_fixed(axis):
            result[i] = found
            return result
    call.fix((axis,))
    return result


def _named(rule: _Rule, names: str) -> dict[str, _Rule]:
    return dict.fromkeys(names.split(), rule)


_RULES: dict[str, _Rule] = {
    **_named(
        _elementwise,
        "alias detach lift_fresh lift_fresh_copy _to_copy copy fill zero _softmax _log_softmax",
    ),
    **_named(
        _uniform,
        "full zeros ones empty scalar_tensor new_full new_zeros new_ones new_empty full_like "
        "zeros_like ones_like empty_like",
    ),
    **_named(_convolution, "convolution"),
    **_named(_product, "mm bmm mv dot"),
    **_named(_sum_and_product, "addmm baddbmm addmv"),
    **_named(_layer_norm, "native_layer_norm"),
    **_named(_batch_norm, "_native_batch_norm_legit_no_training"),
    **_named(_group_norm, "native_group_norm"),
    **_named(
        _of_pixels,
        "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d reflection_pad2d replication_pad2d",
    ),
    **_named(_reduction, "mean sum amax amin prod var std var_mean linalg_vector_norm logsumexp"),
    **_named(_along, "flip roll cumsum max min argmax argmin"),
    **_named(_permute, "permute transpose t"),
    **_named(_squeeze, "squeeze"),
    **_named(_unsqueeze, "unsqueeze"),
    **_named(_expand, "expand"),
    **_named(_slice, "slice"),
    **_named(_select, "select unbind"),
    **_named(_split, "split split_with_sizes"),
    **_named(_cat, "cat"),
    **_named(_pad, "constant_pad_nd"),
    **_named(_reshape, "view _unsafe_view _reshape_alias"),
}
