"""A ``state_dict`` as other people save it, as named tensors. No code of theirs is run.

What people wrap around one is taken off: checkpoints with an optimizer beside it, the prefixes of
``DataParallel`` and ``torch.compile``, counters that no prediction depends on.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fcifar.errors import UserError, WorldError, one_line, reason, shown

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and of AveragedModel
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


# What is often saved beside a state_dict, and is no part of the network: settings, paths, numbers.
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
    """Named tensors out of a file, and what was done to get at them."""

    tensors: dict[str, Tensor]  # on the CPU, with the dtypes of the file
    notes: tuple[str, ...]  # a line each, for a person


def read(path: Path) -> StateDict:
    """The named tensors in a file that ``torch.save`` wrote, or in a ``.safetensors``.

    Raises:
        UserError: it holds anything but named tensors, or is neither of the two.
        WorldError: it cannot be read.
    """
    is_safetensors = path.suffix.lower() == ".safetensors"
    values = _read_safetensors(path) if is_safetensors else _read_pickled(path)
    return unwrap(values, str(path))


def unwrap(values: Any, source: str) -> StateDict:
    """The state_dict in what a file held.

    Args:
        values: such as a state_dict, or a checkpoint with one under ``model_state_dict``.
        source: what messages call it.

    Raises:
        UserError: there is none in it.
    """
    notes = []
    for _ in range(_DEEPEST):
        if (key := _wrapper(values)) is None:
            break
        values = values[key]
        notes.append(f"took {key!r} out of the checkpoint {source}")
    tensors = _named_tensors(values, source)
    counters = [name for name in tensors if name.rpartition(".")[2] in COUNTERS]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
    if counters:
        what = " and ".join(sorted({name.rpartition(".")[2] for name in counters}))
        notes.append(f"left out {what} of {source}, on which no prediction depends")
    while tensors and (prefix := _common_prefix(tensors)) is not None:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        notes.append(f"left out {prefix!r} before the names in {source}")
    return StateDict(tensors, tuple(notes))


def _wrapper(values: Any) -> str | None:
    """The key of a checkpoint that its state_dict is under."""
    if not isinstance(values, Mapping):
        return None
    return next((key for key in WRAPPERS if isinstance(values.get(key), Mapping)), None)


def _common_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    return next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None)


def _named_tensors(values: Any, source: str) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        raise UserError(
            f"{source} holds a {type(values).__name__} and no state_dict; save net.state_dict()"
        )
    if not values:
        raise UserError(f"{source} holds an empty dict and no state_dict; save net.state_dict()")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{source} holds no state_dict: its entry {shown(name)} is a "
                f"{type(value).__name__}, and tensors by name are needed; save net.state_dict()"
            )
        if not _is_plain(value):
            raise UserError(
                f"{source} holds {shown(name)} as a tensor of another kind than a plain one "
                f"({shown(value.layout)}, {value.dtype}); save the float network's state_dict()"
            )
    return {name: value.detach() for name, value in values.items()}


def _is_plain(value: Tensor) -> bool:
    """Whether it is numbers in memory: not sparse, quantized, or without values."""
    return (
        type(value) in (Tensor, nn.Parameter, nn.Buffer)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, for otherwise they would be views of a file that may be replaced.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {reason(error)}") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {reason(error)}") from error


def _read_pickled(path: Path) -> Any:
    """What ``torch.save`` was given, if it was tensors and plain values, or ``_LEFT_OUT``."""
    try:
        _check_zip(path)
        # torch's unpickler calls the stand-ins, and not what they stand for.
        with torch.serialization.safe_globals(_LEFT_OUT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms that are old
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {reason(error)}") from error
    except Exception as error:  # bytes that are no such file lead torch to errors of many kinds
        raise UserError(_refusal(path, error)) from error


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
