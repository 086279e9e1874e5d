"""Scores of a run's images: names that find them again, every image once, and figures that fit."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fcifar import random, recipes
from fcifar.analysis import ensembles, score_tables
from fcifar.analysis.example_scores import Scores
from fcifar.analysis.score_tables import OF_ONE, OF_SEVERAL, Examined
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.export import tables
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.train.runtime import Runtime


def network_of(recipe: Recipe, dataset: Dataset, seed: int = 0) -> Trained:
    """A network that nobody trained."""
    model = recipes.make_model(recipe, len(dataset.classes))
    variables = model.init(random.key(seed))
    return Trained(recipe, model, variables, dataset.classes, dataset.name, dataset.digest, seed)


def examine(
    dataset: Dataset, runtime: Runtime, *networks: Trained, split: str = "test"
) -> Examined:
    data = inference.images_of(networks[0], dataset, split)
    first = inference.examine(networks[0], runtime, data)
    logits = inference.stack_logits(first, networks[1:], runtime, data)
    return inference.score(networks[0], runtime, dataset, split, logits)


def test_names_find_the_images_again(recipe: Recipe, dataset: Dataset) -> None:
    network = network_of(recipe.replace(valid_fraction=0.25), dataset)
    for split in ("test", "train", "valid"):
        names = inference.image_names(network, dataset, split)
        images, labels = inference.images_of(network, dataset, split)
        assert len(names) == len(set(names)) == len(labels)
        assert names == sorted(names)
        for name, image, label in zip(names, images, labels, strict=True):
            half, row = name.split("/")
            assert len(row) == 5
            assert torch.equal(getattr(dataset, f"{half}_images")[int(row)], image)
            assert getattr(dataset, f"{half}_labels")[int(row)] == label
    assert {name[:6] for name in inference.image_names(network, dataset, "valid")} == {"train/"}


def test_scores_are_those_of_the_evaluation(
    recipe: Recipe, dataset: Dataset, runtime: Runtime
) -> None:
    network = network_of(recipe, dataset)
    figures, examples = inference.evaluate(network, runtime, dataset, "test")
    examined = examine(dataset, runtime, network)
    assert examined.together is None
    assert torch.equal(examined.scores.loss, examples.loss)
    assert torch.equal(examined.scores.correct, examples.correct)
    assert examined.scores.loss.double().mean().item() == figures["loss"]
    assert (examined.scores.gradient_norm > 0).all()


def test_the_table_of_several_models(
    recipe: Recipe, dataset: Dataset, runtime: Runtime, tmp_path: Path
) -> None:
    networks = [network_of(recipe, dataset, seed) for seed in range(3)]
    examined = examine(dataset, runtime, *networks, split="train")
    table = score_tables.tabulate(examined, dataset.classes)
    tables.write(tmp_path / "t.csv", table)
    summary = score_tables.summarize(examined, table)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert summary["rows"] == len(rows) == len(dataset.train_labels)
    assert summary["columns"] == list(rows[0])
    correct = torch.stack(
        [inference.evaluate(n, runtime, dataset, "train")[1].correct for n in networks]
    )
    for i, row in enumerate(rows):
        assert dataset.classes[int(row["label"])] == row["label_name"]
        assert int(row["label"]) == dataset.train_labels[i]
        assert dataset.classes[int(row["prediction"])] == row["prediction_name"]
        assert (row["correct"] == "true") == (row["label"] == row["prediction"])
        assert (row["correct"] == "true") == bool(correct[0, i])
        assert (row["ensemble_correct"] == "true") == (row["label"] == row["ensemble_prediction"])
        wrong = (~correct[:, i]).double().mean().item()
        assert float(row["error_rate"]) == pytest.approx(wrong)
    for name, quantiles in summary["quantiles"].items():
        values = np.array([float(row[name]) for row in rows])
        found = np.quantile(values, [float(q) for q in quantiles])
        assert list(quantiles.values()) == pytest.approx(found.tolist(), rel=1e-5)
    assert set(summary["quantiles"]) == {*OF_ONE, *OF_SEVERAL}
    keys = {row["id"]: (-float(row["error_rate"]), -float(row["mean_loss"])) for row in rows}
    assert summary["hardest"] == sorted(keys, key=keys.__getitem__)[: score_tables.LISTED]


def examined_by_hand(losses: list[float], logits: torch.Tensor | None = None) -> Examined:
    labels = torch.zeros(len(losses), dtype=torch.int64)
    loss = torch.tensor(losses)
    scores = Scores(loss, loss < 1, labels, *[loss] * 4)
    together = None if logits is None else ensembles.examine(logits, labels)
    return Examined([f"test/{i:05}" for i in range(len(losses))], labels, scores, together)


def test_the_hardest_for_one_model_have_the_highest_loss() -> None:
    examined = examined_by_hand([0.5, math.nan, 3.0, math.inf, 3.0])
    assert score_tables.hardest(examined).tolist() == [3, 2, 4, 0, 1]


def test_the_hardest_for_several_models_have_the_highest_error_rate() -> None:
    right, wrong, very_wrong = [2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 9.0, 0.0]
    logits = torch.tensor([[right, wrong, wrong, right], [right, very_wrong, wrong, very_wrong]])
    examined = examined_by_hand([0.0] * 4, logits)
    assert score_tables.hardest(examined).tolist() == [1, 2, 3, 0]


def test_the_most_disputed_are_where_confident_models_disagree() -> None:
    unsure, other = [0.1, 0.0, 0.0], [0.0, 0.1, 0.0]
    sure, against = [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]
    logits = torch.tensor([[unsure, sure, sure], [other, sure, against]])
    examined = examined_by_hand([0.0] * 3, logits)
    assert examined.together is not None
    assert score_tables.most_disputed(examined.together).tolist() == [2, 0, 1]


def test_a_diverged_model_has_no_quantiles(
    recipe: Recipe, dataset: Dataset, runtime: Runtime, tmp_path: Path
) -> None:
    network = network_of(recipe, dataset)
    params = {name: value * math.nan for name, value in network.variables.params.items()}
    broken = network._replace(variables=Variables(params, {}))
    examined = examine(dataset, runtime, broken)
    table = score_tables.tabulate(examined, dataset.classes)
    tables.write(tmp_path / "t.npz", table)
    summary = score_tables.summarize(examined, table)
    assert json.dumps(summary, allow_nan=False)
    assert set(summary["quantiles"]["loss"].values()) == {None}
    with np.load(tmp_path / "t.npz") as found:
        assert np.isnan(found["gradient_norm"]).all()


def test_models_without_common_images_are_refused(recipe: Recipe, dataset: Dataset) -> None:
    network = network_of(recipe.replace(valid_fraction=0.25), dataset)
    inference.check_images([network], dataset, "valid")
    with pytest.raises(UsageError, match="another part of the images for each seed"):
        inference.check_images([network, network], dataset, "valid")
    other = network._replace(classes=tuple("klmnopqrst"))
    with pytest.raises(UsageError, match="choose a data set with the same classes"):
        inference.check_images([network, other], dataset, "test")
    with pytest.raises(UsageError, match="must be test, train or valid"):
        inference.check_images([network], dataset, "all")
