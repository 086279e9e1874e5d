"""Build a module with every random draw of its initialisers taken from a given source.

``KeyedDraws`` is a dispatch mode of torch: every initialiser, torch's own or written by hand, draws
here, and the global generator is neither read nor changed.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import layers, random
from fcifar.errors import located
from fcifar.models.base import LARGEST_MODEL, Buffers, Params, check_size
from fcifar.random import Key

REGISTRIES = ("_parameters", "_buffers", "_modules")  # of an nn.Module
_GOLDEN = -1_640_531_527  # 2**32 divided by the golden ratio, as in Fibonacci hashing
_BLOCK = 2**16  # numbers whose intermediate results stay in a processor's cache


class Source(NamedTuple):
    """The i-th draw, float32, as a function of i and its shape."""

    uniform: Callable[[int, Sequence[int]], Tensor]  # in [0, 1)
    normal: Callable[[int, Sequence[int]], Tensor]  # standard


def from_key(key: Key) -> Source:
    """Draw i comes from ``fold_in(key, i)``."""
    draws = (random.uniform, random.normal)
    return Source(*(functools.partial(_in_blocks, draw, key) for draw in draws))


def _in_blocks(
    draw: Callable[[Key, Sequence[int]], Tensor], key: Key, i: int, shape: Sequence[int]
) -> Tensor:
    """``draw(fold_in(key, i), shape)`` block by block, which takes an eighth of the time."""
    count = math.prod(shape)
    with torch._C.DisableTorchFunction():  # torch.device as a context must not reach the draw
        key = random.fold_in(key, i)
        if count <= _BLOCK:
            return draw(key, shape)
        values = torch.empty(count)
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            values[start : start + size] = draw(random.from_row(key, start), (size,))
    return values.reshape(tuple(shape))


def spread(seed: int) -> Source:
    """Values distributed as draws are, in a hundredth of the time; they are not random."""

    def uniform(i: int, shape: Sequence[int]) -> Tensor:
        start = (i * 7919 + seed * 104_729 + 1) % 2**20
        numbers = torch.arange(math.prod(shape), dtype=torch.int32) + start
        words = (numbers * _GOLDEN >> 8) & 0xFF_FFFF
        return words.to(torch.float32).reshape(tuple(shape)) * 2.0**-24

    def normal(i: int, shape: Sequence[int]) -> Tensor:
        return math.sqrt(2) * torch.erfinv((2 * uniform(i, shape) - 1).clamp(min=2.0**-23 - 1))

    return Source(uniform, normal)


def complex_of(parts: Tensor, dtype: torch.dtype, *, normal: bool) -> Tensor:
    """Complex numbers of draws [..., 2]; the parts of standard normal ones have variance 1/2."""
    parts = parts.to(torch.float64 if dtype == torch.complex128 else torch.float32)
    return torch.view_as_complex(parts / math.sqrt(2) if normal else parts).to(dtype)


class KeyedDraws(TorchDispatchMode):
    """While this mode is entered, random draws come from a ``Source``.

    Other draws, and memory for more than twice ``LARGEST_MODEL`` numbers, raise a ValueError.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.drawn, self.allocated = source, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _ALLOCATING:
            self._allocate(args[0] if args else kwargs["size"])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            result = func(*args, **kwargs)
            # Memory that is never written stays NaN, which check_repeats detects.
            is_float = name in _EMPTY and result.is_floating_point() and not result.is_meta
            return result.fill_(math.nan) if is_float else result
        if name not in _DRAWS:
            raise ValueError(f"it draws by {name}, which has no keyed form here")
        given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        given |= arguments_of(func, args, kwargs)
        if given.get("generator") is not None:
            raise ValueError("it draws from a separate generator; leave generator out")
        if name.endswith("_"):
            target = given["self"]
            if target.is_meta:
                return target
            return target.copy_(self._draw(_DRAWS[name], given, target.shape, target.dtype))
        tensors = [x for x in map(given.get, ("self", "mean", "std")) if isinstance(x, Tensor)]
        shape = tuple(given["size"]) if "size" in given else tensors[0].shape
        dtype = given.get("dtype") or (tensors[0].dtype if tensors else torch.get_default_dtype())
        return self._draw(_DRAWS[name], given, shape, dtype).to(dtype)

    def _draw(
        self, kind: str, given: Mapping[str, Any], shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """The next draw, by the arguments of the operation."""
        draw = self.source.normal if kind == "normal" else self.source.uniform
        i, self.drawn = self.drawn, self.drawn + 1
        if kind == "bernoulli":
            return draw(i, shape) < (given["self"] if given.get("p") is None else given["p"])
        if dtype.is_complex:
            values = complex_of(draw(i, (*shape, 2)), dtype, normal=kind == "normal")
        else:
            values = draw(i, shape)
        if "from" in given:
            return values.mul_(given["to"] - given["from"]).add_(given["from"])
        if "mean" not in given:
            return values
        mean, std = given["mean"], given["std"]
        if isinstance(mean, Tensor) or isinstance(std, Tensor):
            return values * std + mean
        # torch adds the mean to both parts of complex numbers.
        return values.mul_(std).add_(complex(mean, mean) if dtype.is_complex else mean)

    def _allocate(self, like: Tensor | Sequence[int]) -> None:
        self.allocated += math.prod(like.shape if isinstance(like, Tensor) else like)
        if self.allocated > 2 * LARGEST_MODEL:
            raise ValueError(
                f"it would hold {self.allocated:,} numbers or more; at most {LARGEST_MODEL:,} "
                "parameters are accepted, so make it smaller"
            )


_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}
_ALLOCATING = _EMPTY | {
    *("zeros", "ones", "full", "rand", "randn", "clone", "ones_like", "zeros_like")
}
_DRAWS = {  # operations with a keyed form, and their distributions
    **dict.fromkeys(("uniform_", "rand", "rand_like"), "uniform"),
    **dict.fromkeys(("normal_", "normal", "randn", "randn_like"), "normal"),
    **dict.fromkeys(("bernoulli_", "bernoulli"), "bernoulli"),
}


