"""Influence of a run's training images: what is summed, over which checkpoints, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import recipes, tensor_files
from fcifar.analysis import influence
from fcifar.analysis.influence import Checkpoint
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.runs import inference, proponents
from fcifar.runs.proponents import Influences, Options
from fcifar.step import Batch
from fcifar.train import run_dir
from fcifar.train.config import CheckpointConfig
from fcifar.train.runtime import Runtime
from fcifar.train.setup import split_rows
from tests.helpers.small import make_recipe
from tests.helpers.training import SEED, train

EVERY = CheckpointConfig(checkpoint_every="8", keep_checkpoints=100)


@pytest.fixture
def falling(recipe: Recipe) -> Recipe:
    """34 images to train on in 7 steps an epoch, with a rate that falls to 0."""
    return recipe.replace(schedule="linear", learning_rate=0.1, valid_fraction=0.2)


def scores_of(
    run: Path, runtime: Runtime, dataset: Dataset, rows: list[int], split: str = "test", **more: Any
) -> tuple[Influences, dict[str, Any]]:
    trained = inference.load(run)
    return proponents.make(run, trained, runtime, dataset, split, rows, Options(**more))


def test_checkpoints_are_summed_with_their_rates(
    tmp_path: Path, falling: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, falling, runtime, dataset, checkpoint=EVERY)
    found, result = scores_of(run, runtime, dataset, [4, 2])
    steps = sorted(run_dir.list_checkpoints(run))
    assert [each["step"] for each in result["checkpoints"]] == steps
    rates = [each["learning_rate"] for each in result["checkpoints"]]
    assert rates == pytest.approx([0.1 * (1 - (step - 1) / 21) for step in steps])
    assert {7, 8, 14, 16, 21} >= set(steps) >= {8, 16, 21}
    trained = inference.load(run)
    logits = influence.example_logits(trained.model, preprocess=recipes.make_preprocess(falling))
    rows, held_out = split_rows(falling, SEED, dataset.train_labels)
    test = Batch(dataset.test_images[[4, 2]], dataset.test_labels[[4, 2]])
    images = Batch(dataset.train_images[rows], dataset.train_labels[rows])
    checkpoints = []
    for step, rate in zip(steps, rates, strict=True):
        tensors = dict(_tensors(run_dir.checkpoint_path(run, step)))
        checkpoints.append(Checkpoint(rate, tensors, ({},)))
    expected = influence.tracin(logits)(checkpoints, test, images)
    torch.testing.assert_close(found.scores, expected, rtol=1e-4, atol=1e-7)
    assert torch.equal(found.train_rows, rows)
    assert found.names == ["test/00004", "test/00002"]
    assert not {f"train/{row:05}" for row in held_out.tolist()} & set(found.train_names)


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors, _ = tensor_files.read(path)
    start = "state.variables.params."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def test_without_checkpoints_the_final_model_is_used(
    tmp_path: Path, falling: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, falling, runtime, dataset)
    for path in run_dir.list_checkpoints(run).values():
        path.unlink()
    from_run, result = scores_of(run, runtime, dataset, [0])
    assert result["checkpoints"] == [{"step": None, "learning_rate": 1.0}]
    from_file, _ = scores_of(run / run_dir.FINAL, runtime, dataset, [0])
    assert torch.equal(from_run.scores, from_file.scores)
    trained = inference.load(run)
    logits = influence.example_logits(trained.model, preprocess=recipes.make_preprocess(falling))
    test = Batch(dataset.test_images[:1], dataset.test_labels[:1])
    rows = from_run.train_rows
    images = Batch(dataset.train_images[rows], dataset.train_labels[rows])
    expected = influence.tracin(logits)(
        [Checkpoint(1.0, trained.variables.params, ({},))], test, images
    )
    torch.testing.assert_close(from_run.scores, expected, rtol=1e-4, atol=1e-7)


def test_influence_functions_are_those_of_the_final_model(
    tmp_path: Path, falling: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    """With the curvature of all training images, and solved to a small residual."""
    run = tmp_path / "run"
    train(run, falling, runtime, dataset)
    monkeypatch.setattr(proponents, "TOLERANCE", 1e-4)
    found, result = scores_of(run, runtime, dataset, [0, 3], method="gauss_newton", damping=0.5)
    assert result["residual"] <= 1e-4
    assert (result["damping"], result["curvature_images"], result["train_n"]) == (0.5, 34, 34)
    trained = inference.load(run)
    logits = influence.example_logits(trained.model, preprocess=recipes.make_preprocess(falling))
    method = influence.gauss_newton(logits, damping=0.5, iterations=result["iterations"] + 5)
    rows = found.train_rows
    test = Batch(dataset.test_images[[0, 3]], dataset.test_labels[[0, 3]])
    images = Batch(dataset.train_images[rows], dataset.train_labels[rows])
    expected = method(trained.variables.params, test, images, {})
    torch.testing.assert_close(found.scores, expected, rtol=1e-2, atol=1e-2 * expected.abs().max())
    few, result = scores_of(
        run, runtime, dataset, [0], method="gauss_newton", damping=0.5, curvature=10
    )
    assert result["curvature_images"] == 10
    assert not torch.equal(few.scores[0], found.scores[0])


def test_several_images_and_chunks_change_rounding_only(
    tmp_path: Path, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    """With batch norm, and with less memory for directions than one image needs."""
    recipe = make_recipe("speed90").replace(batch_size=8, epochs=1, precision="fp32", tta="none")
    train(tmp_path / "run", recipe, runtime, dataset)
    together, _ = scores_of(tmp_path / "run", runtime, dataset, [0, 1, 2])
    monkeypatch.setattr(proponents, "_DIRECTIONS", 1)
    monkeypatch.setattr(proponents, "_AT_ONCE", 10)
    apart, _ = scores_of(tmp_path / "run", runtime, dataset, [0, 1, 2])
    largest = together.scores.abs().max()
    torch.testing.assert_close(apart.scores, together.scores, rtol=1e-3, atol=1e-4 * largest)


def test_proponents_come_first_and_opponents_last(
    tmp_path: Path, falling: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, falling, runtime, dataset)
    found, result = scores_of(run, runtime, dataset, [7], split="train")
    json.dumps(result, allow_nan=False)
    (image,) = result["images"]
    scores = found.scores[0]
    assert image["proponents"][0]["score"] == scores.max().item()
    assert image["opponents"][0]["score"] == scores.min().item()
    signs = [e["score"] > 0 for e in image["proponents"]] + [
        e["score"] < 0 for e in image["opponents"]
    ]
    assert all(signs)
    examples = inference.examine(inference.load(run), runtime, Batch(found.images, found.labels))
    assert image["loss"] == examples.loss[0].item()
    table = proponents.tabulate(found, dataset.classes)
    assert table["train/00007"].tolist() == scores.tolist()
    row = found.train_names.index(image["proponents"][0]["id"])
    assert table["label_name"][row] == image["proponents"][0]["label"]


def test_what_does_not_fit_is_refused(
    tmp_path: Path, falling: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, falling, runtime, dataset)
    with pytest.raises(
        UsageError, match="--image 23 is not an image of the test split of tiny; give"
    ):
        scores_of(run, runtime, dataset, [0, 23])
    row = int(split_rows(falling, SEED, dataset.train_labels)[0][0])
    with pytest.raises(UsageError, match="is not one of those held out"):
        scores_of(run, runtime, dataset, [row], split="valid")
    held_out = int(split_rows(falling, SEED, dataset.train_labels)[1][0])
    found, _ = scores_of(run, runtime, dataset, [held_out], split="valid")
    assert found.names == [f"train/{held_out:05}"]
    assert torch.equal(found.images[0], dataset.train_images[held_out])
    with pytest.raises(UsageError, match=r"is not the data set that .* was trained on"):
        scores_of(run, runtime, dataset._replace(digest="0"), [0])
    for options, message in (
        ({"method": "trac"}, "--method is 'trac'; it must be one of tracin, gauss_newton"),
        ({"damping": 0.0}, "--damping is 0.0; it must be"),
        ({"curvature": 0}, "--curvature-images is 0; it must be"),
    ):
        with pytest.raises(UsageError, match=message):
            scores_of(run, runtime, dataset, [0], **options)
    for text in ("", "a", "1,,2", "-1", "1.5", "9" * 30):
        with pytest.raises(UsageError, match=r"--image is .*; give row numbers"):
            proponents.parse_rows(text)
    assert proponents.parse_rows("3, 17,3") == [3, 17]
    with pytest.raises(UsageError, match="--image has 101 images; give up to 100"):
        proponents.parse_rows(",".join(map(str, range(101))))
