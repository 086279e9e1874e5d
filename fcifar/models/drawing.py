"""Making a module with every random draw of its initialisers taken from where one says.

``Made`` is a mode of torch below all of Python's functions: whatever initialiser draws, torch's own
or one by hand, draws here, and the global generator is neither read nor changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import random
from fcifar.models.base import LARGEST_MODEL
from fcifar.random import Key

_GOLDEN = -1_640_531_527  # 2**32 divided by the golden ratio, as Fibonacci hashing has it


class Source(NamedTuple):
    """Where draws come from: ``(i, shape)`` to the i-th draw, float32."""

    uniform: Callable[[int, Sequence[int]], Tensor]  # in [0, 1)
    normal: Callable[[int, Sequence[int]], Tensor]  # standard


def from_key(key: Key) -> Source:
    """The i-th draw from ``fold_in(key, i)``."""
    return Source(
        lambda i, shape: random.uniform(random.fold_in(key, i), shape),
        lambda i, shape: random.normal(random.fold_in(key, i), shape),
    )


def spread(seed: int) -> Source:
    """Values that lie as draws would, in a hundredth of their time; they are not random at all."""

    def uniform(i: int, shape: Sequence[int]) -> Tensor:
        start = (i * 7919 + seed * 104_729 + 1) % 2**20
        numbers = torch.arange(math.prod(shape), dtype=torch.int32) + start
        words = (numbers * _GOLDEN >> 8) & 0xFF_FFFF
        return words.to(torch.float32).reshape(tuple(shape)) * 2.0**-24

    def normal(i: int, shape: Sequence[int]) -> Tensor:
        return math.sqrt(2) * torch.erfinv((2 * uniform(i, shape) - 1).clamp(min=2.0**-23 - 1))

    return Source(uniform, normal)


class Made(TorchDispatchMode):
    """While it is entered, draws are those of a ``Source``.

    Raises:
        ValueError: on a draw of an unknown kind, or from a generator of its own; and before more
            memory is taken than twice ``LARGEST_MODEL`` numbers.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source, self.drawn, self.taken = source, 0, 0

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """The next draw, in [0, 1)."""
        self.drawn += 1
        return self.source.uniform(self.drawn - 1, shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next draw, standard normal."""
        self.drawn += 1
        return self.source.normal(self.drawn - 1, shape)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _TAKING:
            self._take(args[0] if args else kwargs["size"])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            result = func(*args, **kwargs)
            # What nobody writes to after this is not a number, and found to be none.
            return result.fill_(math.nan) if name in _EMPTY and _is_here(result) else result
        if name not in _DRAWS:
            raise ValueError(f"it draws by {name}, which has no keyed form here")
        given = _by_name(func, args, kwargs)
        if given.get("generator") is not None:
            raise ValueError("it draws from a generator of its own; leave generator out")
        return _DRAWS[name](self, given)

    def _take(self, like: Tensor | Sequence[int]) -> None:
        self.taken += math.prod(like.shape if isinstance(like, Tensor) else like)
        if self.taken > 2 * LARGEST_MODEL:
            raise ValueError(
                f"it would hold {self.taken:,} numbers or more; at most {LARGEST_MODEL:,} "
                "parameters are accepted, so make it smaller"
            )


_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty"}
_TAKING = _EMPTY | {"zeros", "ones", "full", "rand", "randn", "clone", "ones_like", "zeros_like"}


def _is_here(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not tensor.is_meta


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those left out too."""
    arguments = func._schema.arguments
    names = [argument.name for argument in arguments]
    usual = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return usual | dict(zip(names, args, strict=False)) | dict(kwargs)


Values = Callable[[Made, Sequence[int], Mapping[str, Any]], Tensor]  # of a shape, and arguments


def _filled(values: Values) -> Callable[[Made, Mapping[str, Any]], Tensor]:
    """A draw into the memory of a tensor."""

    def fill(made: Made, given: Mapping[str, Any]) -> Tensor:
        target = given["self"]
        return target if target.is_meta else target.copy_(values(made, target.shape, given))

    return fill


def _new(values: Values) -> Callable[[Made, Mapping[str, Any]], Tensor]:
    """A draw into a tensor of its own."""

    def make(made: Made, given: Mapping[str, Any]) -> Tensor:
        tensors = [x for x in map(given.get, ("self", "mean", "std")) if isinstance(x, Tensor)]
        shape = tuple(given["size"]) if "size" in given else tensors[0].shape
        usual = tensors[0].dtype if tensors else torch.get_default_dtype()
        dtype = given.get("dtype")
        return values(made, shape, given).to(usual if dtype is None else dtype)

    return make


def _between(made: Made, shape: Sequence[int], given: Mapping[str, Any]) -> Tensor:
    return made.uniform(shape) * (given["to"] - given["from"]) + given["from"]


def _normal(made: Made, shape: Sequence[int], given: Mapping[str, Any]) -> Tensor:
    return made.normal(shape) * given["std"] + given["mean"]


def _true(made: Made, shape: Sequence[int], given: Mapping[str, Any]) -> Tensor:
    probability = given.get("p")
    return made.uniform(shape) < (given["self"] if probability is None else probability)


_DRAWS = {
    "uniform_": _filled(_between),
    "normal_": _filled(_normal),
    "bernoulli_": _filled(_true),
    "bernoulli": _new(_true),
    "normal": _new(_normal),
    "rand": _new(lambda made, shape, given: made.uniform(shape)),
    "rand_like": _new(lambda made, shape, given: made.uniform(shape)),
    "randn": _new(lambda made, shape, given: made.normal(shape)),
    "randn_like": _new(lambda made, shape, given: made.normal(shape)),
}
