"""What a model is: two functions, and how a skeleton of layers becomes them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fcifar import random
from fcifar.layers import default_init
from fcifar.random import Key

# Parameters. Training holds each of them about five times in float32, 20 bytes: 4 GB for the most.
LARGEST_MODEL = 200_000_000

Params = dict[str, Tensor]  # by the names of the module's state_dict: "conv1.weight", ...
Buffers = dict[str, Tensor]  # statistics that the forward pass updates; {} for most networks

Versions = tuple[tuple[str, int], ...]  # a module's name, "" for the whole, and its state_dict's


class Variables(NamedTuple):
    """Everything a model's value is made of."""

    params: Params
    buffers: Buffers


class Apply(Protocol):
    """The forward pass, a pure function."""

    def __call__(
        self, variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] of normalised images [B, 3, 32, 32], and the buffers after them.

        In training ``key`` is what dropout and its like draw from, and must be given.
        """
        ...


def keep(variables: Variables, images: Tensor) -> Variables:
    """The variables as they are."""
    return variables


class Model(NamedTuple):
    """An architecture as pure functions. It holds no values.

    ``adapt`` fits what is not trained to a sample of normalised training images [N, 3, 32, 32],
    before the first step; most networks have nothing of the kind and keep their variables.
    ``versions`` are those of the modules that the names come from, for a ``state_dict`` of them.
    """

    init: Callable[[Key], Variables]
    apply: Apply
    adapt: Callable[[Variables, Tensor], Variables] = keep
    versions: Versions = ()


def from_skeleton(make_skeleton: Callable[[], nn.Module]) -> Model:
    """The ``Model`` of a module without buffers, whose ``forward`` takes images and a key or None.

    ``make_skeleton`` is called once, on the meta device: the module lends its shape and its
    ``forward`` and never holds a value. Parameters start as PyTorch's default initialisation.
    ``forward`` gets a key in training and None elsewhere.

    Raises:
        ValueError: there are more than ``LARGEST_MODEL`` parameters; none has been allocated.
    """
    skeleton = on_meta(make_skeleton)

    def init(key: Key) -> Variables:
        return Variables(params=default_init(skeleton, key), buffers={})

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
) -> Model:
    """The ``Model`` of a module with ``layers.BatchNorm`` in it, and nothing drawn at random.

    ``skeleton.forward`` takes images and whether this is training, and gives logits and the running
    statistics after them, by name. Buffers that it does not give stay as they were.
    """

    def apply(
        variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        check_key(key, train)
        logits, changed = functional_call(skeleton, tuple(variables), (images, train))
        return logits, {name: changed.get(name, old) for name, old in variables.buffers.items()}

    return Model(init, apply, adapt, versions_of(skeleton))


def versions_of(module: nn.Module) -> Versions:
    """The version of each module's ``state_dict``, by which ``load_state_dict`` knows its form."""
    metadata = getattr(module.state_dict(keep_vars=True), "_metadata", {})
    versions = ((name, about.get("version")) for name, about in metadata.items())
    return tuple((name, version) for name, version in versions if isinstance(version, int))


def check_key(key: Key | None, train: bool) -> None:
    """Raise a ValueError unless there is a key in training, whether or not a network draws."""
    if train and key is None:
        raise ValueError("a model in training draws at random; give apply a key")


def mixes_examples(model: Model) -> bool:
    """Whether a network in training keeps statistics of its batches, as batch norm does.

    That is, whether it gives other buffers than it is given.
    """
    before, after = _tried(model, 32)
    return any(after[name] is not old for name, old in before.items())


def takes_images(model: Model, size: int) -> bool:
    """Whether images of ``size`` pixels a side go through a network."""
    try:
        _tried(model, size)
    except Exception:  # of a layer that images of this size do not fit, or of a user's own check
        return False
    return True


def _tried(model: Model, size: int) -> tuple[Buffers, Buffers]:
    """The buffers before and after a batch, on the meta device, where nothing is computed."""
    key = random.key(0, device="meta")
    variables = model.init(key)
    with torch.device("meta"):  # where modules that name no device make their tensors, too
        images = torch.empty(2, 3, size, size)
        _, buffers = model.apply(variables, images, key=key, train=True)
    return variables.buffers, buffers


def on_meta(make_skeleton: Callable[[], nn.Module]) -> nn.Module:
    """A module without values, made on the meta device.

    Raises:
        ValueError: it has more than ``LARGEST_MODEL`` parameters.
    """
    try:
        with torch.device("meta"):
            skeleton = make_skeleton()
    except RuntimeError as error:  # a tensor of more bytes than 64 bits count
        raise ValueError(
            f"the model would have more than 10**18 parameters; at most {LARGEST_MODEL:,} are "
            "accepted, so make it smaller"
        ) from error
    check_size(sum(parameter.numel() for parameter in skeleton.parameters()))
    return skeleton


def check_size(count: int) -> None:
    """Raise a ValueError if a network has more than ``LARGEST_MODEL`` parameters."""
    if count > LARGEST_MODEL:
        raise ValueError(
            f"the model would have {count:,} parameters; at most {LARGEST_MODEL:,} are accepted, "
            "so make it smaller"
        )
