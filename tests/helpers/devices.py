"""Find what a function does on another device than that of its arguments, without a GPU.

Everything moves to the device "meta", whose tensors have no values. What needs a value there raises
an error: ``.item()``, boolean masks, ``nonzero`` and other shapes that depend on values, and copies
to the CPU. The rest is watched, operation by operation.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fcifar import tree
from fcifar.tree import Tree


class DeviceError(AssertionError):
    """An operation on another device, or one that waits for the device."""


def on_meta(function: Callable[..., Tree], *arguments: Tree) -> Tree:
    """Call ``function`` on the meta device and return its result.

    Raises:
        DeviceError: an operation copies from the host, reads or makes a tensor on the CPU, or
            indexes with a mask; or the result is on the CPU.
        RuntimeError: an operation needs a value.
    """
    moved = tree.on_device(arguments, "meta")
    with watched():
        result = function(*moved)
    here = [name for name, x in tree.named_leaves(result).items() if not x.is_meta]
    if here:
        raise DeviceError(f"results on the CPU: {', '.join(here)}")
    return result


@contextlib.contextmanager
def watched() -> Generator[None]:
    """Raise a DeviceError at the first operation that is not on the meta device alone."""
    with _Operations(), _HostData():
        yield


class _HostData(TorchFunctionMode):
    """Finds tensors made of Python numbers, which are copied to the device while the host waits.

    The dispatcher does not see them on the meta device.
    """

    _OF_DATA = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
    _INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in self._OF_DATA and not isinstance(args[func is Tensor.new_tensor], Tensor):
            raise DeviceError(f"{func.__name__} copies {args[-1]} from the host")
        if func in self._INDEXING and _has_list(args[1]):
            raise DeviceError(f"the index {args[1]} is copied from the host")
        return func(*args, **(kwargs or {}))


def _has_list(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) for part in parts)


class _Operations(TorchDispatchMode):
    """Finds operations with a tensor on the CPU, and indexing by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = _tensors((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and not given:
            self.numbers.append(result)  # ``vmap`` converts numbers so; kernels take them by value
        found = [x for x in given + _tensors(result) if not x.is_meta]
        if any(all(x is not number for number in self.numbers) for x in found):
            raise DeviceError(f"{func} has a tensor on the CPU")
        if func.overloadpacket in _INDEXED and any(
            x.dtype in (torch.bool, torch.uint8) for x in _tensors(args[1])
        ):
            raise DeviceError(f"{func} waits for the number of elements in a mask")
        return result


_INDEXED = tuple(
    getattr(torch.ops.aten, name)
    for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
)


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]
