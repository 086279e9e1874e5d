"""Tables come back as they were written, in every form, and are written whole or not at all."""

import csv
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from fcifar.errors import ExternalError, UsageError
from fcifar.export import tables

TABLE = {
    "id": np.array(["test/00000", 'a, "b"', "łódź"]),
    "label": np.array([3, 0, 9]),
    "correct": np.array([True, False, True]),
    "loss": np.array([0.1, math.nan, math.inf], np.float32),
    "rate": np.array([1 / 3, 0.0, -1e-300]),
}


def test_csv_keeps_every_digit_and_is_standard(tmp_path: Path) -> None:
    tables.write(tmp_path / "new/t.csv", TABLE)
    with (tmp_path / "new/t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(TABLE)
    assert [row["id"] for row in rows] == TABLE["id"].tolist()
    assert [int(row["label"]) for row in rows] == [3, 0, 9]
    assert [row["correct"] for row in rows] == ["true", "false", "true"]
    assert rows[0]["loss"] == "0.1", "no more digits than a float32 has"
    np.testing.assert_array_equal(
        np.array([row["loss"] for row in rows]).astype(np.float32), TABLE["loss"]
    )
    assert [float(row["rate"]) for row in rows] == TABLE["rate"].tolist()


def test_npz_keeps_types_and_needs_no_pickle(tmp_path: Path) -> None:
    tables.write(tmp_path / "t.NPZ", TABLE)
    with np.load(tmp_path / "t.NPZ", allow_pickle=False) as found:
        assert found.files == list(TABLE)
        for name, column in TABLE.items():
            assert found[name].dtype == column.dtype
            np.testing.assert_array_equal(found[name], column)


def test_parquet_keeps_types(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'fcifar[parquet]'")
    from pyarrow import parquet

    tables.write(tmp_path / "t.parquet", TABLE)
    found = parquet.read_table(tmp_path / "t.parquet")
    kinds = dict(zip(found.column_names, map(str, found.schema.types), strict=True))
    expected = ("string", "int64", "bool", "float", "double")
    assert kinds == dict(zip(TABLE, expected, strict=True))
    assert list(kinds) == list(TABLE)
    for name, column in TABLE.items():
        values = np.array(found[name].to_pylist())
        np.testing.assert_array_equal(values.astype(column.dtype), column)


def test_parquet_without_pyarrow_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs pyarrow.*pip install 'fcifar\[parquet\]'"):
        tables.write(tmp_path / "t.parquet", TABLE)
    tables.check(tmp_path / "t.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["t.json", "t", ".csv", "csv", "t.csv.gz", "a\nb.txt"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"must end in \.csv, \.npz or \.parquet") as error:
        tables.check(Path(name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [".csv", ".npz"])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"t{form}"
    path.write_text("before")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "_texts", refuse)
    monkeypatch.setattr(np, "savez_compressed", refuse)
    with pytest.raises(ExternalError, match="No space left"):
        tables.write(path, TABLE)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", [".csv", ".npz"])
def test_the_same_table_gives_the_same_bytes(tmp_path: Path, form: str) -> None:
    for name in "ab":
        tables.write(tmp_path / f"{name}{form}", TABLE)
    first, second = ((tmp_path / f"{name}{form}").read_bytes() for name in "ab")
    assert first == second
