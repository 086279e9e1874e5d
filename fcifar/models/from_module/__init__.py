"""Any ``nn.Module`` as a ``Model``: its own forward pass and initialisers, made pure."""

import copy
from collections.abc import Callable, Collection, Mapping
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
from fcifar.models.base import Apply, Buffers, Model, Variables, check_key, versions_of
from fcifar.models.from_module import check
from fcifar.models.from_module.functionalize import STATISTICS, Forward, replace_torchvision
from fcifar.models.from_module.init import (
    Values,
    build,
    check_repeats,
    from_key,
    named_tensors,
    plain_attributes,
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
    """Make a ``Model`` of an ordinary ``nn.Module``.

        model = from_module(torchvision.models.resnet18)
        model = from_module(lambda: timm.create_model("resnet10t", num_classes=10))

    Parameters and buffers have the names of the module's ``state_dict``, which loads them:
    ``module.load_state_dict({**variables.params, **variables.buffers})``. Parameters that need no
    gradient are buffers. A tensor with several names is held under the first. ``init`` calls the
    factory on the CPU; draw i of its initialisers comes from ``fold_in(key, i)``, and no global
    generator is read or changed. ``torch.vmap(init)`` makes the values of several keys.

    ``apply`` runs the module's own ``forward`` on the given variables. In training ``F.dropout``,
    ``torch.bernoulli``, ``rand``, ``randn``, their relatives and the dropout of attention draw from
    the key; other draws are refused. Batch norm is ``layers.BatchNorm``: its running statistics and
    counter are returned as new buffers, and it computes in float32 where the model computes in
    bfloat16, as do the vectors of ``parametrizations.spectral_norm``. Other floating buffers have
    the images' dtype, as after ``module.to(dtype)``. Caches that ``forward`` fills are emptied
    after each call. Of several results the one named ``logits`` is taken.

    The module is called once without values while its operations are watched, and then makes one
    small step on two images, so this takes about as long as a few steps.

    Args:
        factory: a class of modules, or a function that returns one, without arguments or with
            ``num_classes`` alone. It is called a few times, and must make the same module each
            time.
        num_classes: passed to a factory that accepts it; the number of logits.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: the module does not take images of 32 by 32 pixels to logits, or cannot be made
            pure: ``forward`` changes the module or its arguments, uses tensors that are not the
            module's, draws from other generators, gives another result when it is called again,
            under ``vmap`` or beside other images, or depends on values in a way that cannot be
            compiled; a batch norm has no running statistics, or a cumulative average of them
            (``momentum=None``); or there are more than ``LARGEST_MODEL`` parameters.

    >>> net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    >>> model = fcifar.models.from_module(net)
    >>> {name: list(p.shape) for name, p in model.init(fcifar.random.key(0)).params.items()}
    {'1.weight': [10, 3072], '1.bias': [10]}
    """
    make = with_classes(factory, num_classes)
    # With the same values; one becomes the skeleton for training, the other that for evaluation.
    first, second = build(make, spread(0)), build(make, spread(0))
    replace_torchvision()
    _refuse_hooks(first)
    versions = versions_of(first)
    values = check_repeats(first, second, make)
    train, evaluate = _separate(first, second)
    skeletons = {True: _skeleton(train.train(), axis), False: _skeleton(evaluate.eval(), axis)}
    shapes = Values(*({n: v.to("meta") for n, v in part.items()} for part in values))
    for training in skeletons:
        skeletons[training] = _checked(skeletons[training], shapes, num_classes, train=training)

    def init(key: Key) -> Variables:
        if key.is_meta:
            return Variables(shapes.params, shapes.buffers)
        names = [*shapes.params, *shapes.buffers]

        def make_all(key: Key) -> tuple[Tensor, ...]:
            made = values_of(build(make, from_key(key.cpu()))).whole()
            return tuple(made[name].to(key.device) for name in names)

        made = dict(zip(names, _ForEachKey.apply(key, make_all), strict=True)) if names else {}
        return Variables(*({n: made[n] for n in part} for part in (shapes.params, shapes.buffers)))

    def apply_frozen(names: Collection[str]) -> Apply:
        norms = {name: copy.copy(norm) for name, norm in skeletons[True].norms.items()}
        for name in names:
            norms[name].frozen = True
        own = skeletons | {True: skeletons[True]._replace(norms=norms)}

        def apply(
            variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
        ) -> tuple[Tensor, Buffers]:
            check_key(key, train)
            constants = {name: value.to(images.device) for name, value in values.constants.items()}
            tensors = _inputs(Values(*variables, constants), own[train], images.dtype)
            logits, changed = _call(own[train], tensors, images, key if train else None, keep=False)
            return logits, {name: changed.get(name, old) for name, old in variables.buffers.items()}

        return apply

    apply = apply_frozen(())

    # On the CPU, whatever the default device. A check repeats a step.
    with torch.device("cpu"), random.allow_reuse():
        check.check_step(apply, Variables(values.params, values.buffers))
        for training, skeleton in skeletons.items():
            if skeleton.caches or values.constants:
                _check_caches(skeleton, values, train=training)
    return Model(init, apply, versions=versions, apply_frozen=apply_frozen)


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


# Calling a module without values -----------------------------------------------------------------


class _Slot(NamedTuple):
    """Where a list, dict or tuple of a module holds named tensors."""

    owner: Any  # a list or dict, or a part of the module whose attribute is a tuple
    key: Any
    names: Any  # of the tensor; of a tuple those of its items, None for other values
    empty: Any  # the value between calls, on the meta device


class _Skeleton(NamedTuple):
    """A module without values, and where its tensors belong."""

    module: nn.Module
    norms: dict[str, layers.BatchNorm]
    counters: frozenset[str]  # buffers that it adds to in place; it is given copies
    vectors: frozenset[str]  # buffers of spectral norm, which it replaces
    unnamed: frozenset[str]  # names that ``functional_call`` does not reach
    ties: dict[str, str]  # further names of tensors, to the first of each
    slots: tuple[_Slot, ...]
    caches: tuple[check.Cache, ...] = ()


def _inputs(values: Values, skeleton: _Skeleton, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors to call a module with: other buffers in ``dtype``, counters copied."""
    own = {f"{name}.{kind}" for name in skeleton.norms for kind in STATISTICS} | skeleton.vectors
    tensors = dict(values.params)
    for name, value in {**values.buffers, **values.constants}.items():
        if value.is_floating_point() and name not in own:
            value = value.to(dtype)
        # A batch norm in training adds one to its counter in place.
        tensors[name] = value.clone() if name in skeleton.counters else value
    return tensors


def _call(
    skeleton: _Skeleton, tensors: dict[str, Tensor], images: Tensor, key: Key | None, keep: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits, and by name the statistics, counters and vectors after the call.

    Args:
        tensors: by name; updated with what the module assigns.
        keep: whether the caches of the module stay filled.
    """
    forward = Forward(key, skeleton.norms, tensors)
    named = {name: value for name, value in tensors.items() if name not in skeleton.unnamed}
    # With our own ties: those of torch leave a value behind in a layer that has two names.
    whole = named | {name: tensors[first] for name, first in skeleton.ties.items()}
    for slot in skeleton.slots:
        _fill(slot, _slot_value(slot, tensors))
    try:
        with forward:
            output = functional_call(skeleton.module, whole, (images,), tie_weights=False)
    finally:
        for slot in skeleton.slots:
            _fill(slot, slot.empty)
        if not keep:
            check.empty_caches(skeleton.caches)
    tensors.update({name: whole[name] for name in named})
    # Models with several results, such as torchvision's, name this one.
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", output)
    if key is None:
        return logits, {}
    moved = skeleton.counters | skeleton.vectors
    return logits, forward.changed | {name: tensors[name] for name in moved}


def _fill(slot: _Slot, value: Any) -> None:
    if isinstance(slot.owner, nn.Module):
        setattr(slot.owner, slot.key, value)
    else:
        slot.owner[slot.key] = value


def _slot_value(slot: _Slot, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(slot.names, str):
        return tensors[slot.names]
    items = zip(slot.names, slot.empty, strict=True)
    return tuple([old if name is None else tensors[name] for name, old in items])


def _checked(skeleton: _Skeleton, shapes: Values, num_classes: int, *, train: bool) -> _Skeleton:
    """Check that a call without values is pure, and return the skeleton with its caches."""
    floats = Values(*(precision.cast(part, torch.float32) for part in shapes))
    tensors = _inputs(floats, skeleton, torch.float32)
    caches = check.check_forward(
        skeleton.module,
        lambda images, key: _call(skeleton, tensors, images, key, keep=True)[0],
        tensors,
        {*skeleton.counters, *(skeleton.vectors if train else ())},
        num_classes,
        train=train,
    )
    return skeleton._replace(caches=caches)


def _check_caches(skeleton: _Skeleton, values: Values, *, train: bool) -> None:
    constants = dict(values.constants)  # as calls leave them

    def call(images: Tensor, key: Key | None) -> Tensor:
        tensors = _inputs(values._replace(constants=constants), skeleton, torch.float32)
        logits, _ = _call(skeleton, tensors, images, key, keep=True)
        constants.update({name: tensors[name] for name in constants})
        return logits

    check.check_caches(call, skeleton.caches, train=train)


def _separate(first: nn.Module, second: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return both modules if they have no part in common; else two copies without values.

    A factory may return an existing module, or one with existing parts. A new module is better than
    a copy, because functions that it holds, such as hooks, use the module itself.
    """

    def parts(module: nn.Module) -> set[int]:
        return {id(part) for part in (*module.modules(), *dict(named_tensors(module)).values())}

    if not parts(first) & parts(second):
        return first, second
    empty: dict[int, Any] = {id(value): _on_meta(value) for _, value in named_tensors(first)}
    try:
        return copy.deepcopy(first, dict(empty)), copy.deepcopy(first, dict(empty))
    except Exception as error:
        raise ValueError(f"the module cannot be copied: {located(error)}") from error


def _skeleton(module: nn.Module, axis: Axis) -> _Skeleton:
    """Empty a module. Tensors in plain attributes become buffers, so that they have names."""
    tensors = named_tensors(module)
    names = {id(value): name for name, value in reversed(tensors)}
    empty: dict[int, Any] = {id(value): _on_meta(value) for _, value in tensors}
    firsts = {id(empty[number]): name for number, name in names.items()}
    for part in module.modules():
        for registry in (part._parameters, part._buffers):
            registry.update({n: empty[id(v)] for n, v in registry.items() if v is not None})
    slots: list[_Slot] = []
    for _, part, name, value in plain_attributes(module):
        if isinstance(value, Tensor):
            delattr(part, name)
            part.register_buffer(name, empty[id(value)], persistent=False)
        else:
            slots += _slots(part, name, value, names, empty)
    for slot in slots:
        _fill(slot, slot.empty)
    reached = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    ties = {
        f"{path}.{name}".removeprefix("."): firsts[id(value)]
        for path, part in module.named_modules()
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
        slots=tuple(slots),
    )


def _on_meta(value: Tensor) -> Tensor:
    empty = value.detach().to("meta")
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _slots(
    owner: Any, key: Any, value: Any, names: Mapping[int, str], empty: Mapping[int, Tensor]
) -> list[_Slot]:
    """The slots in a list, dict or tuple, at any depth."""
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [slot for k, inner in items for slot in _slots(value, k, inner, names, empty)]
    if id(value) in names:
        return [_Slot(owner, key, names[id(value)], empty[id(value)])]
    if isinstance(value, tuple) and any(id(inner) in names for inner in value):
        own = tuple(names.get(id(inner)) for inner in value)
        return [_Slot(owner, key, own, tuple(empty.get(id(inner), inner) for inner in value))]
    return []


def _make_pure(part: nn.Module) -> None:
    """Give a layer of torch an equivalent forward pass that is pure."""
    part._compiled_call_impl = None  # of module.compile()
    if type(part).__name__ == "OptimizedModule":  # of torch.compile, which is not imported for this
        vars(part).pop("forward")
        part.__class__ = _Uncompiled
    elif isinstance(part, nn.SyncBatchNorm):  # whose forward needs a GPU
        part.__class__ = _AnyBatchNorm  # type: ignore[assignment]
    elif type(part) is parametrizations._SpectralNorm:
        part.__class__ = _SpectralNorm
    elif isinstance(part, nn.RNNBase):
        part._flat_weight_refs = [None for _ in part._flat_weight_refs]  # see _slots
        part.__class__ = _RECURRENT.get(type(part), type(part))  # type: ignore[assignment]


class _Uncompiled(nn.Module):
    """A module without the ``torch.compile`` around it: the whole step is compiled instead."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule("_orig_mod")(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self._modules:
            return self._modules[name]
        return getattr(self._modules["_orig_mod"], name)


class _AnyBatchNorm(_BatchNorm):
    """Batch norm of inputs with any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _SpectralNorm(parametrizations._SpectralNorm):
    """Spectral norm that replaces its vectors, and keeps them float32 under a bfloat16 weight.

    Miyato et al., "Spectral normalization for generative adversarial networks",
    https://arxiv.org/abs/1802.05957.
    """

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        u, v = self._u, self._v
        wide = weight.to(torch.promote_types(weight.dtype, u.dtype))
        matrix = self._reshape_weight_to_matrix(wide)
        if self.training:
            fixed = matrix.detach()
            for _ in range(self.n_power_iterations):
                u = F.normalize(torch.mv(fixed, v), dim=0, eps=self.eps)
                v = F.normalize(torch.mv(fixed.mH, u), dim=0, eps=self.eps)
            self._u, self._v = u, v
        sigma = torch.vdot(u, torch.mv(matrix, v))
        return weight / sigma.to(weight.dtype)


# The same code under other classes: torch.compile refuses torch's own by name.
_RECURRENT: dict[type, type] = {
    kind: type(kind.__name__, (nn.RNNBase,), {**vars(kind)}) for kind in (nn.RNN, nn.LSTM, nn.GRU)
}


def _refuse_hooks(module: nn.Module) -> None:
    """Refuse scripted layers, and layers that an old kind of hook fills before each call."""
    old_hooks = ((WeightNorm, "weight_norm"), (SpectralNorm, "spectral_norm"))
    for path, part in module.named_modules():
        path = path or "the module"
        if isinstance(part, torch.jit.ScriptModule):
            raise ValueError(
                f"{path} is made by torch.jit, whose operations cannot be seen; give the nn.Module "
                "that it was made of"
            )
        for hook in part._forward_pre_hooks.values():
            if any(kind.__name__ == "BasePruningMethod" for kind in type(hook).__mro__):
                raise ValueError(
                    f"{path} is pruned by torch.nn.utils.prune, which changes the layer in each "
                    "call; end with prune.remove, or hold the mask as a buffer and multiply by it "
                    "in forward"
                )
            for old, name in old_hooks:
                if isinstance(hook, old):
                    raise ValueError(
                        f"{path} has torch.nn.utils.{name}, an old hook that changes the layer in "
                        f"each call; use torch.nn.utils.parametrizations.{name}"
                    )


def _norms(skeleton: nn.Module, axis: Axis) -> dict[str, layers.BatchNorm]:
    """The batch norms of a module by name, as pure layers."""
    norms = {}
    for name, part in skeleton.named_modules():
        if not isinstance(part, _BatchNorm):
            continue
        if not part.track_running_stats or part.running_mean is None:
            raise ValueError(
                f"{name or 'the module'} is a batch norm without running statistics, whose result "
                "for an image depends on the others; leave out track_running_stats=False"
            )
        if part.momentum is None:
            raise ValueError(
                f"{name or 'the module'} is a batch norm with momentum=None, a cumulative average; "
                "give it a momentum, such as 0.1"
            )
        options = {"momentum": part.momentum, "eps": part.eps, "scale": part.weight is not None}
        with torch.device("meta"):
            norms[name] = layers.BatchNorm(part.num_features, **options, axis=axis)
    return norms
