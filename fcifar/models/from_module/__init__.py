"""Any ``nn.Module`` as a ``Model``: its own forward pass and initialisers, made pure."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fcifar import layers, precision, random
from fcifar.errors import located
from fcifar.models.base import (
    Buffers,
    Model,
    Variables,
    check_key,
    versions_of,
)
from fcifar.models.from_module.check import (
    SIZE,
    Kept,
    check_caches,
    check_forward,
    check_step,
    put_back,
)
from fcifar.models.from_module.functionalize import STATISTICS, Forward, know_torchvision
from fcifar.models.from_module.init import (
    REGISTRIES,
    Values,
    build,
    check_repeats,
    from_key,
    plain_tensors,
    spread,
    values_of,
    with_classes,
)
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key

COUNTER = "num_batches_tracked"


def from_module(
    factory: Callable[..., nn.Module], *, num_classes: int = 10, axis: Axis = ALONE
) -> Model:
    """The ``Model`` of a network that is written as an ordinary ``nn.Module``.

        model = from_module(torchvision.models.resnet18)
        model = from_module(lambda: timm.create_model("resnet10t", num_classes=10))

    Its parameters and buffers have the names of the module's ``state_dict``, which takes them as
    they are: ``module.load_state_dict({**variables.params, **variables.buffers})``. Parameters
    that need no gradient are buffers. ``init`` calls the factory on the CPU with every draw of its
    initialisers taken from the key, the i-th from ``fold_in(key, i)``, and reads and changes no
    global generator.

    ``apply`` runs the module's own ``forward`` on the parameters that it is given. In training
    ``F.dropout`` and its like, ``torch.bernoulli``, ``rand``, ``randn`` and their relatives, and
    attention's dropout draw from the key; what draws otherwise is refused. Batch norm is
    ``layers.BatchNorm``: its running statistics, and how many batches they have seen, come out as
    new buffers, and it counts in float32 where the network computes in bfloat16. So do the vectors
    of ``parametrizations.spectral_norm``. Other floating buffers are in the images' dtype, as after
    ``module.to(dtype)``. Tensors with several names are held under the first. What ``forward``
    keeps in caches is dropped after each call. Of several results that with the name ``logits`` is
    taken. ``torch.vmap(init)`` makes the values of several keys.

    The module is watched in a call without values, and then makes one small step on two images, so
    this takes about as long as a few steps.

    Args:
        factory: a class of modules, or a function that returns one, without arguments or with
            ``num_classes`` alone. It is called a few times, and must make the same module each
            time.
        num_classes: given to a factory that takes it; the logits must have as many columns.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: the module cannot be made pure, or does not take images of 32 by 32 pixels to
            logits. That is so where ``forward`` changes the module or what it is given, uses
            tensors that are not the module's, draws from other generators, gives another result
            when it is called again, under ``vmap`` or beside other images, or depends on values in
            a way that cannot be compiled; where a batch norm keeps no running statistics, or a
            cumulative average of them (``momentum=None``); or where there are more than
            ``LARGEST_MODEL`` parameters.

    >>> net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    >>> model = fcifar.models.from_module(net)
    >>> {name: list(p.shape) for name, p in model.init(fcifar.random.key(0)).params.items()}
    {'1.weight': [10, 3072], '1.bias': [10]}
    """
    make = with_classes(factory, num_classes)
    # Of the same values; one becomes the skeleton for training, the other that for evaluation.
    first, second = build(make, spread(0)), build(make, spread(0))
    know_torchvision()
    _refuse_hooks(first)
    versions = versions_of(first)
    values = values_of(first)
    check_repeats(values, values_of(second), make)
    train, evaluate = _separate(first, second)
    skeletons = {True: _skeleton(train.train(), axis), False: _skeleton(evaluate.eval(), axis)}
    constants = values.constants
    shapes = Values(*({n: v.to("meta") for n, v in part.items()} for part in values))
    for training in skeletons:
        skeletons[training] = _checked(skeletons[training], shapes, num_classes, train=training)

    def init(key: Key) -> Variables:
        if key.is_meta:  # which has no values to draw from
            return Variables(shapes.params, shapes.buffers)
        names = [*shapes.params, *shapes.buffers]

        def make_all(key: Key) -> tuple[Tensor, ...]:
            made = values_of(build(make, from_key(key.cpu()))).whole()
            return tuple(made[name].to(key.device) for name in names)

        made = dict(zip(names, _ForEachKey.apply(key, make_all), strict=True)) if names else {}
        return Variables(
            {name: made[name] for name in shapes.params},
            {name: made[name] for name in shapes.buffers},
        )

    def apply(
        variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        check_key(key, train)
        fixed = {name: value.to(images.device) for name, value in constants.items()}
        skeleton = skeletons[train]
        tensors = _inputs(Values(*variables, fixed), skeleton, images.dtype)
        logits, changed = _call(skeleton, tensors, images, key if train else None)
        return logits, {name: changed.get(name, old) for name, old in variables.buffers.items()}

    with torch.device("cpu"):  # whatever makes tensors elsewhere by default
        check_step(apply, Variables(values.params, values.buffers))
        for training, skeleton in skeletons.items():
            if skeleton.caches or values.constants:
                _check_caches(skeleton, values, train=training)
    return Model(init, apply, versions=versions)


class _ForEachKey(torch.autograd.Function):
    """``function(key)``, a tuple of tensors; under ``vmap`` one call for each key."""

    @staticmethod
    def forward(key: Key, function: Callable[[Key], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return function(key)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """A key has no derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        key, function = args
        keys = key.movedim(in_dims[0], 0)
        each = [_ForEachKey.apply(one, function) for one in keys.unbind()]
        return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])


