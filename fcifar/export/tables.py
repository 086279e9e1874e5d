"""Tables of columns as files that other programs read: .csv, .npz and .parquet."""

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcifar import io
from fcifar.errors import UsageError, one_line

Table = Mapping[str, np.ndarray]  # columns of one length: numbers, booleans or text
FORMS = (".csv", ".npz", ".parquet")


def check(path: Path) -> None:
    """Make sure that a table can be written in the form that the name of ``path`` ends in.

    Raises:
        UsageError: it ends in something else, or in .parquet and pyarrow is not installed.
    """
    form = path.suffix.lower()
    if form not in FORMS:
        raise UsageError(
            f"a table cannot be written as {one_line(path)}; its name must end in .csv, .npz or "
            ".parquet"
        )
    if form == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{one_line(path)} needs pyarrow, which is not installed; pip install "
            "'fcifar[parquet]', or choose .csv or .npz"
        )


def write(path: Path, table: Table) -> None:
    """Write a table, whole or not at all, in the form that the name of ``path`` ends in.

    A .csv file has a line of names, numbers with as many digits as tell them from their
    neighbours, ``nan``, ``inf``, ``true`` and ``false``. A .npz file has an array for each column,
    which ``numpy.load`` reads without pickles. The same table gives the same bytes.

    Raises:
        UsageError: as ``check``.
        ExternalError: the disk refused.
    """
    check(path)
    with io.replacing(path) as temporary:
        match path.suffix.lower():
            case ".csv":
                _write_csv(temporary, table)
            case ".npz":
                columns: dict[str, Any] = dict(table)
                with temporary.open("wb") as file:
                    np.savez_compressed(file, **columns)
            case ".parquet":
                _write_parquet(temporary, table)


def _write_csv(path: Path, table: Table) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*map(_texts, table.values()), strict=True))


def _texts(column: np.ndarray) -> list[str]:
    texts = column.astype(str)
    return (np.char.lower(texts) if column.dtype == bool else texts).tolist()


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow
    from pyarrow import parquet

    with path.open("wb") as file:  # opened here, for pyarrow wants names that are UTF-8
        parquet.write_table(pyarrow.table(dict(table)), file)
