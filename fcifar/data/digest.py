"""The digest of a prepared data set's file, computed without torch: while torch is imported."""

import hashlib
import json
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fcifar.data.paths import path_of

_DTYPES = {"U8": "uint8", "I64": "int64"}
_begun: dict[Path, Future[str]] = {}


def of_file(path: Path) -> str:
    """Return the ``content_digest`` of a file that ``store.save`` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError, LookupError: it is not such a file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(content[8 : 8 + size])
        classes = json.dumps(json.loads(header.pop("__metadata__")["classes"])).encode()
        parts: dict[str, Any] = {"classes": ("uint8", [len(classes)], 0, len(classes), classes)}
        for name, entry in header.items():
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            parts[name] = (_DTYPES[entry["dtype"]], entry["shape"], begin, end, content)
        sha = hashlib.sha256()
        for name, (dtype, shape, begin, end, source) in sorted(parts.items()):
            sha.update(f"{name} {dtype} {list(shape)}\n".encode())
            with memoryview(source) as view, view[begin:end] as part:
                sha.update(part)
    return sha.hexdigest()


def begin(name: str, root: Path) -> None:
    """Begin to read a data set in another thread, if there is one of that name."""
    path = path_of(name, root)
    if path.exists():
        _begun[path] = ThreadPoolExecutor().submit(of_file, path)


def of_store(name: str, root: Path) -> str:
    """Return the digest that ``begin`` computes, or compute it. Raises as ``of_file``."""
    path = path_of(name, root)
    begun = _begun.pop(path, None)
    return of_file(path) if begun is None else begun.result()
