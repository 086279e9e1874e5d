"""Soups: what is averaged, what chooses, and the file that is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import averaging, recipes, tree
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UsageError
from fcifar.export import exporting
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import inference, soup
from fcifar.train.runtime import Runtime
from fcifar.train.setup import split_rows
from tests.helpers.small import make_recipe
from tests.helpers.training import train


@pytest.fixture
def held_out(recipe: Recipe) -> Recipe:
    return recipe.replace(epochs=1, valid_fraction=0.25, learning_rate=0.02)


def trained(
    folder: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, seeds: tuple[int, ...]
) -> tuple[list[Path], list[inference.Trained]]:
    """Runs with rates that grow, and their models."""
    paths = []
    for i, seed in enumerate(seeds):
        own = recipe.replace(learning_rate=recipe.learning_rate * (i + 1))
        train(folder / f"run{i}", own, runtime, dataset, seed=seed)
        paths.append(folder / f"run{i}")
    return paths, [inference.load(path) for path in paths]


def test_a_mean_soup_is_the_mean(
    tmp_path: Path, held_out: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    paths, models = trained(tmp_path, held_out, runtime, dataset, (0, 0, 0))
    found, result = soup.make(paths, models, runtime, dataset, "mean")
    expected = averaging.mean([model.variables for model in models])
    assert tree.equal(found.variables, expected)
    json.dumps(result, allow_nan=False)
    assert [each["run"] for each in result["ingredients"]] == list(map(str, paths))
    assert (result["kept"], result["split"], result["n"]) == (3, "valid", 10)
    for count, each in enumerate(result["ingredients"], 1):
        partial = averaging.mean([model.variables for model in models[:count]])
        figures, _ = inference.evaluate(
            models[0]._replace(variables=partial), runtime, dataset, "valid"
        )
        assert each["soup"] == {name: figures[name] for name in ("accuracy", "loss")}
        alone, _ = inference.evaluate(models[count - 1], runtime, dataset, "valid")
        assert each["loss"] == alone["loss"]
    figures, _ = inference.evaluate(found, runtime, dataset, "test")
    assert result["test"]["soup"]["loss"] == figures["loss"]
    assert result["params_digest"] == tree.digest(found.variables.params)


def test_a_greedy_soup_begins_with_the_best_and_never_falls(
    tmp_path: Path, held_out: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    paths, models = trained(tmp_path, held_out, runtime, dataset, (0, 0, 0))
    found, result = soup.make(paths, models, runtime, dataset, "greedy")
    ingredients = result["ingredients"]
    alone = [each["accuracy"] for each in ingredients]
    assert alone == sorted(alone, reverse=True)
    best = alone[0]
    for each in ingredients[1:]:
        assert each["kept"] == (each["soup"]["accuracy"] >= best)
        best = max(best, each["soup"]["accuracy"])
    kept = [models[paths.index(Path(e["run"]))].variables for e in ingredients if e["kept"]]
    assert tree.equal(found.variables, averaging.mean(kept))
    parts = json.loads(found.soup)
    assert parts["method"] == "greedy"
    assert [p["run"] for p in parts["ingredients"]] == [e["run"] for e in ingredients if e["kept"]]
    assert inference.evaluate(found, runtime, dataset, "valid")[0]["accuracy"] == best


def test_test_images_choose_nothing(
    tmp_path: Path, held_out: Recipe, runtime: Runtime, dataset: Dataset, make_batch
) -> None:
    """With other ones, a greedy soup is the same."""
    paths, models = trained(tmp_path, held_out, runtime, dataset, (0, 0))
    found, _ = soup.make(paths, models, runtime, dataset, "greedy")
    other = dataset._replace(test_labels=9 - dataset.test_labels)
    again, _ = soup.make(paths, models, runtime, other, "greedy")
    assert tree.equal(found.variables, again.variables)


def test_without_common_validation_images(
    tmp_path: Path, held_out: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """A greedy soup is refused; a mean does not say that it has left images out."""
    paths, models = trained(tmp_path, held_out, runtime, dataset, (0, 1))
    with pytest.raises(UsageError, match="have none in common; train them with --valid-fraction"):
        soup.make(paths, models, runtime, dataset, "greedy")
    found, result = soup.make(paths, models, runtime, dataset, "mean")
    assert result["split"] == "test"
    with pytest.raises(UsageError, match="it held out nothing"):
        inference.evaluate(found, runtime, dataset, "valid")
    given = make_dataset(
        "given",
        Split(dataset.train_images, dataset.train_labels),
        Split(dataset.test_images, dataset.test_labels),
        dataset.classes,
        "tests",
        Split(dataset.test_images[:7], dataset.test_labels[:7]),
    )
    recipe = held_out.replace(valid_fraction=0.0, valid="given")
    paths, models = trained(tmp_path / "given", recipe, runtime, given, (0, 1))
    _, result = soup.make(paths, models, runtime, given, "greedy")
    assert (result["split"], result["n"]) == ("valid", 7)


def test_batch_norm_is_estimated_again_on_training_images(
    tmp_path: Path, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = make_recipe("speed90").replace(
        batch_size=8, epochs=1, precision="fp32", tta="none", valid_fraction=0.2, lookahead_every=0
    )
    paths, models = trained(tmp_path, recipe, runtime, dataset, (0, 0))
    found, _ = soup.make(paths, models, runtime, dataset, "mean")
    expected = averaging.mean([model.variables for model in models])
    assert tree.equal(found.variables.params, expected.params)
    rows = split_rows(recipe, 0, dataset.train_labels)[0]
    x = recipes.make_preprocess(recipe)(dataset.train_images[rows])
    key = torch.zeros(2, dtype=torch.int64)
    once = found.model.apply(found.variables, x, key=key, train=True)[1]
    for name, value in found.variables.buffers.items():
        if name.endswith(averaging.STATISTICS):
            torch.testing.assert_close(once[name], value, rtol=1e-4, atol=1e-4)


def test_the_file_is_a_model_like_others(
    tmp_path: Path, held_out: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Loaded, exported and loaded again it is the same, with its origin."""
    paths, models = trained(tmp_path, held_out, runtime, dataset, (0, 0))
    found, result = soup.make(paths, models, runtime, dataset, "mean")
    soup.save(tmp_path / "soup.safetensors", found)
    again = inference.load(tmp_path / "soup.safetensors")
    assert tree.equal(again.variables, found.variables)
    origin = json.loads(again.soup)
    assert [part["params_digest"] for part in origin["ingredients"]] == [
        tree.digest(model.variables.params) for model in models
    ]
    exporting.export(again, tmp_path / "x.safetensors", dataset.test_images)
    assert inference.load(tmp_path / "x.safetensors").soup == again.soup
    with pytest.raises(UsageError, match="--average is of a run directory"):
        inference.load(tmp_path / "soup.safetensors", average=True)
    assert result["test"]["soup"]["loss"] == pytest.approx(
        inference.evaluate(again, runtime, dataset, "test")[0]["loss"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "run alone cannot be averaged; give two runs or more, or a group"),
        (
            {"recipe": {"model": "conv3", "model_options": {}}},
            "b has the model conv3, but a has lenet; average runs of",
        ),
        ({"recipe": {"mean": (0.1, 0.5, 0.5)}}, "b has the mean"),
        ({"classes": tuple("klmnopqrst")}, "b has the classes k, l"),
        ({"dataset_digest": "x", "dataset": "other"}, "b was trained on other images"),
    ],
)
def test_what_cannot_be_averaged_is_refused(change: dict[str, Any], message: str) -> None:
    recipe = recipes.get("blitz")
    model = recipes.make_model(recipe, 10)
    variables = Variables({}, {})
    first = inference.Trained(recipe, model, variables, tuple("abcdefghij"), "tiny", "digest", 0)
    if not change:
        with pytest.raises(UsageError, match=message):
            soup.check([Path("run")], [first], "mean")
        return
    values = dict(change)
    if "recipe" in values:
        values["recipe"] = recipe.replace(**values["recipe"])
    with pytest.raises(UsageError, match=message):
        soup.check([Path("a"), Path("b")], [first, first._replace(**values)], "mean")


def test_a_method_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="--method is 'best'; it must be one of mean, greedy"):
        soup.check([], [], "best")
