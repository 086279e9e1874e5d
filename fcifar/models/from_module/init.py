"""Making a module with every random draw of its initialisers taken from where one says.

``Made`` is a mode of torch below all of Python's functions: whatever initialiser draws, torch's own
or one by hand, draws here, and the global generator is neither read nor changed.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import layers, random
from fcifar.errors import located
from fcifar.models.base import LARGEST_MODEL, Buffers, Params, check_size
from fcifar.random import Key

_GOLDEN = -1_640_531_527  # 2**32 divided by the golden ratio, as Fibonacci hashing has it


class Source(NamedTuple):
    """Where draws come from: ``(i, shape)`` to the i-th draw, float32."""

    uniform: Callable[[int, Sequence[int]], Tensor]  # in [0, 1)
    normal: Callable[[int, Sequence[int]], Tensor]  # standard


def from_key(key: Key) -> Source:
    """The i-th draw from ``fold_in(key, i)``, with i below 2**31."""
    keys: list[Key] = []

    def key_of(i: int) -> Key:
        if i >= len(keys):  # many at once, which takes no longer than one
            keys.extend(random.split(key, 2 * (i + 128)))
        return keys[i]

    return Source(
        lambda i, shape: _in_blocks(random.uniform, key_of(i), shape),
        lambda i, shape: _in_blocks(random.normal, key_of(i), shape),
    )


_BLOCK = 2**16  # numbers, whose intermediate results stay in a processor's cache


def _in_blocks(
    draw: Callable[[Key, Sequence[int]], Tensor], key: Key, shape: Sequence[int]
) -> Tensor:
    """``draw(key, shape)``, a part at a time, which takes an eighth of the time."""
    count = math.prod(shape)
    with torch._C.DisableTorchFunction():  # modes of Python take longer than the draw
        if count <= _BLOCK:
            return draw(key, shape)
        values = torch.empty(count)
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            values[start : start + size] = draw(random.from_row(key, start), (size,))
    return values.reshape(tuple(shape))


def spread(seed: int) -> Source:
    """Sampler that lie as draws would, in a hundredth of their time; they are not random at all."""

    def uniform(i: int, shape: Sequence[int]) -> Tensor:
        start = (i * 7919 + seed * 104_729 + 1) % 2**20
        numbers = torch.arange(math.prod(shape), dtype=torch.int32) + start
        words = (numbers * _GOLDEN >> 8) & 0xFF_FFFF
        return words.to(torch.float32).reshape(tuple(shape)) * 2.0**-24

    def normal(i: int, shape: Sequence[int]) -> Tensor:
        return math.sqrt(2) * torch.erfinv((2 * uniform(i, shape) - 1).clamp(min=2.0**-23 - 1))

    return Source(uniform, normal)


def complex_of(parts: Tensor, dtype: torch.dtype, *, normal: bool) -> Tensor:
    """Complex numbers of two draws each, [..., 2], as torch draws them.

    Of standard normal ones each part has variance 1/2; of uniform ones each lies in [0, 1).
    """
    parts = parts.to(torch.float64 if dtype == torch.complex128 else torch.float32)
    return torch.view_as_complex(parts / math.sqrt(2) if normal else parts).to(dtype)


@contextlib.contextmanager
def drawing_from(source: Source) -> Iterator[None]:
    """While it is entered, draws are those of a source. Raises as ``Made``."""
    with Made(source) as made, _Bare(made):
        yield
    made.finish()


class Made(TorchDispatchMode):
    """While it is entered, draws are those of a ``Source``.

    A draw that fills a tensor is made when something looks at the tensor, or by ``finish``: most
    initialisers of torch are followed by another, which fills the tensor anew.

    Raises:
        ValueError: on a draw of an unknown kind, or from a generator of its own; and before more
            memory is taken than twice ``LARGEST_MODEL`` numbers.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.drawn, self.taken = source, 0, 0
        self.waiting: dict[int, tuple[Tensor, Callable[[], Tensor]]] = {}  # by memory

    def uniform(self, shape: Sequence[int]) -> Callable[[], Tensor]:
        """The next draw, in [0, 1)."""
        return self._next(self.source.uniform, shape)

    def normal(self, shape: Sequence[int]) -> Callable[[], Tensor]:
        """The next draw, standard normal."""
        return self._next(self.source.normal, shape)

    def _next(
        self, draw: Callable[[int, Sequence[int]], Tensor], shape: Sequence[int]
    ) -> Callable[[], Tensor]:
        self.drawn += 1
        return functools.partial(draw, self.drawn - 1, tuple(shape))

    def fill(self, target: Tensor, values: Callable[[], Tensor]) -> None:
        """Fill a tensor now, or later if it is all that its memory holds."""
        if _is_whole(target):
            self.waiting[_memory(target)] = target, values
        else:
            target.copy_(values())

    def finish(self) -> None:
        """Make the draws that have not been made."""
        for memory in [*self.waiting]:
            self._make(memory)

    def _make(self, memory: int) -> None:
        target, values = self.waiting.pop(memory)
        with torch.no_grad():
            target.detach().copy_(values())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if self.waiting and name not in _VIEWS:
            self.look(name, args, kwargs)
        if name in _TAKING:
            self._take(args[0] if args else kwargs["size"])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            result = func(*args, **kwargs)
            # Memory that is not written afterwards stays NaN, and is detected.
            return result.fill_(math.nan) if name in _EMPTY and _is_here(result) else result
        if name not in _DRAWS:
            raise ValueError(f"it draws by {name}, which has no keyed form here")
        given = _by_name(func, args, kwargs)
        if given.get("generator") is not None:
            raise ValueError("it draws from a generator of its own; leave generator out")
        return _DRAWS[name](self, given)

    def look(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Make draws that an operation sees, and forget one that it overwrites."""
        operands = [*tensors_in([*args, *kwargs.values()])]
        for i, tensor in enumerate(operands):
            memory = _memory(tensor)
            if memory not in self.waiting:
                continue
            others = (_memory(other) for other in operands[i + 1 :])
            if i == 0 and name in _FILLING and _is_whole(tensor) and memory not in others:
                del self.waiting[memory]
            else:
                self._make(memory)

    def _take(self, like: Tensor | Sequence[int]) -> None:
        self.taken += math.prod(like.shape if isinstance(like, Tensor) else like)
        if self.taken > 2 * LARGEST_MODEL:
            raise ValueError(
                f"it would hold {self.taken:,} numbers or more; at most {LARGEST_MODEL:,} "
                "parameters are accepted, so make it smaller"
            )


class _Bare(TorchFunctionMode):
    """Shows a ``Made`` what looks at memory by no operation."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self.made.waiting and func in _BARE:
            self.made.look("", args, {})
        return func(*args, **(kwargs or {}))


_BARE = {
    *(Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.__dlpack__),
    *(Tensor.untyped_storage, Tensor.storage, Tensor._typed_storage, Tensor.__reduce_ex__),
}
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}
_TAKING = _EMPTY | {"zeros", "ones", "full", "rand", "randn", "clone", "ones_like", "zeros_like"}