# Calling it without its values -------------------------------------------------------------------


class _Slot(NamedTuple):
    """Where a list, dict or tuple of a module holds tensors that have names."""

    owner: Any  # a list or dict, or a part of the module
    key: Any
    names: Any  # a name; or a tuple of names and other things


class _Name(str):
    """The name of a tensor, to tell it from other texts."""

    __slots__ = ()


class _Skeleton(NamedTuple):
    """A module without values, and how to give it some."""

    module: nn.Module
    norms: dict[str, layers.BatchNorm]
    counters: frozenset[str]  # buffers that it adds to in place: of copies
    vectors: frozenset[str]  # buffers that it replaces: those of spectral norm
    unnamed: frozenset[str]  # names that ``functional_call`` does not reach
    ties: dict[str, str]  # further names of tensors, and the first of each
    slots: tuple[_Slot, ...]
    caches: tuple[Kept, ...] = ()


def _inputs(values: Values, skeleton: _Skeleton, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the module is called with: other buffers in ``dtype``, and counters to write to."""
    own = {f"{name}.{kind}" for name in skeleton.norms for kind in STATISTICS} | skeleton.vectors

    def prepared(name: str, value: Tensor) -> Tensor:
        if name in own:
            return value
        return value.to(dtype) if value.is_floating_point() else value

    rest = {name: prepared(name, v) for name, v in {**values.buffers, **values.constants}.items()}
    # A batch norm in training adds one to its counter in place: to this copy of it.
    rest |= {name: value.clone() for name, value in rest.items() if name in skeleton.counters}
    return {**values.params, **rest}


def _call(
    skeleton: _Skeleton,
    tensors: dict[str, Tensor],
    images: Tensor,
    key: Key | None,
    *,
    keep: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the statistics, counters and vectors after them by name.

    Args:
        tensors: by name; what the module assigns is put there.
        keep: whether the caches of the module stay filled.
    """
    forward = Forward(key, skeleton.norms, tensors)
    named = {name: value for name, value in tensors.items() if name not in skeleton.unnamed}
    tied = {name: tensors[first] for name, first in skeleton.ties.items()}
    empty = [_get(slot) for slot in skeleton.slots]
    for slot in skeleton.slots:
        _set(slot, _named(slot.names, tensors))
    try:
        with forward:
            # By ties of our own: torch's leave a value behind in a layer that has two names.
            whole = named | tied
            output = functional_call(skeleton.module, whole, (images,), tie_weights=False)
    finally:
        for slot, value in zip(skeleton.slots, empty, strict=True):
            _set(slot, value)
        if not keep:
            put_back(skeleton.caches)
    tensors.update({name: whole[name] for name in named})
    # torchvision's and others' networks with several results name this one.
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if key is None:
        return logits, {}
    moved = skeleton.counters | skeleton.vectors
    return logits, forward.changed | {name: tensors[name] for name in moved}


def _get(slot: _Slot) -> Any:
    is_part = isinstance(slot.owner, nn.Module)
    return getattr(slot.owner, slot.key) if is_part else slot.owner[slot.key]


def _set(slot: _Slot, value: Any) -> None:
    if isinstance(slot.owner, nn.Module):
        setattr(slot.owner, slot.key, value)
    else:
        slot.owner[slot.key] = value


def _named(names: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(names, _Name):
        return tensors[names]
    if isinstance(names, tuple):
        return tuple([_named(name, tensors) for name in names])
    return names


def _checked(skeleton: _Skeleton, shapes: Values, num_classes: int, *, train: bool) -> _Skeleton:
    """The skeleton with its caches, if a call without values shows that it is pure."""
    floats = Values(*(precision.cast(part, torch.float32) for part in shapes))
    tensors = _inputs(floats, skeleton, torch.float32)
    caches = check_forward(
        skeleton.module,
        lambda images, key: _call(skeleton, tensors, images, key, keep=True)[0],
        tensors,
        {*skeleton.counters, *(skeleton.vectors if train else ())},
        num_classes,
        train=train,
    )
    return skeleton._replace(caches=caches)


def _check_caches(skeleton: _Skeleton, values: Values, *, train: bool) -> None:
    images = spread(2).normal(0, (2, 3, SIZE, SIZE))
    key = random.key(0) if train else None
    constants = dict(values.constants)  # as calls leave them

    def call() -> Tensor:
        tensors = _inputs(values._replace(constants=constants), skeleton, torch.float32)
        logits, _ = _call(skeleton, tensors, images, key, keep=True)
        constants.update({name: tensors[name] for name in constants})
        return logits

    check_caches(call, skeleton.caches)


def _separate(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both, if they are two modules without a part in common; else copies without values.

    A factory may give a module that is there already, whole or in part. What is made anew is better
    than a copy: functions that it holds, such as hooks, use the module itself.
    """

    def parts(module: nn.Module) -> set[int]:
        tensors = (*module.parameters(), *module.buffers(), *(t for _, t in plain_tensors(module)))
        return {id(part) for part in (*module.modules(), *tensors)}

    if not parts(first) & parts(second):
        return first, second
    shapes: dict[int, Any] = {}
    for _, value in plain_tensors(first):
        shapes[id(value)] = value.detach().to("meta")
    shapes |= {id(value): value.detach().to("meta") for value in first.buffers()}
    for value in first.parameters():
        shapes[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
    try:
        return copy.deepcopy(first, dict(shapes)), copy.deepcopy(first, dict(shapes))
    except Exception as error:
        raise ValueError(f"the module cannot be copied: {located(error)}") from error


def _skeleton(module: nn.Module, axis: Axis) -> _Skeleton:
    """The module itself, emptied. Tensors that it holds as plain attributes become buffers, so that
    they can be given by name.
    """
    tensors = [*module.named_parameters(), *module.named_buffers(), *plain_tensors(module)]
    names: dict[int, str] = {}
    for name, value in tensors:
        names.setdefault(id(value), name)
    empty: dict[int, Any] = {id(value): _on_meta(value) for _, value in tensors}
    for part in module.modules():
        for registry in (part._parameters, part._buffers):
            for name, value in registry.items():
                if value is not None:
                    registry[name] = empty[id(value)]
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                delattr(part, name)
                part.register_buffer(name, empty[id(value)], persistent=False)
    slots = tuple(
        slot
        for part in module.modules()
        for name, value in vars(part).items()
        if name not in REGISTRIES
        for slot in _slots(part, name, value, names)
    )
    for slot in slots:  # they held values
        _set(slot, _named(slot.names, {names[number]: value for number, value in empty.items()}))
    reached = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    firsts = {id(empty[number]): name for number, name in names.items()}
    ties = {
        f"{place}.{name}".removeprefix("."): firsts[id(value)]
        for place, part in module.named_modules()
        for registry in (part._parameters, part._buffers)
        for name, value in registry.items()
        if value is not None
    }
    norms = _norms(module, axis)
    vectors = []
    for name, part in module.named_modules():
        _make_pure(part)
        if isinstance(part, _SpectralNorm) and hasattr(part, "_u"):
            vectors += [f"{name}._u", f"{name}._v"]
    return _Skeleton(
        module,
        norms,
        counters=frozenset(f"{name}.{COUNTER}" for name in norms),
        vectors=frozenset(vectors),
        unnamed=frozenset(names.values()) - reached,
        ties={name: first for name, first in ties.items() if name != first},
        slots=slots,
    )


def _on_meta(value: Tensor) -> Tensor:
    empty = value.detach().to("meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _slots(owner: Any, key: Any, value: Any, names: Mapping[int, str]) -> list[_Slot]:
    """Those in a list, dict or tuple, at any depth."""
    if isinstance(value, list):
        return [s for i, inner in enumerate(value) for s in _slots(value, i, inner, names)]
    if isinstance(value, dict):
        return [s for k, inner in value.items() for s in _slots(value, k, inner, names)]
    if id(value) in names:
        return [_Slot(owner, key, _Name(names[id(value)]))]
    if isinstance(value, tuple) and any(id(inner) in names for inner in value):
        given = tuple(_Name(names[id(v)]) if id(v) in names else v for v in value)
        return [_Slot(owner, key, given)]
    return []


def _make_pure(part: nn.Module) -> None:
    """Give a layer of torch a forward pass that does the same and is pure."""
    part._compiled_call_impl = None  # of module.compile()
    if type(part).__name__ == "OptimizedModule":  # of torch.compile, which is not imported for this
        vars(part).pop("forward")
        part.__class__ = _Uncompiled
    elif isinstance(part, nn.SyncBatchNorm):  # its own forward wants a GPU
        part.__class__ = _AnyBatchNorm  # type: ignore[assignment]
    elif type(part) is parametrizations._SpectralNorm:
        part.__class__ = _SpectralNorm
    elif isinstance(part, nn.RNNBase):
        part._flat_weight_refs = [None for _ in part._flat_weight_refs]  # see _slots
        part.__class__ = _RECURRENT.get(type(part), type(part))  # type: ignore[assignment]


class _Uncompiled(nn.Module):
    """A module that ``torch.compile`` has wrapped, itself: the step around it is compiled whole."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule("_orig_mod")(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self._modules:
            return self._modules[name]
        return getattr(self._modules["_orig_mod"], name)


class _AnyBatchNorm(_BatchNorm):
    """Of images of any dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _SpectralNorm(parametrizations._SpectralNorm):
    """Whose vectors are new tensors after a step, and float32 where the weight is bfloat16.

    Miyato et al., "Spectral normalization for generative adversarial networks",
    https://arxiv.org/abs/1802.05957.
    """

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        u, v = self._u, self._v
        matrix = self._reshape_weight_to_matrix(
            weight.to(torch.promote_types(weight.dtype, u.dtype))
        )
        if self.training:
            fixed = matrix.detach()
            for _ in range(self.n_power_iterations):
                u = F.normalize(torch.mv(fixed, v), dim=0, eps=self.eps)
                v = F.normalize(torch.mv(fixed.mH, u), dim=0, eps=self.eps)
            self._u, self._v = u, v
        sigma = torch.vdot(u, torch.mv(matrix, v))
        return weight / sigma.to(weight.dtype)


# Classes of the same code, which torch.compile does not know by name: it refuses torch's own.
_RECURRENT: dict[type, type] = {
    kind: type(kind.__name__, (nn.RNNBase,), {**vars(kind)}) for kind in (nn.RNN, nn.LSTM, nn.GRU)
}


def _refuse_hooks(module: nn.Module) -> None:
    """Refuse layers that a hook fills before each call, in an old way of torch's."""
    for place, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{place or 'the module'} is made by torch.jit, whose code cannot be seen into; "
                "give the nn.Module that it was made of"
            )
        for hook in part._forward_pre_hooks.values():
            if any(kind.__name__ == "BasePruningMethod" for kind in type(hook).__mro__):
                raise ValueError(
                    f"{place or 'the module'} is pruned by torch.nn.utils.prune, which changes the "
                    "layer in each call; end with prune.remove, or hold the mask as a buffer and "
                    "multiply by it in forward"
                )
            for old, name in ((WeightNorm, "weight_norm"), (SpectralNorm, "spectral_norm")):
                if isinstance(hook, old):
                    raise ValueError(
                        f"{place or 'the module'} has torch.nn.utils.{name}, an old hook that "
                        "changes the layer in each call; use "
                        f"torch.nn.utils.parametrizations.{name}"
                    )


def _norms(skeleton: nn.Module, axis: Axis) -> dict[str, layers.BatchNorm]:
    """The batch norms of a module by name, as layers whose statistics are values."""
    norms = {}
    for name, part in skeleton.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if not part.track_running_stats or part.running_mean is None:
            raise ValueError(
                f"{name or 'the module'} is a batch norm without running statistics, under which "
                "what it makes of an image depends on the others; leave out "
                "track_running_stats=False"
            )
        if part.momentum is None:
            raise ValueError(
                f"{name or 'the module'} is a batch norm with momentum=None, a cumulative average; "
                "give it a momentum, such as 0.1"
            )
        with torch.device("meta"):
            norms[name] = layers.BatchNorm(
                part.num_features,
                momentum=part.momentum,
                eps=part.eps,
                scale=part.weight is not None,
                axis=axis,
            )
    return norms
