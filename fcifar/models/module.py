"""Any ``nn.Module`` as a ``Model``: its own forward pass and initialisers, made pure."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from fcifar import layers, precision
from fcifar.errors import reason
from fcifar.models.base import (
    Buffers,
    Model,
    Variables,
    check_key,
    versions_of,
)
from fcifar.models.drawing import from_key, spread
from fcifar.models.forward import STATISTICS, Forward
from fcifar.models.making import Values, build, check_repeats, values_of, with_classes
from fcifar.models.trying import check_forward
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
    new buffers, and it counts in float32 where the network computes in bfloat16. Other floating
    buffers are in the images' dtype, as after ``module.to(dtype)``.

    Args:
        factory: a class of modules, or a function that returns one, without arguments or with
            ``num_classes`` alone. It is called a few times, and must make the same module each
            time. One that draws from Python's or numpy's generators is found out; a ``forward``
            that does so is not.
        num_classes: given to a factory that takes it; the logits must have as many columns.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: the module cannot be made pure, or does not take images of 32 by 32 pixels to
            logits. That is so where ``forward`` changes the module, or depends on values in a way
            that cannot be compiled; where a batch norm keeps no running statistics, or a
            cumulative average of them (``momentum=None``); where one tensor has two names; or
            where there are more than ``LARGEST_MODEL`` parameters.

    >>> net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    >>> model = fcifar.models.from_module(net)
    >>> {name: list(p.shape) for name, p in model.init(fcifar.random.key(0)).params.items()}
    {'1.weight': [10, 3072], '1.bias': [10]}
    """
    make = with_classes(factory, num_classes)
    module = build(make, spread(0))
    values = values_of(module)
    check_repeats(values, make)
    skeletons = {train: _skeleton(module).train(train) for train in (True, False)}
    norms = _norms(skeletons[True], axis)
    constants = values.constants
    shapes = Values(*({n: v.to("meta") for n, v in part.items()} for part in values))
    for train, skeleton in skeletons.items():
        floats = Values(*(precision.cast(part, torch.float32) for part in shapes))
        tensors = _inputs(floats, norms, torch.float32)
        check_forward(
            skeleton,
            lambda images, key, skeleton=skeleton, tensors=tensors: _call(
                skeleton, tensors, norms, images, key
            )[0],
            tensors,
            {f"{name}.{COUNTER}" for name in norms},
            num_classes,
            train=train,
        )

    def init(key: Key) -> Variables:
        if key.is_meta:  # which has no values to draw from
            return Variables(shapes.params, shapes.buffers)
        made = values_of(build(make, from_key(key.cpu())))
        return Variables(
            *(
                {n: v.to(key.device) for n, v in part.items()}
                for part in (made.params, made.buffers)
            )
        )

    def apply(
        variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        check_key(key, train)
        fixed = {name: value.to(images.device) for name, value in constants.items()}
        tensors = _inputs(Values(*variables, fixed), norms, images.dtype)
        logits, changed = _call(skeletons[train], tensors, norms, images, key if train else None)
        return logits, {name: changed.get(name, old) for name, old in variables.buffers.items()}

    return Model(init, apply, versions=versions_of(module))


def _inputs(values: Values, norms: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """What the module is called with: other buffers in ``dtype``, and counters to write to."""
    own = {f"{name}.{kind}" for name in norms for kind in STATISTICS}

    def prepared(name: str, value: Tensor) -> Tensor:
        if name in own:
            return value
        return value.to(dtype) if value.is_floating_point() else value

    rest = {name: prepared(name, v) for name, v in {**values.buffers, **values.constants}.items()}
    # A batch norm in training adds one to its counter in place: to this copy of it.
    counters = {f"{name}.{COUNTER}" for name in norms}
    rest |= {name: value.clone() for name, value in rest.items() if name in counters}
    return {**values.params, **rest}


def _call(
    skeleton: nn.Module,
    tensors: dict[str, Tensor],
    norms: Mapping[str, layers.BatchNorm],
    images: Tensor,
    key: Key | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the statistics and counters after them by name."""
    forward = Forward(key, norms, tensors)
    with forward:
        logits = functional_call(skeleton, tensors, (images,))
    if key is None:
        return logits, {}
    counters = (f"{name}.{COUNTER}" for name in norms)
    return logits, forward.changed | {name: tensors[name] for name in counters}


# Calling it without its values -------------------------------------------------------------------


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy of the module on the meta device. Tensors that it holds as plain attributes are
    buffers of the copy, so that they can be given by name.
    """
    shapes: dict[int, Any] = {id(value): value.detach().to("meta") for value in module.buffers()}
    for value in module.parameters():
        shapes[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
    try:
        skeleton = copy.deepcopy(module, shapes)
    except Exception as error:
        raise ValueError(f"the module cannot be copied: {reason(error)}") from error
    for part in skeleton.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                delattr(part, name)
                part.register_buffer(name, value.detach().to("meta"), persistent=False)
        if isinstance(part, nn.SyncBatchNorm):  # its own forward wants a GPU
            part.__class__ = _AnyBatchNorm  # type: ignore[assignment]
    return skeleton


class _AnyBatchNorm(_BatchNorm):
    """Of images of any dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


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
