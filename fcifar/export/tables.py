"""Write tables of columns as .csv, .npz or .parquet."""

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcifar import io
from fcifar.errors import UsageError, one_line

Table = Mapping[str, np.ndarray]  # columns of one length: numbers, booleans or text


def check(path: Path) -> None:
    """Check that a table can be written in the format of ``path``'s suffix.

    Raises:
        UsageError: the suffix is another, or .parquet and pyarrow is not installed.
    """
    if path.suffix.lower() not in (".csv", ".npz", ".parquet"):
        raise UsageError(
            f"a table cannot be written as {one_line(path)}; its name must end in .csv, .npz or "
            ".parquet"
        )
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{one_line(path)} needs pyarrow, which is not installed; pip install "
            "'fcifar[parquet]', or choose .csv or .npz"
        )


def write(path: Path, table: Table) -> None:
    """Write a table, atomically, in the format of ``path``'s suffix.

    A .csv file has a header, the shortest digits that give each number back, ``nan``, ``inf``,
    ``true`` and ``false``. A .npz file has an array for each column, readable without pickle. The
    same table gives the same bytes.

    Raises:
        UsageError: as ``check``.
        ExternalError: the file cannot be written.
    """
    check(path)
    with io.replacing(path) as temporary:
        match path.suffix.lower():
            case ".csv":
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(table)
                    writer.writerows(zip(*map(_texts, table.values()), strict=True))
            case ".npz":
                columns: dict[str, Any] = dict(table)
                with temporary.open("wb") as file:
                    np.savez_compressed(file, **columns)
            case ".parquet":
                import pyarrow
                from pyarrow import parquet

                with temporary.open("wb") as file:  # pyarrow accepts only names in UTF-8
                    parquet.write_table(pyarrow.table(dict(table)), file)


def _texts(column: np.ndarray) -> list[str]:
    texts = column.astype(str)
    return (np.char.lower(texts) if column.dtype == bool else texts).tolist()
