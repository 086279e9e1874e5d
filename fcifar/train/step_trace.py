"""A trace of a step: each operation in order, and a fingerprint of what it returns.

    trace, result = record(step, state, inputs)          # eager: a call per operation of ATen
    trace.operations[7]                                  # name, line, outputs with their hashes

Operations are recorded below ``torch.func``, so that those of ``grad`` and ``vmap`` are included,
and those of the backward pass. Views and uninitialised memory are not operations here: the first
compute nothing, and the bits of the second mean nothing. An operation of the backward pass has the
line of the forward operation whose gradient it computes.

Compiled steps are recorded by ``programs.observed``, with an operation for each call of a kernel.

Recording reads tensors and changes none of their bits. A hash is of the elements in row-major
order, whatever the strides and the device, see ``fingerprint``.
"""

import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcifar import random, tree
from fcifar.errors import relative_to_path
from fcifar.train import fingerprint

EAGER, COMPILED = "eager", "compiled"
_ROWS, _COLUMNS = 64, 2**14  # of words that are hashed at once, which bounds the memory
_FOREIGN = ("/torch/", "/optree/", "/functorch/")  # frames that are not the line of an operation
_UNINITIALISED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class Output(NamedTuple):
    """A tensor that an operation returns or overwrites."""

    dtype: str  # such as "float32"
    shape: tuple[int, ...]
    hash: str  # of the elements in row-major order
    unordered: str  # of the elements in any order
    mean: float
    rms: float  # root of the mean square
    low: float
    high: float


class Operation(NamedTuple):
    """A call of an operation or of a kernel."""

    name: str  # such as "aten.convolution.default", or the name of a kernel
    line: str  # of the code that called it, such as "fcifar/models/lenet.py:31"; may be empty
    backward: bool  # whether it belongs to the backward pass of that line
    inputs: tuple[str, ...]  # hashes of the tensors that it read; empty for a kernel
    outputs: tuple[Output, ...]


class Trace(NamedTuple):
    """The operations of a step, and the outputs of those whose values were kept."""

    kind: str  # EAGER or COMPILED
    operations: tuple[Operation, ...]
    kept: dict[int, list[Tensor]]  # by the number of the operation, from 0


class Recorder:
    """Collects the operations of a trace."""

    def __init__(self, kind: str, keep: Container[int] = ()) -> None:
        """``keep``: numbers of the operations, from 0, whose outputs are cloned."""
        self._kind, self._keep = kind, keep
        self._operations: list[Operation] = []
        self._kept: dict[int, list[Tensor]] = {}
        self._multipliers: dict[torch.device, Tensor] = {}

    def hash(self, x: Tensor) -> str:
        """Return the hash of a tensor as in ``Output``."""
        return fingerprint.to_hex(int(_hash(x.detach(), self._multipliers_on(x.device))[0]))

    def add(
        self,
        name: str,
        outputs: Sequence[Tensor],
        line: str = "",
        *,
        backward: bool = False,
        inputs: tuple[str, ...] = (),
    ) -> None:
        """Append an operation that has just computed ``outputs``, unless they are all empty."""
        outputs = [x for x in outputs if x.numel()]
        if not outputs:
            return
        number = len(self._operations)
        if number in self._keep:
            self._kept[number] = [x.detach().clone() for x in outputs]
        described = tuple(self._describe(x.detach()) for x in outputs)
        self._operations.append(Operation(name, line, backward, inputs, described))

    def finish(self) -> Trace:
        """Return the trace."""
        return Trace(self._kind, tuple(self._operations), self._kept)

    def _multipliers_on(self, device: torch.device) -> Tensor:
        if device not in self._multipliers:
            like = torch.zeros(_ROWS + _COLUMNS)
            drawn = fingerprint.draw_multipliers(random.key(0), like)
            self._multipliers[device] = drawn.to(device)
        return self._multipliers[device]

    def _describe(self, x: Tensor) -> Output:
        ordered, unordered = _hash(x, self._multipliers_on(x.device)).tolist()
        dtype = str(x.dtype).removeprefix("torch.")
        hashes = fingerprint.to_hex(ordered), fingerprint.to_hex(unordered)
        return Output(dtype, tuple(x.shape), *hashes, *_figures(x))