_VIEWS = {"detach", "alias"}  # which look at nothing
_FILLING = {"uniform_", "normal_", "zero_", "fill_", "copy_"}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor is all of its memory."""
    size = tensor.untyped_storage().nbytes()
    return tensor.is_contiguous() and tensor.numel() * tensor.element_size() == size


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Those among the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def _is_here(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those left out too."""
    arguments = func._schema.arguments
    names = [argument.name for argument in arguments]
    usual = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return usual | dict(zip(names, args, strict=False)) | dict(kwargs)


# Of a shape, arguments and the dtype: values that are drawn when it is called, in their order.
Sampler = Callable[[Made, Sequence[int], Mapping[str, Any], torch.dtype], Callable[[], Tensor]]


def _filled(values: Sampler) -> Callable[[Made, Mapping[str, Any]], Tensor]:
    """A draw into the memory of a tensor."""

    def fill(made: Made, given: Mapping[str, Any]) -> Tensor:
        target = given["self"]
        if not target.is_meta:
            made.fill(target, values(made, target.shape, given, target.dtype))
        return target

    return fill


def _new(values: Sampler) -> Callable[[Made, Mapping[str, Any]], Tensor]:
    """A draw into a tensor of its own."""

    def make(made: Made, given: Mapping[str, Any]) -> Tensor:
        tensors = [x for x in map(given.get, ("self", "mean", "std")) if isinstance(x, Tensor)]
        shape = tuple(given["size"]) if "size" in given else tensors[0].shape
        usual = tensors[0].dtype if tensors else torch.get_default_dtype()
        dtype = usual if given.get("dtype") is None else given["dtype"]
        return values(made, shape, given, dtype)().to(dtype)

    return make


def _unit(
    made: Made, shape: Sequence[int], given: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], Tensor]:
    if not dtype.is_complex:
        return made.uniform(shape)
    parts = made.uniform((*shape, 2))
    return lambda: complex_of(parts(), dtype, normal=False)


def _standard(
    made: Made, shape: Sequence[int], given: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], Tensor]:
    if not dtype.is_complex:
        return made.normal(shape)
    parts = made.normal((*shape, 2))
    return lambda: complex_of(parts(), dtype, normal=True)


def _between(
    made: Made, shape: Sequence[int], given: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], Tensor]:
    low, high = given["from"], given["to"]
    unit = _unit(made, shape, given, dtype)
    return lambda: unit().mul_(high - low).add_(low)


def _normal(
    made: Made, shape: Sequence[int], given: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], Tensor]:
    mean, std = given["mean"], given["std"]
    standard = _standard(made, shape, given, dtype)
    if isinstance(mean, Tensor) or isinstance(std, Tensor):
        return lambda: standard() * std + mean
    if dtype.is_complex:
        mean = complex(mean, mean)  # of both parts, as torch has it
    return lambda: standard().mul_(std).add_(mean)


def _true(
    made: Made, shape: Sequence[int], given: Mapping[str, Any], dtype: torch.dtype
) -> Callable[[], Tensor]:
    unit, given_p = made.uniform(shape), given.get("p")
    probability = given["self"] if given_p is None else given_p
    probability = probability.clone() if isinstance(probability, Tensor) else probability
    return lambda: unit() < probability


_DRAWS = {
    "uniform_": _filled(_between),
    "normal_": _filled(_normal),
    "bernoulli_": _filled(_true),
    "bernoulli": _new(_true),
    "normal": _new(_normal),
    "rand": _new(_unit),
    "rand_like": _new(_unit),
    "randn": _new(_standard),
    "randn_like": _new(_standard),
}


# A module from its factory ------------------------------------------------------------------------


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
