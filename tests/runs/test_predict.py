"""Predictions are the evaluation's, bit for bit."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fcifar import recipes
from fcifar.analysis.predictions import best_guesses
from fcifar.data import Dataset, Split, image_files, make_dataset
from fcifar.recipes import Recipe
from fcifar.runs import inference
from fcifar.runs.inference import Trained, predict
from fcifar.step import Batch, make_eval_step
from fcifar.train.evaluate import evaluate
from fcifar.train.runtime import Runtime, activate
from tests.helpers.training import train


@pytest.fixture
def network(tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Trained:
    train(tmp_path / "run", recipe, runtime, dataset)
    return inference.load(tmp_path / "run")


def evaluated(network: Trained, runtime: Runtime, data: Batch) -> Tensor:
    with activate(runtime):
        step = make_eval_step(
            network.model,
            preprocess=recipes.make_preprocess(network.recipe),
            policy=runtime.policy,
        )
        return evaluate(step, network.variables, data).logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exported_test_images_have_the_logits_of_the_evaluation(
    tmp_path: Path, network: Trained, make_batch, precision: str
) -> None:
    runtime = Runtime(threads=1, precision=precision)
    test = make_batch(510, seed=4)
    logits = evaluated(network, runtime, test)
    rows = [0, 3, 250, 499, 500, 505, 509]
    for row in rows:
        pixels = test.images[row].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{row:03}.png")
    images = torch.stack([image_files.read(tmp_path / f"{row:03}.png") for row in rows])
    assert torch.equal(images, test.images[rows])
    assert torch.equal(predict(network, runtime, images), logits[rows])
    assert torch.equal(predict(network, runtime, images[2:3]), logits[rows[2:3]])
    assert torch.equal(predict(network, runtime, test.images), logits)
    few = Batch(test.images[:9], test.labels[:9])
    assert torch.equal(evaluated(network, runtime, few), logits[:9]), "however small the set"


def test_there_is_a_row_for_each_image(network: Trained, make_batch) -> None:
    runtime = Runtime(threads=1)
    images = make_batch(9, seed=5).images
    for size in (1, 4, 9):
        assert predict(network, runtime, images[:size]).shape == (size, 10)
    with pytest.raises(ValueError, match="at least one"):
        predict(network, runtime, images[:0])


def test_a_model_of_three_classes_has_three_guesses(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, make_batch
) -> None:
    few = Split(*make_batch(20, seed=1, classes=3))
    train(tmp_path / "run", recipe, runtime, make_dataset("few", few, few, "abc", "tests"))
    network = inference.load(tmp_path / "run")
    guesses = best_guesses(predict(network, runtime, few.images[:2]), network.classes)
    assert [sorted(g.name for g in row) for row in guesses] == [["a", "b", "c"]] * 2
    for row in guesses:
        assert sum(g.probability for g in row) == pytest.approx(1)


def test_best_guesses_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2), 0.0, math.log(4)], [0.0] * 4, [math.nan] * 4])
    first, equal, unknown = best_guesses(logits, "abcd", 3)
    assert [g.name for g in first] == ["d", "b", "a"]
    assert [g.probability for g in first] == pytest.approx([0.5, 0.25, 0.125])
    assert [g.name for g in equal] == ["a", "b", "c"]
    assert all(math.isnan(g.probability) for g in unknown)
