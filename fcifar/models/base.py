"""``Model``: an architecture as pure functions, made of a skeleton of layers."""

import copy
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fcifar import random
from fcifar.layers import default_init
from fcifar.random import Key

# Parameters. Training holds each about five times in float32, 20 bytes: at most 4 GB.
LARGEST_MODEL = 200_000_000

Params = dict[str, Tensor]  # by the names of the module's state_dict: "conv1.weight", ...
Buffers = dict[str, Tensor]  # tensors that are not trained, such as running statistics
Versions = tuple[tuple[str, int], ...]  # of state_dicts, by the name of the module


class Variables(NamedTuple):
    """All tensors of a model."""

    params: Params
    buffers: Buffers


class Apply(Protocol):
    """The forward pass, a pure function."""

    def __call__(
        self, variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        """Return logits [B, C] for normalised images [B, 3, 32, 32], and the new buffers.

        ``key`` is required in training, where dropout draws from it.
        """
        ...


def keep(variables: Variables, images: Tensor) -> Variables:
    """Return the variables unchanged."""
    return variables


class Model(NamedTuple):
    """An architecture as pure functions, without values.

    ``adapt`` fits buffers to a sample of normalised training images [N, 3, 32, 32] before the first
    step; most models keep their variables. ``versions`` are those of the module's ``state_dict``.
    ``apply_frozen(names)`` is ``apply`` where the named batch norms use their running statistics in
    training too, and do not change them; None for a model without batch norm. See ``freeze``.
    """

    init: Callable[[Key], Variables]
    apply: Apply
    adapt: Callable[[Variables, Tensor], Variables] = keep
    versions: Versions = ()
    apply_frozen: Callable[[Collection[str]], Apply] | None = None


def from_skeleton(
    make_skeleton: Callable[[], nn.Module],
    init_params: Callable[[nn.Module, Key], Params] = default_init,
) -> Model:
    """Make a ``Model`` of a module without buffers.

    ``make_skeleton`` is called once, on the meta device, so that the module never holds values.
    Parameters start as PyTorch's default initialisation unless ``init_params`` is given.
    ``forward`` takes images, and a key in training or None in evaluation.

    Raises:
        ValueError: there are more than ``LARGEST_MODEL`` parameters; none has been allocated.
    """
    skeleton = on_meta(make_skeleton)

    def init(key: Key) -> Variables:
        return Variables(params=init_params(skeleton, key), buffers={})

    def apply(
        variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        check_key(key, train)
        return functional_call(skeleton, variables.params, (images, key if train else None)), {}

    return Model(init, apply, versions=versions_of(skeleton))


def from_normed_skeleton(
    skeleton: nn.Module,
    init: Callable[[Key], Variables],
    adapt: Callable[[Variables, Tensor], Variables] = keep,
    *,
    draws: bool = False,
) -> Model:
    """Make a ``Model`` of a module with ``layers.BatchNorm`` layers.

    ``skeleton.forward(images, train)`` returns logits and the new running statistics by name. Other
    buffers stay unchanged. With ``draws``, it is ``forward(images, train, key)``, with a key in
    training and None in evaluation.
    """

    def apply_frozen(names: Collection[str]) -> Apply:
        own = copy.deepcopy(skeleton) if names else skeleton
        for name in names:
            setattr(own.get_submodule(name), "frozen", True)  # noqa: B010

        def apply(
            variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
        ) -> tuple[Tensor, Buffers]:
            check_key(key, train)
            arguments = (images, train, key if train else None) if draws else (images, train)
            logits, changed = functional_call(own, tuple(variables), arguments)
            return logits, {name: changed.get(name, old) for name, old in variables.buffers.items()}

        return apply

    return Model(init, apply_frozen(()), adapt, versions_of(skeleton), apply_frozen)


def versions_of(module: nn.Module) -> Versions:
    """The version of each module's ``state_dict``, which some ``load_state_dict`` need."""
    metadata = getattr(module.state_dict(keep_vars=True), "_metadata", {})
    versions = ((name, entry.get("version")) for name, entry in metadata.items())
    return tuple((name, version) for name, version in versions if isinstance(version, int))


def check_key(key: Key | None, train: bool) -> None:
    """Raise a ValueError if there is no key in training, whether or not the model draws."""
    if train and key is None:
        raise ValueError("a model in training draws at random; give apply a key")


def mixes_examples(model: Model) -> bool:
    """Whether a training step changes the model's buffers, as batch norm does."""
    before, after = _buffers_of_a_step(model, 32)
    return any(after[name] is not old for name, old in before.items())


def takes_images(model: Model, size: int) -> bool:
    """Whether the model accepts images of ``size`` by ``size`` pixels."""
    try:
        _buffers_of_a_step(model, size)
    except Exception:  # of a layer, or of a check in a user's module
        return False
    return True


def _buffers_of_a_step(model: Model, size: int) -> tuple[Buffers, Buffers]:
    """The buffers before and after a batch, on the meta device, where nothing is computed."""
    key = random.key(0, device="meta")
    variables = model.init(key)
    with torch.device("meta"):  # also the default device of tensors that ``apply`` makes
        images = torch.empty(2, 3, size, size)
        _, buffers = model.apply(variables, images, key=key, train=True)
    return variables.buffers, buffers


def on_meta(make_skeleton: Callable[[], nn.Module]) -> nn.Module:
    """Make a module on the meta device; raise as ``check_size``."""
    try:
        with torch.device("meta"):
            skeleton = make_skeleton()
    except RuntimeError as error:  # more bytes than fit into 64 bits
        raise ValueError(
            f"the model would have more than 10**18 parameters; at most {LARGEST_MODEL:,} are "
            "accepted, so make it smaller"
        ) from error
    check_size(sum(parameter.numel() for parameter in skeleton.parameters()))
    return skeleton


def check_size(count: int) -> None:
    """Raise a ValueError for more than ``LARGEST_MODEL`` parameters."""
    if count > LARGEST_MODEL:
        raise ValueError(
            f"the model would have {count:,} parameters; at most {LARGEST_MODEL:,} are accepted, "
            "so make it smaller"
        )