def _hash(x: Tensor, multipliers: Tensor) -> Tensor:
    """Return a hash of the elements in row-major order, and one in any order: int64 [2]."""
    rows, columns = multipliers[:_ROWS], multipliers[_ROWS:]
    ordered = unordered = torch.zeros((), dtype=torch.int64, device=x.device)
    for part in fingerprint.words(x).split(_ROWS * _COLUMNS):
        words = part.to(torch.int64)
        mixed = words * columns[0]
        mixed = (mixed ^ (mixed >> 29)) * columns[1]
        unordered = unordered + (mixed ^ (mixed >> 32)).sum()
        whole = len(words) // _COLUMNS * _COLUMNS
        rest = words[whole:]
        sums = (words[:whole].view(-1, _COLUMNS) * columns).sum(-1)
        sums = torch.cat([sums, (rest * columns[: len(rest)]).sum().reshape(1)])
        rows = torch.cat([rows, rows[:1]]) if len(sums) > len(rows) else rows
        ordered = ordered * columns[0] + (sums * rows[: len(sums)]).sum()
    return torch.stack([ordered, unordered])


def _figures(x: Tensor) -> tuple[float, float, float, float]:
    """Return the mean, the root of the mean square, the minimum and the maximum of a tensor."""
    exact = x.reshape(-1).to(torch.float64 if x.device.type != "mps" else torch.float32)
    low, high = exact.aminmax()
    return tuple(torch.stack([exact.mean(), exact.square().mean().sqrt(), low, high]).tolist())


# Eager steps -------------------------------------------------------------------------------------


def record(
    function: Callable[..., Any], *arguments: Any, keep: Container[int] = ()
) -> tuple[Trace, Any]:
    """Call a function, and record its operations.

    Args:
        keep: numbers of the operations, from 0, whose outputs are kept.

    Returns:
        The trace, and what the function returned: the same bits as without recording.

    >>> from fcifar.train import step_trace
    >>> trace, result = step_trace.record(lambda x: (x + 1).sum(), torch.ones(3))
    >>> [operation.name for operation in trace.operations], result
    (['aten.add.Tensor', 'aten.sum.default'], tensor(6.))
    """
    recorder = Recorder(EAGER, keep)
    with _Recording(recorder):
        result = function(*arguments)
    return recorder.finish(), result


class _Recording(TorchDispatchMode):
    """Adds each operation to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._lines: dict[int, str] = {}  # of forward operations, by their number in autograd
        self._blank: set[int] = set()  # addresses of memory that was not written yet

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        node = torch._C._current_autograd_node()
        line = self._line(node)
        if _is_view(func):
            return func(*args, **(kwargs or {}))
        if _is_uninitialised(func):
            result = func(*args, **(kwargs or {}))
            self._blank |= {_address(x) for x in _tensors(result)}
            return result
        given = [x for x in _tensors((args, kwargs)) if _address(x) not in self._blank]
        inputs = tuple(self._recorder.hash(x) for x in given)
        result = func(*args, **(kwargs or {}))
        outputs = _outputs(func, args, kwargs or {}, result)
        self._blank -= {_address(x) for x in outputs}
        self._recorder.add(str(func), outputs, line, backward=node is not None, inputs=inputs)
        return result

    def _line(self, node: Any) -> str:
        """Return the line of the forward operation, also in the backward pass."""
        if node is not None:
            return self._lines.get(node._sequence_nr(), "") or _caller()
        line = _caller()
        # An operation whose gradient is needed has just been given a number.
        self._lines.setdefault(torch.autograd._get_sequence_nr() - 1, line)
        return line


def _is_view(func: Any) -> bool:
    returned = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _is_uninitialised(func: Any) -> bool:
    return func._schema.name.partition("::")[2] in _UNINITIALISED


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _outputs(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> list[Tensor]:
    """Return what an operation has computed: its results, or the arguments it has overwritten."""
    if outputs := _tensors(result):
        return outputs
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False)]
    given += [(a, kwargs[a.name]) for a in arguments if a.name in kwargs]
    return _tensors([x for a, x in given if a.alias_info is not None and a.alias_info.is_write])


def _caller() -> str:
    """Return file and line of the innermost frame that is not in a library of tensors."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in (__file__, tree.__file__) and not any(part in file for part in _FOREIGN):
            return f"{relative_to_path(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
