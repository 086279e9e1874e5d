"""Models by name, and the registration of models from elsewhere."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fcifar import entries
from fcifar.errors import located, shown
from fcifar.models.base import Model
from fcifar.models.conv3 import conv3
from fcifar.models.from_module import from_module
from fcifar.models.from_module.init import KeyedDraws, spread, takes
from fcifar.models.lenet import lenet
from fcifar.models.mixer import mlp_mixer
from fcifar.models.preact_resnet import preact_resnet18, wrn
from fcifar.models.resnet import resnet18
from fcifar.models.resnet_cifar import resnet20, resnet32, resnet44, resnet56, resnet110
from fcifar.models.speednet import speednet
from fcifar.models.vit import vit_tiny
from fcifar.parallel import ALONE, Axis

MODELS: dict[str, Callable[..., Model]] = {
    "lenet": lenet,
    "conv3": conv3,
    "speednet": speednet,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet110": resnet110,
    "preact_resnet18": preact_resnet18,
    "wrn": wrn,
    "vit_tiny": vit_tiny,
    "mlp_mixer": mlp_mixer,
}


def register(name: str, factory: Callable[..., Model | nn.Module]) -> None:
    """Add an entry to ``MODELS``, for recipes and the command line (see ``$FCIFAR_IMPORT``).

    Args:
        name: for ``--model``.
        factory: as in ``from_factory``.

    Raises:
        ValueError: the name is taken or invalid, or ``factory`` is not callable.
    """
    made = from_factory(factory) if callable(factory) else factory
    entries.add_function(MODELS, "a model", name, made)


@functools.lru_cache(maxsize=64)
def from_factory(factory: Callable[..., Model | nn.Module]) -> Callable[..., Model]:
    """Make a function like those in ``MODELS``: ``(*, num_classes, axis, **options) -> Model``.

    Args:
        factory: a class of modules, or a function that returns a ``Model`` or a module. It is
            called with the options, with ``num_classes`` if it accepts that, and with ``axis`` if
            its default is an ``Axis``. Models are cached by these arguments.
    """
    made: dict[str, Model] = {}

    @functools.wraps(factory, updated=())
    def make(*, num_classes: int = 10, axis: Axis = ALONE, **options: Any) -> Model:
        arguments = repr((num_classes, axis, sorted(options.items())))
        if arguments not in made:
            made[arguments] = _make(functools.partial(factory, **options), num_classes, axis)
        return made[arguments]

    return make


def _make(factory: functools.partial[Any], num_classes: int, axis: Axis) -> Model:
    if isinstance(factory.func, type) and issubclass(factory.func, nn.Module):
        return from_module(factory, num_classes=num_classes, axis=axis)
    given: dict[str, Any] = {"num_classes": num_classes} if takes(factory, "num_classes") else {}
    own_axis = inspect.signature(factory).parameters.get("axis")
    if own_axis is not None and isinstance(own_axis.default, Axis):
        given["axis"] = axis
    try:
        with KeyedDraws(spread(0)):  # a module's values are not used
            result = factory(**given)
    except (Exception, SystemExit) as error:  # from any user code
        raise ValueError(located(error)) from error
    if isinstance(result, nn.Module):
        return from_module(factory, num_classes=num_classes, axis=axis)
    if not isinstance(result, Model):
        raise ValueError(
            f"it gives {shown(result)}; a model's factory must give a fcifar.Model or an nn.Module"
        )
    return result
