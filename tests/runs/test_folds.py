"""Folds: what each run holds out, which images are predicted, and the data set without some."""

from pathlib import Path

import pytest
import torch

from fcifar import data
from fcifar.analysis import label_errors
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.runs import folds, inference
from fcifar.train import sweep
from fcifar.train.config import RunConfig
from fcifar.train.runtime import Runtime
from fcifar.train.setup import split_rows
from tests.helpers.training import after, records, train


@pytest.fixture
def short(config: RunConfig, recipe: Recipe) -> RunConfig:
    return config.replace(recipe=recipe.replace(epochs=1, learning_rate=0.02))


def test_the_folds_of_a_seed_hold_out_each_image_once(recipe: Recipe, dataset: Dataset) -> None:
    labels = dataset.train_labels
    parts = [split_rows(recipe.replace(fold=f"{i}/4"), 3, labels) for i in (1, 2, 3, 4)]
    held_out = torch.cat([valid for _, valid in parts])
    assert torch.equal(held_out.sort().values, torch.arange(42))
    for train_rows, valid in parts:
        assert torch.equal(torch.cat([train_rows, valid]).sort().values, torch.arange(42))
    other = split_rows(recipe.replace(fold="1/4"), 4, labels)[1]
    assert not torch.equal(other, parts[0][1]), "drawn from the seed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": "0/3"}, "fold is '0/3'; it must be I/N"),
        ({"fold": "4/3"}, "it must be I/N"),
        ({"fold": "1/1"}, "N from 2 to 1000"),
        ({"fold": "1/1001"}, "N from 2 to 1000"),
        ({"fold": 2}, "it must be I/N"),
        ({"fold": 0}, "a text such as 2/5"),
        ({"fold": "1/3", "valid_fraction": 0.1}, "fold and valid_fraction both say"),
        ({"fold": "1/3", "stratify": True}, "fold and stratify both say"),
        ({"fold": "1/3", "valid": "given"}, "fold and valid both say"),
    ],
)
def test_folds_that_are_refused(recipe: Recipe, changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.replace(**changes)


def test_a_fold_can_choose_the_best_epoch_and_be_empty(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(
        tmp_path / "run", recipe.replace(fold="2/3", restore_best=True), runtime, dataset
    )
    assert (report["valid_n"], report["selected"]["by"]) == (14, "lowest validation loss")
    trained = inference.load(tmp_path / "run")
    figures, _ = inference.evaluate(trained, runtime, dataset, "valid")
    assert figures["loss"] == pytest.approx(report["selected"]["valid_loss"], rel=1e-6)
    with pytest.raises(UsageError, match="fold is 1000/1000, which holds out no images"):
        train(tmp_path / "x", recipe.replace(fold="1000/1000"), runtime, dataset)


def test_a_group_of_folds_predicts_each_image_without_having_seen_it(
    tmp_path: Path, short: RunConfig, runtime: Runtime, dataset: Dataset
) -> None:
    spec = folds.make_sweep(short, 3)
    assert [trial.name for trial in spec.trials] == ["fold=1of3", "fold=2of3", "fold=3of3"]
    summary = sweep.train(tmp_path / "group", spec, dataset)
    assert (summary["swept"], summary["best"]) == (["fold"], None)
    paths = sweep.finished(tmp_path / "group")
    models = [inference.load(path) for path in paths]
    found = folds.predict(paths, models, runtime, dataset)
    assert torch.equal(found.rows, torch.arange(42))
    for model in models:
        rows = split_rows(model.recipe, model.seed, dataset.train_labels)[1]
        logits = inference.predict(model, runtime, dataset.train_images[rows])
        torch.testing.assert_close(found.probabilities[rows], logits.double().softmax(1))
    # Twice the same runs: the same means. One of them: its images alone.
    twice = folds.predict([*paths, *paths], [*models, *models], runtime, dataset)
    torch.testing.assert_close(twice.probabilities, found.probabilities)
    one = folds.predict(paths[:1], models[:1], runtime, dataset)
    torch.testing.assert_close(one.probabilities, found.probabilities[one.rows])
    errors = folds.find(dataset, one, "predicted_neq_given", "self_confidence")
    assert set(errors.rows.tolist()) <= set(one.rows.tolist())
    result = folds.summarize(dataset, one, errors, "predicted_neq_given", "self_confidence")
    assert (result["n"], result["examined"], result["found"]) == (42, 14, len(errors.rows))
    for image, row in zip(result["images"], errors.rows.tolist(), strict=True):
        assert image["given"] == dataset.classes[int(dataset.train_labels[row])]
        (at,) = torch.nonzero(one.rows == row).flatten().tolist()
        p = one.probabilities[at]
        assert image["suggested"] == dataset.classes[int(p.argmax())]
        assert image["self_confidence"] == p[int(dataset.train_labels[row])].item()
    assert sum(pair["found"] for pair in result["pairs"]) == result["found"]
    assert sum(pair["estimated"] for pair in result["pairs"]) == result["estimated"]


def test_an_interrupted_group_of_folds_continues_to_the_same_bits(
    tmp_path: Path, short: RunConfig, dataset: Dataset
) -> None:
    spec = folds.make_sweep(short, 2)
    sweep.train(tmp_path / "whole", spec, dataset)
    stopped = sweep.train(tmp_path / "parts", spec, dataset, stop=after(7))
    assert isinstance(stopped, tuple)
    sweep.train(tmp_path / "parts", sweep.read(tmp_path / "parts"), dataset, resume=True)
    for trial in spec.trials:
        one, other = (records(tmp_path / name / trial.name) for name in ("whole", "parts"))
        assert one == other


def test_runs_that_held_nothing_out(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path / "run", recipe.replace(epochs=1), runtime, dataset)
    model = inference.load(tmp_path / "run")
    with pytest.raises(UsageError, match="held out no training images"):
        folds.predict([tmp_path / "run"], [model], runtime, dataset)
    with pytest.raises(UsageError, match="was not trained on tiny as it is prepared here"):
        folds.predict([tmp_path / "run"], [model], runtime, dataset._replace(digest="0"))


def test_a_data_set_without_some_images(tmp_path: Path, dataset: Dataset) -> None:
    rows = torch.tensor([41, 3, 7])
    made = folds.without(dataset, rows, "clean", "by hand")
    kept = [i for i in range(42) if i not in (3, 7, 41)]
    assert torch.equal(made.train_images, dataset.train_images[kept])
    assert torch.equal(made.train_labels, dataset.train_labels[kept])
    assert torch.equal(made.test_images, dataset.test_images)
    assert made.digest != dataset.digest
    data.save(made, tmp_path)
    there = data.load("clean", tmp_path)
    assert data.verify("clean", tmp_path) == made.digest
    assert there.source == "tiny without 3 likely label errors (by hand)"
    left_out = there.preparation[folds.LEFT_OUT]
    assert left_out["rows"] == [3, 7, 41]
    assert left_out["digest"] == dataset.digest
    with pytest.raises(UsageError, match="would have no training images"):
        folds.without(dataset, torch.arange(42), "none", "by hand")


def test_nothing_is_suspected_of_a_model_that_agrees(dataset: Dataset) -> None:
    p = torch.nn.functional.one_hot(dataset.train_labels, 10).double()
    held_out = folds.HeldOut(torch.arange(42), p)
    for by in label_errors.FILTERS:
        found = folds.find(dataset, held_out, by, "normalized_margin")
        result = folds.summarize(dataset, held_out, found, by, "normalized_margin")
        assert (result["found"], result["estimated"], result["images"]) == (0, 0, [])
        assert folds.tabulate(result)["row"].shape == (0,)
