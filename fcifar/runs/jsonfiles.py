"""JSON files: written whole, read with care, and sealed where a later change must show."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcifar.data.files import write_text
from fcifar.errors import DamagedError, WorldError

SEAL = "seal"
_LIMIT = 64 * 2**20  # bytes; ours are thousands of times smaller


def write(path: Path, values: Any) -> None:
    """Replace ``path`` by ``values`` as JSON."""
    write_text(path, json.dumps(finite(values), indent=2, allow_nan=False) + "\n")


def read(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        DamagedError: it is not JSON.
        WorldError: it is missing or cannot be read.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise DamagedError(f"{path} is larger than {_LIMIT} bytes; that is no file of fcifar")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorldError(f"there is no file {path}") from error
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as JSON: {error}") from error


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """As ``write``, with a SHA-256 of the values among them."""
    write(path, {**values, SEAL: seal(values)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What ``write_sealed`` was given.

    Raises:
        DamagedError: it was changed after it was written.
        WorldError: it is missing or cannot be read.
    """
    values = read(path)
    if not isinstance(values, dict) or not isinstance(found := values.pop(SEAL, None), str):
        raise DamagedError(f"{path} has no seal: fcifar did not write it, or it was changed since")
    if found != (expected := seal(values)):
        raise DamagedError(
            f"{path} was changed after it was written: its seal is {found[:12]}, and its content "
            f"has {expected[:12]}"
        )
    return values


def seal(values: Mapping[str, Any]) -> str:
    """SHA-256 of values that JSON holds, in whatever order and layout."""
    text = json.dumps(finite(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def finite(values: Any) -> Any:
    """The values with null for NaN and infinity, which JSON has not."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return values
