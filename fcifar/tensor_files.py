"""Trees of tensors as safetensors files, without pickle: one entry per leaf.

The metadata of each file has a SHA-256 of its content, so that it can be checked by itself.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcifar import io, tree
from fcifar.errors import DamagedError, shown
from fcifar.tree import Tree

HEAD = "fcifar"  # the only metadata entry, because safetensors does not keep the order of several
_CHECKSUM = "sha256"


def save(path: Path, values: Tree, metadata: Mapping[str, str]) -> None:
    """Write the leaves of ``values`` by dotted name, with ``metadata``.

    The same values and metadata always give the same bytes.

    Raises:
        ExternalError: the file cannot be written; ``path`` is then unchanged.
    """
    with io.replacing(path) as temporary:
        write(temporary, values, metadata)


def write(path: Path, values: Tree, metadata: Mapping[str, str]) -> None:
    """As ``save``, but not atomic. Raises the exceptions of safetensors."""
    leaves = tree.named_leaves(tree.on_device(values, "cpu"))
    # Clone, because safetensors rejects tensors that share memory.
    tensors = {name: leaf.detach().contiguous().clone() for name, leaf in leaves.items()}
    with_checksum = {**metadata, _CHECKSUM: _checksum(tensors, metadata)}
    save_file(tensors, path, {HEAD: json.dumps(with_checksum, sort_keys=True)})


def load(path: Path, like: Tree) -> tuple[Tree, dict[str, str]]:
    """Read a tree in the structure and on the devices of ``like``; return it and the metadata.

    Raises:
        DamagedError: the file is damaged, or its names, shapes or dtypes differ from ``like``; the
            message names the first such leaf.
        ExternalError: the file is missing or cannot be read.
    """
    tensors, metadata = read(path)
    return fit(path, tensors, like), metadata


def fit(path: Path, tensors: Mapping[str, Tensor], like: Tree) -> Tree:
    """Arrange tensors read from ``path`` in the structure and on the devices of ``like``.

    Raises:
        DamagedError: names, shapes or dtypes differ; the message names the first such leaf.
    """
    expected = tree.named_leaves(like)
    if different := sorted(set(expected) ^ set(tensors)):
        problem = "is missing" if different[0] in expected else "is not expected"
        raise DamagedError(f"{path} does not fit: {shown(different[0])} {problem}")
    for name, leaf in expected.items():
        tensor = tensors[name]
        if tensor.shape != leaf.shape or tensor.dtype != leaf.dtype:
            raise DamagedError(
                f"{path} does not fit: {name} is {_describe(tensor)}, not {_describe(leaf)}"
            )
    _, unflatten = tree.flatten(like)
    return unflatten([tensors[name].to(leaf.device) for name, leaf in expected.items()])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file by name, on the CPU, and its metadata.

    Raises:
        DamagedError: the content is not what was written.
        ExternalError: the file is missing or cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Clone, because the tensors are views of a file that may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get(HEAD, "{}"))
    except OSError as error:
        raise io.cannot_read(path, error) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as a safetensors file: {error}") from error
    if not isinstance(metadata, dict) or _CHECKSUM not in metadata:
        raise DamagedError(f"{path} has no checksum: fcifar did not write it, or it is damaged")
    if metadata.pop(_CHECKSUM) != _checksum(tensors, metadata):
        raise DamagedError(f"{path} is damaged: its content does not fit its checksum")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, without checking its content.

    Raises as ``read``.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = json.loads((file.metadata() or {}).get(HEAD, "{}"))
    except OSError as error:
        raise io.cannot_read(path, error) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as a safetensors file: {error}") from error
    return metadata if isinstance(metadata, dict) else {}


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    text = json.dumps(dict(metadata), sort_keys=True)
    return hashlib.sha256(f"{tree.digest(dict(tensors))}\n{text}".encode()).hexdigest()


def _describe(leaf: Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
