"""The metrics log of a run as a CSV table."""

import csv
from pathlib import Path
from typing import Any

from fcifar.io import replacing
from fcifar.train import metrics_log, run_dir, sweep

SUFFIX = ".csv"
_NESTED = "tensors"  # digests of single tensors, left out of the table


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the log records of a run, or of each run of a group, with the run's name.

    Keys: ``step``, ``epoch``, ``split`` (train, valid, test, or with a test-time augmentation),
    ``loss``, ``accuracy``, ``count`` (of images), ``learning_rate``, ``images_per_second``,
    ``seconds`` and ``digest``. A number that is not finite is None.

    Raises:
        UsageError: there is no run at ``path``.
        ExternalError: a log is damaged.
    """
    if not run_dir.is_group(path):
        return _records(path)
    begun = [m.name for m in sweep.read(path).trials if (path / m.name).is_dir()]
    return [{"run": name, **record} for name in begun for record in _records(path / name)]


def _records(run: Path) -> list[dict[str, Any]]:
    run_dir.read_manifest(run)  # raises if there is no run
    records = metrics_log.read_digests(run)
    return [{n: value for n, value in record.items() if n != _NESTED} for record in records]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write a row for each record, atomically, and return the columns.

    They are the keys of all records in order of first appearance; missing values are empty. Numbers
    have all digits.

    Raises:
        ExternalError: the file cannot be written.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return columns
