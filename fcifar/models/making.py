"""What an ``nn.Module`` holds when its factory has drawn all of it from a key."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fcifar import layers
from fcifar.errors import located
from fcifar.models.base import Buffers, Params, check_size
from fcifar.models.drawing import Source, drawing_from, spread


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
        with torch.device("cpu"), torch.enable_grad(), drawing_from(source):
            module = make()
    except (Exception, SystemExit) as error:  # whatever its code does
        raise ValueError(f"the module cannot be made: {located(error)}") from error
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
    """Copies of all that it holds; a tensor with several names under the first of them.

    Raises:
        ValueError: it holds a tensor in a way that names do not reach.
    """
    given = dict(module.named_parameters(remove_duplicate=False))
    for name, value in given.items():
        if is_lazy(value):
            raise ValueError(f"{name} has no shape yet; give the layer its number of inputs")
    check_size(sum(p.numel() for p in module.parameters()))
    registered = given | dict(module.named_buffers(remove_duplicate=False))
    saved = module.state_dict(keep_vars=True)
    for name, value in saved.items():
        if registered.get(name) is not value:
            raise ValueError(f"{name} in its state_dict is neither a parameter nor a buffer")
    held: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in (*registered.items(), *plain_tensors(module)):
        if id(value) not in seen:
            seen.add(id(value))
            held[name] = value
    for name, value in held.items():
        if name not in registered and isinstance(value, nn.Parameter):
            raise ValueError(
                f"{name} is a parameter in a plain list or dict, which is neither trained nor "
                "saved; use nn.ParameterList or nn.ParameterDict"
            )
    trained = [name for name, value in given.items() if name in held and value.requires_grad]
    rest = [name for name in saved if name in held and name not in trained]

    def copies(names: Iterable[str]) -> dict[str, Tensor]:
        return {name: held[name].detach().clone() for name in names}

    return Values(copies(trained), copies(rest), copies(name for name in held if name not in saved))


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that parts of a module hold as attributes, or in lists, tuples and dicts there."""
    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in REGISTRIES:
                yield from _tensors_in(f"{place}.{name}".removeprefix("."), value)


REGISTRIES = {"_parameters", "_buffers", "_modules"}  # of an nn.Module


def _tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors_in(f"{name}[{key!r}]", inner)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _tensors_in(f"{name}[{i}]", inner)


def check_repeats(values: Values, again: Values, make: Callable[[], nn.Module]) -> None:
    """Make sure that a module is a function of its draws, and its constants not even of them.

    Args:
        values: of a module drawn from ``spread(0)``.
        again: of another one drawn from the same.
    """
    other = again.whole()
    for name, value in values.whole().items():
        if (value.is_floating_point() or value.is_complex()) and value.isnan().any():
            raise ValueError(f"{name} is never given a value; initialise it in __init__")
        if name not in other or not torch.equal(value, other[name]):
            raise ValueError(
                f"{name} is not the same when the module is made twice; draw it by torch, for "
                "draws of Python and numpy do not come from the key"
            )
    if not values.constants:
        return
    drawn = values_of(build(make, spread(1))).constants
    for name, value in values.constants.items():
        if not torch.equal(value, drawn[name]):
            raise ValueError(
                f"{name} is drawn at random and not in the state_dict; register it as a buffer"
            )
