"""The loss between runs: ends, middles and corners are known; so is a permuted copy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import averaging, random, recipes, tree
from fcifar.analysis import matching, symmetries
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.models import Model, Variables
from fcifar.runs import inference, landscape
from fcifar.runs.inference import Trained
from fcifar.train.runtime import Runtime
from tests.helpers.small import make_recipe

PATHS = [Path("a"), Path("b"), Path("c")]


def drawn(name: str, dataset: Dataset, count: int) -> list[Trained]:
    """Models as they are before training, with statistics."""
    recipe = make_recipe(name)
    model = recipes.make_model(recipe, len(dataset.classes))
    told = (dataset.classes, dataset.name, dataset.digest)
    return [
        Trained(recipe, model, model.init(random.key(seed)), *told, seed) for seed in range(count)
    ]


def figures(trained: Trained, runtime: Runtime, dataset: Dataset) -> dict[str, float]:
    metrics, _ = inference.evaluate(trained, runtime, dataset, "test")
    return {name: pytest.approx(metrics[name], rel=1e-6) for name in ("loss", "accuracy")}


def test_a_path_goes_through_both_runs_and_their_soup(runtime: Runtime, dataset: Dataset) -> None:
    models = drawn("speed90", dataset, 2)
    seen: list[tuple[int, int]] = []
    result = landscape.path(
        PATHS[:2],
        models,
        runtime,
        dataset,
        "test",
        points=3,
        progress=lambda what, done, total: seen.append((done, total)),
    )
    json.dumps(result, allow_nan=False)
    (curve,) = result["curves"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    mean = averaging.mean([model.variables for model in models])
    soup = inference.with_own_statistics(models[0], runtime, dataset, mean)
    through = [models[0], models[0]._replace(variables=soup), models[1]]
    for i, each in enumerate(through):
        assert {n: curve[n][i] for n in ("loss", "accuracy")} == figures(each, runtime, dataset)
    assert [run["loss"] for run in result["runs"]] == [curve["loss"][0], curve["loss"][2]]
    rise = curve["loss"][1] - (curve["loss"][0] + curve["loss"][2]) / 2
    assert curve["loss_barrier"]["height"] == pytest.approx(max(rise, 0), abs=1e-6)
    assert (result["n"], result["matching"]) == (23, None)


def test_a_permuted_copy_is_at_the_same_place(runtime: Runtime, dataset: Dataset) -> None:
    """After matching, all points of the path are one network; before, they are not."""
    first, _ = drawn("blitz", dataset, 2)
    found = symmetries.find(first.model)
    orders = [torch.arange(group.size).flip(0) for group in found.groups]
    copy = first._replace(variables=symmetries.permute(found, orders, first.variables))
    result = landscape.path(
        PATHS[:2], [first, copy], runtime, dataset, "test", points=5, match=True
    )
    before, after = result["curves"]
    assert (before["matched"], after["matched"]) == (False, True)
    assert (before["distance"] > 1, after["distance"]) == (True, 0)
    assert len(set(before["loss"][1:-1])) > 1
    assert set(after["loss"]) == {before["loss"][0]}
    assert after["loss_barrier"]["height"] == pytest.approx(0, abs=1e-6)
    (matched,) = result["matching"]["runs"]
    assert matched["moved"] == result["matching"]["units"] == 6 + 16 + 120 + 84
    assert (matched["name"], matched["distance"]) == ("B", 0)


def test_matching_changes_the_way_and_not_the_ends(runtime: Runtime, dataset: Dataset) -> None:
    models = drawn("speed90", dataset, 2)
    result = landscape.path(PATHS[:2], models, runtime, dataset, "test", points=3, match=True)
    before, after = result["curves"]
    assert after["loss"][::2] == pytest.approx(before["loss"][::2], rel=1e-4)
    assert after["distance"] < before["distance"]
    assert result["matching"]["runs"][0]["before"] == before["distance"]


def test_a_plane_goes_through_three_runs(runtime: Runtime, dataset: Dataset) -> None:
    models = drawn("blitz", dataset, 3)
    result = landscape.plane(PATHS, models, runtime, dataset, "test", points=3)
    json.dumps(result, allow_nan=False)
    variables = [model.variables for model in models]
    for run, model in zip(result["runs"], models, strict=True):
        assert {n: run[n] for n in ("loss", "accuracy")} == figures(model, runtime, dataset)
    places = [(run["x"], run["y"]) for run in result["runs"]]
    assert places[1] == (pytest.approx(matching.distance(*variables[:2])), 0)
    # The middle of the grid is a weighted sum whose place is that of the middle.
    (x, y), (_, (bx, _), (cx, cy)) = (result["x"][1], result["y"][1]), places
    c = y / cy
    b = (x - c * cx) / bx
    mixed = tree.map(lambda p, q, r: p + b * (q - p) + c * (r - p), *variables)
    there = figures(models[0]._replace(variables=mixed), runtime, dataset)
    assert {n: result[n][1][1] for n in ("loss", "accuracy")} == there
    # A quarter of the longer side lies around the three.
    margin = 0.25 * max(bx, cy)
    assert result["x"][0] == pytest.approx(-margin)
    assert result["y"][-1] == pytest.approx(cy + margin)
    matched = landscape.plane(PATHS, models, runtime, dataset, "test", points=3, match=True)
    assert [run["loss"] for run in matched["runs"]] == pytest.approx(
        [run["loss"] for run in result["runs"]], rel=1e-4
    )
    assert matched["runs"][1]["x"] < bx


def test_some_images_are_drawn(runtime: Runtime, dataset: Dataset) -> None:
    models = drawn("blitz", dataset, 2)
    few, again = (
        landscape.path(PATHS[:2], models, runtime, dataset, "test", points=3, images=7)
        for _ in range(2)
    )
    assert few == again
    assert few["n"] == 7
    rows = random.permutation(random.split(random.key(0))[0], 23)[:7].sort().values
    part = dataset._replace(
        test_images=dataset.test_images[rows], test_labels=dataset.test_labels[rows]
    )
    assert few["curves"] == landscape.path(
        PATHS[:2], models, runtime, part, "test", points=3
    )["curves"]  # fmt: skip


def test_a_loss_that_is_not_finite_is_left_out(runtime: Runtime, dataset: Dataset) -> None:
    first, second = drawn("blitz", dataset, 2)
    huge = tree.map(lambda p: p * 1e30, second.variables)
    models = [first, second._replace(variables=huge)]
    result = landscape.path(PATHS[:2], models, runtime, dataset, "test", points=3)
    json.dumps(result, allow_nan=False)
    assert result["curves"][0]["loss"][2] is None


def _without_units(dataset: Dataset) -> Trained:
    """A linear model: neither its inputs nor its classes can be permuted."""

    def init(key: Tensor) -> Variables:
        return Variables({"w": torch.zeros(3072, 10, device=key.device)}, {})

    def apply(variables, images, *, key=None, train=False):
        return images.flatten(1) @ variables.params["w"], {}

    (blitz,) = drawn("blitz", dataset, 1)
    model = Model(init, apply)
    return blitz._replace(model=model, variables=init(random.key(0)))


def test_what_cannot_be_done_is_refused(
    runtime: Runtime, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = drawn("blitz", dataset, 3)
    speed = drawn("speed90", dataset, 2)
    other = dataset._replace(digest="x", name="other")

    def refused(message: str, kind: str, models: list[Trained], **options: Any) -> None:
        compute = getattr(landscape, kind)
        given = {"dataset": dataset, "split": "test", "points": 3} | options
        paths = PATHS[: len(models)]
        with pytest.raises(UsageError, match=message):
            compute(paths, models, runtime, given.pop("dataset"), given.pop("split"), **given)

    refused("--path goes through two runs, not 3", "path", [a, b, c])
    refused("--plane goes through three runs, not 2", "plane", [a, b])
    refused("b has the model speednet, but a has lenet; compare runs of one", "path", [a, speed[1]])
    refused("b has the mean", "path", [a, b._replace(recipe=b.recipe.replace(mean=(0, 0, 0)))])
    refused("b has other frozen parameters than a", "path", [a, b._replace(
        variables=Variables({}, b.variables.params))])  # fmt: skip
    refused("--points is 2; it must be a whole number from 3", "path", [a, b], points=2)
    refused("--images is 24; it must be a whole number from 1 up to 23", "path", [a, b], images=24)
    refused("other is not the data set that a was trained on", "path", speed, dataset=other)
    refused("--plane: the three models lie on a line", "plane", [a, b, b])
    refused("--split valid is another part", "path", [a, b], split="valid")
    linear = _without_units(dataset)
    refused("lenet has no units that can be permuted; leave --match out", "path", [linear] * 2,
            match=True)  # fmt: skip
    landscape.path(PATHS[:2], [a, b], runtime, other, "test", points=3)  # without batch norm
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(r"needs scipy, .* pip install 'fcifar\[matching\]', or", "path", [a, b], match=True)
