"""A run's log as CSV: a row for each log point, every digit, whatever there is."""

import csv
from pathlib import Path

import pytest

from fcifar.errors import UsageError
from fcifar.export import csv_log
from fcifar.recipes.trials import make_trials
from fcifar.train import loop, metrics_log, sweep
from fcifar.train.config import RunConfig


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run(config: RunConfig, dataset, tmp_path: Path) -> None:
    config = config.replace(recipe=config.recipe.replace(valid_fraction=0.2, tta="mirror"))
    loop.train(tmp_path / "run", config, dataset)
    rows = csv_log.read_rows(tmp_path / "run")
    columns = csv_log.write_csv(tmp_path / "new/metrics.csv", rows)
    found = read_csv(tmp_path / "new/metrics.csv")
    records = metrics_log.read_digests(tmp_path / "run")
    assert list(found[0]) == columns
    assert len(found) == len(records)
    for row, record in zip(found, records, strict=True):
        assert set(record) <= {*columns, "tensors"}
        for name in ("loss", "accuracy", "epoch"):
            assert float(row[name]) == record[name], "every digit"
        assert int(row["step"]) == record["step"]
        assert row["split"] == record["split"]
        assert row["digest"] == record["digest"]
    assert {row["split"] for row in found} == {"train", "valid", "test", "test-mirror"}
    first = (tmp_path / "new/metrics.csv").read_bytes()
    csv_log.write_csv(tmp_path / "new/metrics.csv", rows)
    assert (tmp_path / "new/metrics.csv").read_bytes() == first


def test_a_group_has_the_names_of_its_runs(
    config: RunConfig, dataset, recipe, tmp_path: Path
) -> None:
    trials = make_trials(recipe.replace(epochs=1), {}, [3, 4])
    asked = sweep.Sweep(trials, "loop", config.replace(recipe=trials[0].recipe, seed=3))
    sweep.train(tmp_path / "group", asked, dataset)
    rows = csv_log.read_rows(tmp_path / "group")
    alone = [csv_log.read_rows(tmp_path / "group" / name) for name in ("seed3", "seed4")]
    assert [row["run"] for row in rows] == ["seed3"] * len(alone[0]) + ["seed4"] * len(alone[1])
    assert [{k: v for k, v in row.items() if k != "run"} for row in rows] == [*alone[0], *alone[1]]


def test_what_is_not_finite_or_not_there_is_empty(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": None}, {"step": 2, "loss": 0.1, "split": "a, b"}]
    assert csv_log.write_csv(tmp_path / "m.csv", rows) == ["step", "loss", "split"]
    assert (tmp_path / "m.csv").read_text() == 'step,loss,split\n1,,\n2,0.1,"a, b"\n'


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run directory"):
        csv_log.read_rows(tmp_path)
