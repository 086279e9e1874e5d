"""Trees of tensors in safetensors files: no pickle, no code, one name a leaf.

Each file has a SHA-256 of its content in its metadata, so that it can be checked by itself.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcifar import io, tree
from fcifar.errors import DamagedError, ExternalError, shown
from fcifar.tree import Tree

HEAD = "fcifar"  # the one entry of a file's metadata: safetensors shuffles several
_CHECKSUM = "sha256"


def save(path: Path, values: Tree, metadata: Mapping[str, str]) -> None:
    """Write the leaves of ``values`` under their dotted names, with ``metadata``.

    The same values and metadata make the same bytes.

    Raises:
        ExternalError: it cannot be written; ``path`` is then as it was.
    """
    with io.replacing(path) as temporary:
        write(temporary, values, metadata)


def write(path: Path, values: Tree, metadata: Mapping[str, str]) -> None:
    """As ``save``, over whatever is at ``path``. Raises what safetensors does."""
    leaves = tree.named_leaves(tree.on_device(values, "cpu"))
    # Cloned, for safetensors refuses tensors that share memory.
    tensors = {name: leaf.detach().contiguous().clone() for name, leaf in leaves.items()}
    sealed = {**metadata, _CHECKSUM: _checksum(tensors, metadata)}
    save_file(tensors, path, {HEAD: json.dumps(sealed, sort_keys=True)})


def load(path: Path, like: Tree) -> tuple[Tree, dict[str, str]]:
    """The tree that was saved, in the structure and on the devices of ``like``, and its metadata.

    Raises:
        DamagedError: it is not what was written, or holds other names, shapes or dtypes than
            ``like``; the message names the first leaf that differs.
        ExternalError: it is missing or cannot be read.
    """
    tensors, metadata = read(path)
    return fit(path, tensors, like), metadata


def fit(path: Path, tensors: Mapping[str, Tensor], like: Tree) -> Tree:
    """Named tensors, read from ``path``, in the structure and on the devices of ``like``.

    Raises:
        DamagedError: names, shapes or dtypes are others; the message names the first.
    """
    wanted = tree.named_leaves(like)
    if missing := sorted(set(wanted) ^ set(tensors)):
        where = "is missing" if missing[0] in wanted else "is not expected"
        raise DamagedError(f"{path} does not fit: {shown(missing[0])} {where}")
    for name, leaf in wanted.items():
        found = tensors[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise DamagedError(
                f"{path} does not fit: {name} is {_describe(found)}, not {_describe(leaf)}"
            )
    _, unflatten = tree.flatten(like)
    return unflatten([tensors[name].to(leaf.device) for name, leaf in wanted.items()])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file by name, on the CPU, and its metadata.

    Raises:
        DamagedError: it is not what was written.
        ExternalError: it is missing or cannot be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, for otherwise they would be views of a file that may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get(HEAD, "{}"))
    except FileNotFoundError as error:
        raise ExternalError(f"there is no file {path}") from error
    except OSError as error:
        raise ExternalError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as a safetensors file: {error}") from error
    if not isinstance(metadata, dict) or _CHECKSUM not in metadata:
        raise DamagedError(f"{path} has no checksum: fcifar did not write it, or it is damaged")
    if metadata.pop(_CHECKSUM) != _checksum(tensors, metadata):
        raise DamagedError(f"{path} is damaged: its content does not fit its checksum")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    text = json.dumps(dict(metadata), sort_keys=True)
    return hashlib.sha256(f"{tree.digest(dict(tensors))}\n{text}".encode()).hexdigest()


def _describe(leaf: Tensor) -> str:
    return f"{str(leaf.dtype).removeprefix('torch.')} {list(leaf.shape)}"
