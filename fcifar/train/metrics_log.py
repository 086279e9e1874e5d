"""The metrics log: ``metrics.jsonl`` to read and plot, ``digests.jsonl`` to compare runs.

Each log point and each evaluation adds a line to both. A line of ``metrics.jsonl`` has

    step, epoch        steps and (fractional) passes over the training images so far
    split              train, valid, test, or test-VIEWS with test-time augmentation
    loss, accuracy     means over ``count`` images: since the last log point, or of the split
    count              images
    learning_rate      of the last step (train)
    images_per_second  since the last log point (train), or of the evaluation
    seconds            of training so far (train), or of the evaluation

and its line of ``digests.jsonl`` has step, split and ``digest``: of the state (train), with one
per tensor in ``tensors``, or of the predictions. A checkpoint records the ``Position`` in both
files, and a resumed run truncates them to it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import io
from fcifar.errors import DamagedError
from fcifar.train.run_dir import DIGESTS, METRICS, read_checked

_FILES = (METRICS, DIGESTS)
_EMPTY = hashlib.sha256().hexdigest()


class Position(NamedTuple):
    """Sizes and SHA-256 of the two files of a log."""

    metrics_bytes: int = 0
    metrics_sha256: str = _EMPTY
    digests_bytes: int = 0
    digests_sha256: str = _EMPTY


class MetricsLog:
    """Appends to the log of a run; does nothing on ranks that are not ``enabled``."""

    def __init__(self, run: Path, *, enabled: bool = True) -> None:
        self.run = run
        self.enabled = enabled
        self._hashes = [hashlib.sha256() for _ in _FILES]
        self._sizes = [0] * len(_FILES)

    @property
    def position(self) -> Position:
        """The current end of the log."""
        (metrics, digests), (a, b) = self._sizes, (h.hexdigest() for h in self._hashes)
        return Position(metrics, a, digests, b)

    def append(self, metrics: Mapping[str, Any], digests: Mapping[str, Any]) -> None:
        """Add a line to both files. Raises an ExternalError if one cannot be written."""
        if not self.enabled:
            return
        digests = {"step": metrics["step"], "split": metrics["split"], **digests}
        for i, (name, record) in enumerate(zip(_FILES, (metrics, digests), strict=True)):
            line = json.dumps(io.finite(record), allow_nan=False).encode() + b"\n"
            try:
                with (self.run / name).open("ab") as file:
                    file.write(line)
            except OSError as error:
                raise io.cannot_write(self.run / name, error) from error
            self._hashes[i].update(line)
            self._sizes[i] += len(line)

    def sync(self) -> None:
        """Flush the log to the disk, so that a checkpoint may refer to it."""
        for path in (self.run / name for name in _FILES):
            if self.enabled and path.exists():
                try:
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                except OSError as error:
                    raise io.cannot_write(path, error) from error

    def rewind(self, position: Position) -> None:
        """Truncate the log to ``position``. Raises a DamagedError as ``read_prefixes``."""
        contents = read_prefixes(self.run, position)
        for name, content in zip(_FILES, contents, strict=True):
            if (self.run / name).exists() or content:
                with io.replacing(self.run / name) as temporary:
                    temporary.write_bytes(content)
        self._hashes = [hashlib.sha256(content) for content in contents]
        self._sizes = [len(content) for content in contents]


def read_digests(run: Path) -> list[dict[str, Any]]:
    """As ``read``, with the digests of each record."""
    both = zip(read(run), read(run, DIGESTS), strict=False)
    return [{**metrics, **digests} for metrics, digests in both]


def read(run: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """Return the records of ``metrics.jsonl``; an incomplete last line is ignored.

    Raises a DamagedError if the file has changed since it was written.
    """
    if not (run / name).exists():
        return []
    records = []
    for number, line in enumerate(read_checked(run, name).split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not {"step", "split"} <= record.keys():
            raise DamagedError(f"{run / name} is damaged in line {number}")
        records.append(record)
    return records


def read_prefixes(run: Path, position: Position) -> list[bytes]:
    """Return the content of both files up to ``position``. Raises a DamagedError if it changed."""
    contents = []
    for name, size, sha256 in ((METRICS, *position[:2]), (DIGESTS, *position[2:])):
        content = io.read_bytes(run / name)[:size] if size else b""
        if len(content) != size or hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedError(f"{run / name} does not begin with the {size:,} bytes written to it")
        contents.append(content)
    return contents
