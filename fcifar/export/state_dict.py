"""Read the state_dicts in a file from elsewhere, without running code in it.

A checkpoint holds a state_dict among other things, or several, such as a moving average. All are
found; ``match_state_dict`` chooses one, and removes wrappers' prefixes, by the names of the model.
"""

import errno
import re
import warnings
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fcifar.errors import ExternalError, UsageError, one_line, reason, shown

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys of checkpoints, by likelihood
_DEEPEST = 4  # checkpoints inside checkpoints
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,100})")  # in torch's message about a refused class


class _LeftOut:
    """Replaces a value that is not a tensor, and ignores what the pickle says of it."""

    def __new__(cls, *_: Any) -> "_LeftOut":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


# Classes of values that are often saved beside a state_dict: settings, paths, numbers.
_LEFT_OUT: list[Any] = [
    (type(name.rpartition(".")[2], (_LeftOut,), {}), name)
    for name in (
        *("argparse.Namespace", "types.SimpleNamespace", "_codecs.encode"),
        *(f"pathlib.{kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
        *("numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
        *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    )
]


class StateDict(NamedTuple):
    """Named tensors from a file."""

    tensors: dict[str, Tensor]  # on the CPU, with the names and dtypes of the file
    key: str = ""  # of the checkpoint's entry; dotted if it is nested


def read(path: Path) -> tuple[StateDict, ...]:
    """Read the state_dicts in a file of ``torch.save`` or a ``.safetensors``, as ``find``.

    Raises:
        UsageError: the file has another format, or contains no state_dict.
        ExternalError: it cannot be read.
    """
    is_safetensors = path.suffix.lower() == ".safetensors"
    return find(_read_safetensors(path) if is_safetensors else _read_pickled(path), str(path))


def find(values: Any, source: str) -> tuple[StateDict, ...]:
    """Find every state_dict in the content of a file, up to four levels deep.

    Those under a key of ``WRAPPERS`` come first, then less nested ones.

    Args:
        values: such as a state_dict, or a checkpoint with one under ``model_state_dict``.
        source: the name of the file in messages.

    Raises:
        UsageError: there is no state_dict.
    """
    found: list[tuple[int, int, StateDict]] = []
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), values)])
    seen = {id(values)}  # a file may hold one dict in many places
    while queue:
        keys, part = queue.popleft()
        if _is_state_dict(part):
            rank = WRAPPERS.index(keys[-1]) if keys and keys[-1] in WRAPPERS else len(WRAPPERS)
            tensors = {name: value.detach() for name, value in part.items()}
            found.append((rank, len(keys), StateDict(tensors, ".".join(keys))))
        elif isinstance(part, Mapping) and len(keys) < _DEEPEST:
            for key, value in part.items():
                is_new = isinstance(value, Mapping) and id(value) not in seen
                if isinstance(key, str) and is_new:
                    seen.add(id(value))
                    queue.append(((*keys, key), value))
    if not found:
        raise UsageError(_describe(values, source))
    return tuple(each for *_, each in sorted(found, key=lambda entry: entry[:2]))


def _is_state_dict(values: Any) -> bool:
    return (
        isinstance(values, Mapping)
        and bool(values)
        and all(isinstance(name, str) and _is_plain(value) for name, value in values.items())
    )


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor: not sparse, quantized or on the meta device."""
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _describe(values: Any, source: str) -> str:
    """Describe a file without a state_dict, at the place where one is most likely."""
    for _ in range(_DEEPEST):
        inner = values if isinstance(values, Mapping) else {}
        values = next((inner[k] for k in WRAPPERS if isinstance(inner.get(k), Mapping)), values)
    if not isinstance(values, Mapping):
        return f"{source} holds a {type(values).__name__} and no state_dict; save net.state_dict()"
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return (
                f"{source} holds no state_dict: its entry {shown(name)} is a "
                f"{type(value).__name__}, and tensors by name are needed; save net.state_dict()"
            )
        if not _is_plain(value):
            return (
                f"{source} holds {shown(name)} as a tensor of another kind than a plain one "
                f"({shown(value.layout)}, {value.dtype}); save the float model's state_dict()"
            )
    return f"{source} holds an empty dict and no state_dict; save net.state_dict()"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, because they are views of a file that may be replaced.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ExternalError(f"{path} cannot be read: {reason(error)}") from error
    except (SafetensorError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a safetensors file: {reason(error)}") from error


def _read_pickled(path: Path) -> Any:
    """The tensors and plain values that ``torch.save`` wrote, without those of ``_LEFT_OUT``."""
    try:
        _check_zip(path)
        # torch's unpickler calls the replacements instead of the classes.
        with torch.serialization.safe_globals(_LEFT_OUT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek in a truncated file
            raise UsageError(_refusal(path, error)) from error
        raise ExternalError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise UsageError(_refusal(path, error)) from error


def _check_zip(path: Path) -> None:
    """Refuse a compressed archive, which may grow in memory; ``torch.save`` does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("compressed")


def _refusal(path: Path, error: Exception) -> str:
    """The message for an error of torch, whose own advises to load the file with its code."""
    name = one_line(path)
    if found := _GLOBAL.search(str(error)):
        return (
            f"{name} holds {found[1]}, and only tensors and plain values are read; "
            "save net.state_dict(), not net, and no other object: "
            "torch.save(net.state_dict(), 'net.pth')"
        )
    if "TorchScript" in str(error):
        return f"{name} is a TorchScript archive; save net.state_dict() with torch.save"
    return (
        f"{name} cannot be read: torch.save did not write it, or it is damaged; give a "
        "state_dict saved as .pth, .pt or .safetensors"
    )
