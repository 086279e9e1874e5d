"""A run's metrics log as a table that a spreadsheet reads."""

import csv
from pathlib import Path
from typing import Any

from fcifar.data.files import replacing
from fcifar.runs import directory, group

SUFFIX = ".csv"
_NESTED = "tensors"  # digests of single tensors: too many columns for a table; the log has them


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The records of a run's log, or of those of each run of a group, with the run's name.

    What happened: ``kind`` (train or eval), ``split`` (valid, test, or with a test-time
    augmentation; of training there is none), ``step``, ``epoch``, ``loss``, ``accuracy``, ``count``
    (of images), ``seconds`` and ``digest``. A number that was not finite is None.

    Raises:
        UserError: there is no run at ``path``.
        WorldError: a log is damaged.
    """
    if not group.is_group(path):
        return [_plain(record) for record in directory.read_records(path)]
    begun = [m.name for m in group.read(path).members if (path / m.name).is_dir()]
    return [
        {"run": name, **_plain(record)}
        for name in begun
        for record in directory.read_records(path / name)
    ]


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != _NESTED}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write a row for each record, whole or not at all, and return the columns.

    The columns are all that any record has, in the order of their first appearance; what a record
    does not have is empty. Numbers have every digit.

    Raises:
        WorldError: the disk refused.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return columns
