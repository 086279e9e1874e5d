"""The state_dicts in a file that others have saved, as named tensors. No code of theirs is run.

A checkpoint holds a state_dict beside other things, and may hold several, such as a moving average.
All of them are found. Which is meant, and which prefixes of its names come from a wrapper, depends
on the network that it is for: see ``fitting.match``.
"""

import errno
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fcifar.errors import ExternalError, UsageError, one_line, reason, shown

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
)  # keys of checkpoints, likeliest first
_DEEPEST = 4  # checkpoints inside checkpoints
_GLOBAL = re.compile(r"GLOBAL ([\w.]{1,100})")  # as torch names what it will not unpickle


class _LeftOut:
    """Stands for a value that is not a tensor: takes what a pickle gives it, and keeps nothing."""

    def __new__(cls, *_: Any) -> "_LeftOut":
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# What is often saved beside a state_dict and is not part of the model: settings, paths, numbers.
_LEFT_OUT: list[Any] = [
    (type(name.rpartition(".")[2], (_LeftOut,), {}), name)
    for name in (
        *("argparse.Namespace", "types.SimpleNamespace", "_codecs.encode"),
        *(
            f"pathlib.{kind}{form}"
            for kind in ("", "Pure")
            for form in ("PosixPath", "WindowsPath")
        ),
        *("numpy.dtype", "numpy.ndarray"),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
    )
]


class StateDict(NamedTuple):
    """Named tensors out of a file."""

    tensors: dict[str, Tensor]  # on the CPU, with the names and dtypes of the file
    key: str = ""  # of the checkpoint's entry that they are; with dots between, if it is nested


def read(path: Path) -> tuple[StateDict, ...]:
    """The state_dicts in a file that ``torch.save`` wrote, or in a ``.safetensors``.

    Returns:
        One or more, the likeliest first: see ``find``.

    Raises:
        UsageError: there is no state_dict in it, or it is neither of the two.
        ExternalError: it cannot be read.
    """
    is_safetensors = path.suffix.lower() == ".safetensors"
    return find(_read_safetensors(path) if is_safetensors else _read_pickled(path), str(path))


def find(values: Any, source: str) -> tuple[StateDict, ...]:
    """Every state_dict in what a file held: itself, or entries of it, up to four levels deep.

    Those under a key of ``WRAPPERS`` come first, and what is less deep before what is deeper.

    Args:
        values: such as a state_dict, or a checkpoint with one under ``model_state_dict``.
        source: what messages call it.

    Raises:
        UsageError: there is none in it.
    """
    found: list[tuple[int, int, StateDict]] = []
    level, seen = [((), values)], {id(values)}
    for depth in range(_DEEPEST + 1):
        deeper = []
        for keys, part in level:
            if _is_state_dict(part):
                rank = WRAPPERS.index(keys[-1]) if keys and keys[-1] in WRAPPERS else len(WRAPPERS)
                tensors = {name: value.detach() for name, value in part.items()}
                found.append((rank, depth, StateDict(tensors, ".".join(keys))))
            elif isinstance(part, Mapping):
                for key, value in part.items():
                    # Once each, for a file may say the same thing many times over.
                    if (
                        isinstance(key, str)
                        and isinstance(value, Mapping)
                        and id(value) not in seen
                    ):
                        seen.add(id(value))
                        deeper.append(((*keys, key), value))
        level = deeper
    if not found:
        raise UsageError(_what_is_there(values, source))
    return tuple(each for *_, each in sorted(found, key=lambda entry: entry[:2]))


def _is_state_dict(values: Any) -> bool:
    return (
        isinstance(values, Mapping)
        and bool(values)
        and all(isinstance(name, str) and _is_plain(value) for name, value in values.items())
    )


def _is_plain(value: Any) -> bool:
    """Whether it is numbers in memory: not sparse, quantized, or without values."""
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _what_is_there(values: Any, source: str) -> str:
    """What a file without a state_dict holds, where one is looked for first."""
    for _ in range(_DEEPEST):
        if not isinstance(values, Mapping):
            break
        key = next((key for key in WRAPPERS if isinstance(values.get(key), Mapping)), None)
        if key is None:
            break
        values = values[key]
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
            # Cloned, for otherwise they would be views of a file that may be replaced.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ExternalError(f"{path} cannot be read: {reason(error)}") from error
    except (SafetensorError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a safetensors file: {reason(error)}") from error


def _read_pickled(path: Path) -> Any:
    """What ``torch.save`` was given, if it was tensors and plain values, or ``_LEFT_OUT``."""
    try:
        _check_zip(path)
        # torch's unpickler calls the stand-ins, and not what they stand for.
        with torch.serialization.safe_globals(_LEFT_OUT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms that are old
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to before the beginning of what was cut off
            raise UsageError(_refusal(path, error)) from error
        raise ExternalError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # bytes that are no such file lead torch to errors of many kinds
        raise UsageError(_refusal(path, error)) from error


def _check_zip(path: Path) -> None:
    """Refuse an archive that would grow in memory: ``torch.save`` does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("compressed")


def _refusal(path: Path, error: Exception) -> str:
    """Our words, for torch's advise to load such a file with code in it."""
    name = one_line(path)
    if found := _GLOBAL.search(str(error)):
        return (
            f"{name} holds {found[1]}, and nothing but tensors and plain values is read of "
            "another's file; save net.state_dict(), not net, and no other object beside it: "
            "torch.save(net.state_dict(), 'net.pth')"
        )
    if "TorchScript" in str(error):
        return f"{name} is a TorchScript archive; save net.state_dict() with torch.save"
    return (
        f"{name} cannot be read: torch.save did not write it, or it is damaged; give a "
        "state_dict saved as .pth, .pt or .safetensors"
    )
