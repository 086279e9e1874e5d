"""What an ``nn.Module`` holds when its factory has drawn all of it from a key."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fcifar import layers
from fcifar.errors import reason
from fcifar.models.base import Buffers, Params, check_size
from fcifar.models.drawing import Made, Source, spread


class Values(NamedTuple):
    """All tensors that a module holds, by their names in its ``state_dict``."""

    params: Params  # those that are trained
    buffers: Buffers  # the rest of the state_dict, frozen parameters among it
    constants: dict[str, Tensor]  # what it holds besides, the same for every key

    def whole(self) -> dict[str, Tensor]:
        """All by name."""
        return {**self.params, **self.buffers, **self.constants}


def with_classes(factory: Callable[..., nn.Module], num_classes: int) -> Callable[[], nn.Module]:
    """The factory without arguments."""
    layers.check_width("num_classes", num_classes)
    if takes(factory, "num_classes"):
        return lambda: factory(num_classes=num_classes)
    return factory


def takes(factory: Callable[..., Any], name: str) -> bool:
    """Whether a function can be called with an argument of that name."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of code that is not Python's
        return False
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def build(make: Callable[[], nn.Module], source: Source) -> nn.Module:
    """The module with its values, on the CPU."""
    before = torch.get_rng_state()
    try:
        with torch.device("cpu"), torch.enable_grad(), Made(source):
            module = make()
    except Exception as error:
        raise ValueError(f"the module cannot be made: {reason(error)}") from error
    if not torch.equal(torch.get_rng_state(), before):
        torch.set_rng_state(before)
        raise ValueError(
            "making the module changes torch's global generator; leave out torch.manual_seed, for "
            "every draw comes from the key"
        )
    if not isinstance(module, nn.Module):
        raise ValueError(f"the factory gives a {type(module).__name__}; it must give an nn.Module")
    return module


def values_of(module: nn.Module) -> Values:
    """Copies of all that it holds. Raises a ValueError where it cannot be told by names."""
    given = dict(module.named_parameters(remove_duplicate=False))
    for name, value in given.items():
        if is_lazy(value):
            raise ValueError(f"{name} has no shape yet; give the layer its number of inputs")
    check_size(sum(p.numel() for p in module.parameters()))
    held = given | dict(module.named_buffers(remove_duplicate=False))
    names: dict[int, str] = {}
    for name, value in held.items():
        if (first := names.setdefault(id(value), name)) != name:
            raise ValueError(
                f"{first} and {name} are one tensor; register it under one of the names, and use "
                "that in forward"
            )
    saved = module.state_dict(keep_vars=True)
    for name, value in saved.items():
        if held.get(name) is not value:
            raise ValueError(f"{name} in its state_dict is neither a parameter nor a buffer")
    trained = [name for name, value in given.items() if value.requires_grad]
    plain = {
        f"{place}.{name}".removeprefix("."): value
        for place, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor)
    }

    def copies(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        return {name: tensors[name].detach().clone() for name in names}

    return Values(
        copies(held, trained),
        copies(held, [name for name in saved if name not in trained]),
        copies(held | plain, [name for name in held | plain if name not in saved]),
    )


def check_repeats(values: Values, make: Callable[[], nn.Module]) -> None:
    """Make sure that a module is a function of its draws, and its constants not even of them."""
    again = values_of(build(make, spread(0))).whole()
    for name, value in values.whole().items():
        if value.is_floating_point() and value.isnan().any():
            raise ValueError(f"{name} is never given a value; initialise it in __init__")
        if name not in again or not torch.equal(value, again[name]):
            raise ValueError(
                f"{name} is not the same when the module is made twice; draw it by torch, for "
                "draws of Python and numpy do not come from the key"
            )
    if not values.constants:
        return
    other = values_of(build(make, spread(1))).constants
    for name, value in values.constants.items():
        if not torch.equal(value, other[name]):
            raise ValueError(
                f"{name} is drawn at random and not in the state_dict; register it as a buffer"
            )
