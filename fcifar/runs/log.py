"""The metrics log: ``metrics.jsonl``, a line for each log point, chained.

Each line ends with a check: the beginning of a SHA-256 over the check of the line before and over
the line itself. A line that is changed, lost, added or moved later breaks the chain there. The
chain hangs on the manifest's seal, so that a log does not fit another run.

A checkpoint keeps where the log stood (``Mark``), and a resumed run cuts the log back to it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.data.files import cannot_write, replacing
from fcifar.errors import DamagedError, WorldError
from fcifar.runs.jsonfiles import finite

FILE = "metrics.jsonl"
_DIGITS = 16
_TAIL = len(', "check": ""}\n') + _DIGITS


class Mark(NamedTuple):
    """How far a log goes."""

    lines: int
    check: str  # of the last line; the manifest's seal where there is none


def append(run: Path, record: Mapping[str, Any], mark: Mark) -> Mark:
    """Add a line after ``mark``, which is the end, and return the new end.

    Raises:
        WorldError: the disk refused. What it took of the line is left out when the log is read.
    """
    path = run / FILE
    text = json.dumps(finite(record), allow_nan=False)
    check = _check(mark.check, text)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f'{text[:-1]}, "check": "{check}"}}\n')
    except OSError as error:
        raise cannot_write(path, error) from error
    return Mark(mark.lines + 1, check)


def sync(run: Path) -> None:
    """Force the log to the disk, so that a checkpoint may refer to it."""
    path = run / FILE
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from error


def read(run: Path, start: str) -> list[dict[str, Any]]:
    """All records; a last line that was cut short is left out.

    Args:
        start: the manifest's seal, from which the chain hangs.

    Raises:
        DamagedError: a line is not as it was written; the message names it.
    """
    return [record for record, _ in _walk(run / FILE, start)]


def read_checks(run: Path, start: str) -> list[str]:
    """The check after each number of lines, from 0 on. Raises as ``read``."""
    return [start, *(mark.check for _, mark in _walk(run / FILE, start))]


def rewind(run: Path, start: str, mark: Mark) -> list[dict[str, Any]]:
    """Forget what came after ``mark``, and return the records up to it.

    Raises:
        DamagedError: the log does not lead to ``mark``; it is left as it is.
        WorldError: the disk refused.
    """
    path = run / FILE
    records, end = [], Mark(0, start)
    if mark.lines:
        for record, end in _walk(path, start):
            records.append(record)
            if end.lines == mark.lines:
                break
    if end != mark:
        raise DamagedError(f"{path} has {end.lines} lines that fit, not {mark.lines}")
    if path.exists():
        kept = path.read_bytes().split(b"\n")[: mark.lines]
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    return records


def _walk(path: Path, start: str) -> Iterator[tuple[dict[str, Any], Mark]]:
    """Each record, and where the log stands after it."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise WorldError(f"{path} cannot be read: {error.strerror}") from error
    check = start
    for number, line in enumerate(lines, 1):
        text = line[: 1 - _TAIL].decode("utf-8", "replace") + "}"
        check = _check(check, text)
        try:
            record = json.loads(text) if line.endswith(f', "check": "{check}"}}'.encode()) else None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise DamagedError(f"{path} is damaged: line {number} is not as it was written")
        yield record, Mark(number, check)


def _check(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()[:_DIGITS]
