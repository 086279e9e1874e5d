"""Pickles of plain values and numpy arrays of integers, and nothing else.

Unpickling can call any function. Here it finds none, only stand-ins that keep the arguments, from
which arrays are made afterwards, once they have been checked.
"""

import io
import math
import pickle
import pickletools
import warnings
from typing import Any

import numpy as np

from fcifar.errors import UsageError, one_line, reason

STEPS = 2**18  # a batch of 10,000 images has about 40,000; an empty set takes 216 bytes

# The errors of unpickling malformed bytes.
_MALFORMED = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError),
    *(OverflowError, MemoryError, RecursionError, Warning),
)
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


def load_pickle(name: str, data: bytes, steps: int = STEPS) -> dict[str, Any]:
    """Return the dict in a pickle of any protocol, written by Python 2 or 3. No code is run.

    Keys become str, bytes in lists as well, and arrays become numpy arrays of integers.

    Args:
        name: of the file in messages.
        steps: largest number of opcodes.

    Raises:
        UsageError: the pickle calls a function, is damaged, or is not a dict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python warns about some damage, such as wrong escapes
            _check_opcodes(data, steps)
            value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(value, dict):
            raise _RefusedError("holds no dict")
        if len(value) > _KEYS:
            raise _RefusedError(f"has {len(value)} keys, more than {_KEYS}")
        return {_text(key): _plain(item) for key, item in value.items()}
    except _RefusedError as error:
        raise UsageError(f"{name} {error}; it is not an official CIFAR file") from error
    except _MALFORMED as error:
        raise UsageError(
            f"{name} is not a readable pickle ({reason(error)}); get a fresh copy of it"
        ) from error


class _RefusedError(Exception):
    """The pickle is well formed, but not allowed."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.to_numpy()
    if isinstance(value, list):
        return [_text(item) if isinstance(item, bytes) else item for item in value]
    return value


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    raise TypeError("there is something else where text should be")


# What may be loaded -------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"tries to load {one_line(repr(f'{module}.{name}'))}") from None


class _StandIn:
    """Keeps the arguments and the state that numpy's object would have been given."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_StandIn):
    """``dtype("u1", align, copy)``, then a state (version, byte order, ...)."""

    def to_numpy(self) -> np.dtype:
        code, order = _text(self.arguments[0]), _text(self.state[1])
        if code not in _INTEGERS or order not in ("<", ">", "|"):
            raise ValueError("its array is not of whole numbers")
        return np.dtype(order + code)


class _Array(_StandIn):
    """``_reconstruct(ndarray, shape, code)``, then a state (1, shape, dtype, order, bytes)."""

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, fortran, raw = self.state
        return _array(raw, dtype, shape, "F" if fortran else "C")


class _Buffer(_Array):
    """``_frombuffer(bytes, dtype, shape, order)``, as numpy writes in pickle protocol 5."""

    def to_numpy(self) -> np.ndarray:
        raw, dtype, shape, order = self.arguments
        return _array(raw, dtype, shape, "F" if order == "F" else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype):
        raise TypeError("its array has no bytes or no type")
    if not isinstance(shape, tuple) or len(shape) > 4 or any(type(n) is not int for n in shape):
        raise TypeError("its array has no shape")
    kind = dtype.to_numpy()
    # The product of numbers with a million digits would never end.
    if any(not 0 <= n < 2**31 for n in shape) or math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError("its array has more or fewer bytes than its shape says")
    return np.frombuffer(raw, kind).reshape(shape, order=order)


class _Encoded(bytes):
    """``_codecs.encode(text, "latin1")``, as Python 3 writes bytes in pickle protocol 2."""

    def __new__(cls, text: str, encoding: str) -> "_Encoded":
        if encoding != "latin1":
            raise _RefusedError("encodes text otherwise than as latin1")
        return super().__new__(cls, text, encoding)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("sets the state of bytes")


# All are classes with a __setstate__: a pickle can set the attributes of anything else.
_ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


# Exhaustion without a call ------------------------------------------------------------------------

_TUPLES = 64  # an array takes six
_KEYS = 64  # all values may be the same list
_SHORT = 100  # bytes of text that may be used again, as keys and names of types are
_STORES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_FETCHES = {"GET", "BINGET", "LONG_BINGET"}
_CONTAINERS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT"}
# Arrays never need these. The EXT opcodes load from a registry and bypass find_class.
_FOREIGN = {"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}


def _check_opcodes(data: bytes, steps: int) -> None:
    """Refuse pickles that exhaust memory or time without calling a function.

    A high memo index allocates a table of that length. A tuple of two equal tuples of two equal
    tuples, and so on, takes exponential time to hash; a deeply nested one exhausts the stack. A
    long text that is used again can be copied each time. So everything is limited in number, and
    only short texts and objects other than tuples can be used again.
    """
    stored: dict[int, bool] = {}  # memo index: may be used again
    tuples, reusable = 0, False  # reusable: the value on top of the stack
    for count, (opcode, operand, _) in enumerate(pickletools.genops(data)):
        name, argument = opcode.name, operand if isinstance(operand, int) else -1
        if count > steps:
            raise _RefusedError(f"has more than {steps} steps")
        if name in _STORES:
            index = len(stored) if name == "MEMOIZE" else argument
            if not 0 <= index <= count:
                raise _RefusedError("has a memo larger than itself")
            stored[index] = reusable
        elif name == "DUP" or (name in _FETCHES and stored.get(argument) is False):
            raise _RefusedError("uses one tuple or long text twice")
        elif name in _FOREIGN:
            raise pickle.UnpicklingError(f"it has the step {name}")
        elif name not in ("PROTO", "FRAME"):
            tuples += name.startswith("TUPLE")
            text = isinstance(operand, str | bytes) and name not in ("PERSID", "GLOBAL")
            reusable = len(operand) <= _SHORT if text else name in _CONTAINERS
    if tuples > _TUPLES:
        raise _RefusedError(f"has {tuples} tuples, more than {_TUPLES}")