def arguments_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by name."""
    return dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | dict(kwargs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


# A module from its factory ------------------------------------------------------------------------


class Values(NamedTuple):
    """All tensors of a module, by their names in its ``state_dict``."""

    params: Params  # trained
    buffers: Buffers  # the rest of the state_dict, including frozen parameters
    constants: dict[str, Tensor]  # not in the state_dict, and the same for every key

    def whole(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {**self.params, **self.buffers, **self.constants}


def with_classes(factory: Callable[..., nn.Module], num_classes: int) -> Callable[[], nn.Module]:
    """Return the factory as a function without arguments."""
    layers.check_width("num_classes", num_classes)
    if takes(factory, "num_classes"):
        return lambda: factory(num_classes=num_classes)
    return factory


def takes(factory: Callable[..., Any], name: str) -> bool:
    """Whether a function accepts a keyword argument ``name``."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def build(make: Callable[[], nn.Module], source: Source) -> nn.Module:
    """Call a factory on the CPU, with draws from ``source``."""
    before = torch.get_rng_state()
    try:
        with torch.device("cpu"), torch.enable_grad(), KeyedDraws(source):
            module = make()
    except (Exception, SystemExit) as error:  # from any user code
        raise ValueError(f"the module cannot be made: {located(error)}") from error
    if not torch.equal(torch.get_rng_state(), before):
        torch.set_rng_state(before)
        raise ValueError(
            "making the module changes torch's global generator; leave out torch.manual_seed, "
            "because every draw comes from the key"
        )
    if not isinstance(module, nn.Module):
        raise ValueError(f"the factory gives a {type(module).__name__}; it must give an nn.Module")
    return module


def values_of(module: nn.Module) -> Values:
    """Copy all tensors of a module; one with several names is listed under the first."""
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
    named = [*registered.items(), *_plain_tensors(module)]
    first = {id(value): name for name, value in reversed(named)}
    held = {name: value for name, value in named if first[id(value)] == name}
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


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters, buffers, and tensors in plain attributes or in lists, tuples and dicts there."""
    return [*module.named_parameters(), *module.named_buffers(), *_plain_tensors(module)]


def _plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:

    def walk(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in items:
                yield from walk(f"{name}[{key!r}]", inner)

    for path, *_, value in plain_attributes(module):
        yield from walk(path, value)


def plain_attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Attributes outside of torch's registries: the dotted path, the part, the name, the value."""
    for path, part in module.named_modules():
        for name, value in [*vars(part).items()]:
            if name not in REGISTRIES:
                yield f"{path}.{name}".removeprefix("."), part, name, value


def check_repeats(first: nn.Module, second: nn.Module, make: Callable[[], nn.Module]) -> Values:
    """Check that modules depend on their draws alone, and constants not even on them.

    Args:
        first, second: made from ``spread(0)``.

    Returns:
        The values of the first.
    """
    values, other = values_of(first), values_of(second).whole()
    for name, value in values.whole().items():
        if (value.is_floating_point() or value.is_complex()) and value.isnan().any():
            raise ValueError(f"{name} is never given a value; initialise it in __init__")
        if name not in other or not torch.equal(value, other[name]):
            raise ValueError(
                f"{name} is not the same when the module is made twice; draw it by torch, because "
                "draws of Python and numpy do not come from the key"
            )
    drawn = values_of(build(make, spread(1))).constants if values.constants else {}
    for name, value in values.constants.items():
        if not torch.equal(value, drawn[name]):
            raise ValueError(
                f"{name} is drawn at random and not in the state_dict; register it as a buffer"
            )
    return values
