"""Runs side by side: the figures of an evaluation, and paired differences."""

import json
from pathlib import Path

import pytest

from fcifar.analysis import significance
from fcifar.analysis.significance import PairedDifference, mcnemar
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.runs import compare, inference
from fcifar.train.runtime import Runtime
from tests.helpers.training import train


@pytest.fixture
def runs(tmp_path: Path, recipe: Recipe, dataset: Dataset) -> list[Path]:
    """Two different runs and the file of the second one."""
    for seed in (1, 2):
        longer = recipe.replace(epochs=3 * seed, learning_rate=0.02)
        train(tmp_path / f"run{seed}", longer, Runtime(), dataset, seed=seed)
    return [tmp_path / "run1", tmp_path / "run2", tmp_path / "run2/final.safetensors"]


@pytest.mark.parametrize("split", ["test", "train"])
def test_figures_are_those_of_an_evaluation(
    runs: list[Path], runtime: Runtime, dataset: Dataset, split: str
) -> None:
    networks = [inference.load(run) for run in runs]
    found = compare.compare(runs, networks, runtime, dataset, split)
    json.dumps(found)
    assert (found["dataset"], found["split"]) == ("tiny", split)
    assert [row["name"] for row in found["runs"]] == ["A", "B", "C"]
    assert [row["seed"] for row in found["runs"]] == [1, 2, None]
    for row, run, network in zip(found["runs"], runs, networks, strict=True):
        evaluated, _ = inference.evaluate(network, runtime, dataset, split)
        for field in ("accuracy", "loss", "n", "interval95", "params_digest"):
            assert row[field] == evaluated[field]
        assert row["run"] == str(run)
        assert (row["recipe"], row["trained_on"]) == ("blitz", "tiny")
    first, second, file = found["runs"]
    report = json.loads((runs[0] / "report.json").read_text())
    assert first["train_seconds"] == report["train_seconds"]
    assert file["train_seconds"] is None
    assert file["params_digest"] == second["params_digest"] != first["params_digest"]


def test_differences_are_from_the_first(
    runs: list[Path], runtime: Runtime, dataset: Dataset
) -> None:
    order = [runs[1], runs[0], runs[2]]
    found = compare.compare(order, [inference.load(r) for r in order], runtime, dataset, "train")
    other, same = found["comparisons"]
    first, second, _ = found["runs"]
    assert (other["first"], other["second"]) == ("A", "B")
    assert other["difference"] == pytest.approx(second["accuracy"] - first["accuracy"])
    assert (other["only_second"] - other["only_first"]) / 42 == other["difference"]
    assert other["p_value"] == mcnemar(other["only_first"], other["only_second"])
    low, high = other["interval95"]
    assert low <= other["difference"] <= high
    assert (same["only_first"], same["only_second"], same["p_value"]) == (0, 0, 1.0)
    assert same["statement"] == "no difference shown"


@pytest.mark.parametrize(
    ("only_first", "only_second", "words"),
    [(1, 8, "B is better"), (8, 1, "A is better"), (1, 7, "no difference shown")],
)
def test_statement_of_a_comparison(only_first: int, only_second: int, words: str) -> None:
    difference = PairedDifference(
        difference=(only_second - only_first) / 20,
        interval95=(-1.0, 1.0),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )
    assert significance.statement("A", "B", difference) == words


def test_a_run_without_a_report_has_no_seconds(
    runs: list[Path], runtime: Runtime, dataset: Dataset
) -> None:
    (runs[0] / "report.json").unlink()
    networks = [inference.load(run) for run in runs[:2]]
    first, second = compare.compare(runs[:2], networks, runtime, dataset, "test")["runs"]
    assert first["train_seconds"] is None
    assert second["train_seconds"] > 0


def test_a_diverged_model_has_no_loss(runs: list[Path], runtime: Runtime, dataset: Dataset) -> None:
    network = inference.load(runs[0])
    for parameter in network.variables.params.values():
        parameter.fill_(float("nan"))
    found = compare.compare(runs[:2], [network, network], runtime, dataset, "test")
    assert found["runs"][0]["loss"] is None
    json.dumps(found, allow_nan=False)


def test_models_that_cannot_be_compared_are_refused(
    tmp_path: Path, runs: list[Path], recipe: Recipe, runtime: Runtime, dataset: Dataset, make_batch
) -> None:
    few = Split(*make_batch(20, seed=1, classes=3))
    other = make_dataset("few", few, few, "xyz", "tests")
    train(tmp_path / "other", recipe, runtime, other)
    mixed = [runs[0], tmp_path / "other"]
    networks = [inference.load(run) for run in mixed]
    with pytest.raises(UsageError, match=r"other has the classes x, y, z, but .*run1 has a, b"):
        compare.compare(mixed, networks, runtime, dataset, "test")
    networks = [inference.load(run) for run in runs]
    with pytest.raises(UsageError, match="few has the classes x, y, z, but the model has a"):
        compare.compare(runs, networks, runtime, other, "test")
    with pytest.raises(UsageError, match="--split is 'all'"):
        compare.compare(runs, networks, runtime, dataset, "all")
    with pytest.raises(UsageError, match="run1 alone cannot be compared"):
        compare.compare(runs[:1], networks[:1], runtime, dataset, "test")


def test_letters_never_end() -> None:
    letters = significance.letters()
    names = [next(letters) for _ in range(800)]
    assert (names[0], names[25], names[26], names[27], names[702]) == ("A", "Z", "AA", "AB", "AAA")
    assert len(set(names)) == 800
