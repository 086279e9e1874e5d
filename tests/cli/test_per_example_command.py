"""fcifar eval with --per-example, and with several runs."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.report import draw
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime

ONE = ("--threads", 1, "--device", "cpu")
RUNS = ("run0", "run1", "run2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs and the data set they were made from."""
    place = tmp_path_factory.mktemp("place")
    keys = random.split(random.key(0), 4)
    train, test = (
        Split(
            random.randint(keys[i], (size, 3, 32, 32), 0, 256).byte(),
            random.randint(keys[i + 2], (size,), 0, 10),
        )
        for i, size in enumerate((42, 23))
    )
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=5, epochs=2, valid_fraction=0.2)
    for seed, run in enumerate(RUNS):
        config = make_config(recipe, tiny, seed=seed, runtime=Runtime(threads=1))
        loop.train(place / run, config, tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_run(fcifar, tmp_path: Path) -> None:
    done = fcifar("eval", "run0", "--per-example", "new/f.csv", "--json", "--quiet", *ONE)
    assert done.status == 0
    assert done.err == ""
    found = json.loads(done.out)
    assert "networks" not in found
    rows = read_csv(tmp_path / "new/f.csv")
    written = found["per_example"]
    assert (written["file"], written["rows"]) == ("new/f.csv", 23)
    assert [row["id"] for row in rows] == [f"test/{i:05}" for i in range(23)]
    assert np.mean([row["correct"] == "true" for row in rows]) == found["accuracy"]
    losses = np.array([float(row["loss"]) for row in rows])
    assert losses.mean() == pytest.approx(found["loss"])
    assert written["quantiles"]["loss"]["1"] == pytest.approx(losses.max())
    assert written["hardest"][0] == rows[losses.argmax()]["id"]
    plain = json.loads(fcifar("eval", "run0", "--json", *ONE).out)
    assert plain == {name: value for name, value in found.items() if name != "per_example"}


def test_a_person_sees_the_hardest_and_where_the_rest_is(fcifar) -> None:
    shown = fcifar("eval", "run0", "--per-example", "f.npz", *ONE)
    assert shown.status == 0
    assert shown.err == "evaluating\nscoring each image\n"
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    assert "\x1b" not in shown.out
    assert "written  f.npz: 23 images, 11 columns" in shown.out
    assert shown.out.count("test/000") == 5


def test_several_runs(fcifar, tmp_path: Path) -> None:
    done = fcifar("eval", *RUNS, "--per-example", "f.csv", "--json", *ONE)
    found = json.loads(done.out)
    alone = [json.loads(fcifar("eval", run, "--json", *ONE).out) for run in RUNS]
    networks = found["networks"]
    assert networks["runs"] == list(RUNS)
    assert networks["accuracies"] == [figures["accuracy"] for figures in alone]
    assert found["run"] == "run0"
    assert found["loss"] == alone[0]["loss"]
    rows = read_csv(tmp_path / "f.csv")
    rates = [float(row["error_rate"]) for row in rows]
    assert 1 - np.mean(rates) == pytest.approx(networks["mean_accuracy"])
    ensemble = np.mean([row["ensemble_correct"] == "true" for row in rows])
    assert ensemble == networks["ensemble_accuracy"]
    disagreement = np.mean([float(row["disagreement"]) for row in rows])
    assert disagreement == pytest.approx(networks["mean_disagreement"])

    shown = fcifar("eval", *RUNS, "--per-example", "f.csv", *ONE)
    assert shown.status == 0
    assert all(len(line) <= 80 for line in shown.out.splitlines())
    text = " ".join(shown.out.split())
    for words in ("first accuracy", "3 models", "together", "independent errors on"):
        assert words in text
    assert "of pairs disagree" in fcifar("eval", "run0", "run1/final.safetensors", *ONE).out


def test_images_held_out_keep_their_names(fcifar, tmp_path: Path) -> None:
    words = ("eval", "run1", "--split", "valid", "--per-example", "f.csv", "--json", *ONE)
    assert json.loads(fcifar(*words).out)["n"] == 8
    held_out = {row["id"]: row for row in read_csv(tmp_path / "f.csv")}
    fcifar("eval", "run1", "--split", "train", "--per-example", "g.csv", *ONE)
    everything = {row["id"]: row for row in read_csv(tmp_path / "g.csv")}
    assert len(everything) == 42
    for name, row in held_out.items():
        assert float(row["loss"]) == pytest.approx(float(everything[name]["loss"]), rel=1e-4)
        assert row["label"] == everything[name]["label"]


def test_pictures(fcifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "evaluation", lambda *_, **__: None)  # tests/cli/test_cli.py has them
    of_one = {"hardest.png", "scores.png"}
    of_several = {*of_one, "disputed.png", "networks.png"}
    for runs, expected in ((RUNS, of_several), (RUNS[:1], of_one)):
        words = ("eval", *runs, "--per-example", "f.csv", "--out", "out", "--json", *ONE)
        report = json.loads(fcifar(*words).out)
        assert json.loads((tmp_path / "out/report.json").read_text()) == report
        pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
        assert pictures == expected


def test_parquet(fcifar, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'fcifar[parquet]'")
    from pyarrow import parquet

    assert fcifar("eval", "run0", "--per-example", "f.parquet", *ONE).status == 0
    assert parquet.read_table(tmp_path / "f.parquet").num_rows == 23


def test_a_mistake_is_one_line_before_anything_is_measured(
    fcifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for words, message in (
        (("run0", "--per-example", "f.json"), "must end in .csv, .npz or .parquet"),
        (("data", "--per-example", "f"), "must end in .csv, .npz or .parquet"),
        (("run0", "--per-example", "f.parquet"), "pip install 'fcifar[parquet]'"),
        (("run0", "--per-example", "run1"), "is a directory"),
        (("run0", "nowhere", "--per-example", "f.csv"), "there is no nowhere"),
        (("run0", "run1", "--split", "valid"), "or give one run"),
        (("run0", "--split", "all", "--per-example", "f.csv"), "--split is 'all'"),
        ((), "Missing argument"),
    ):
        done = fcifar("eval", *words)
        assert done.status == 2, words
        assert done.out == ""
        assert message in done.err
        assert done.err.count("\n") == 1
    assert not list(tmp_path.glob("f*"))


def test_a_file_that_cannot_be_written_is_exit_code_1(fcifar) -> None:
    done = fcifar("eval", "run0", "--per-example", "run0/manifest.json/f.csv", *ONE)
    assert done.status == 1
    assert "cannot write run0/manifest.json/f.csv" in done.err
    assert done.out == ""


def test_help_fits(fcifar) -> None:
    shown = fcifar("eval", "--help")
    assert "--per-example" in shown.out
    assert all(len(line) <= 80 for line in shown.out.splitlines())
