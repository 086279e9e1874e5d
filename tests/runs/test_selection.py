"""Choosing by validation loss, alone and in a run."""

import json
from pathlib import Path

import pytest
import torch

from fcifar import random, tree
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UserError
from fcifar.recipes import Recipe
from fcifar.runs import checkpoint, directory, loop, trained
from fcifar.runs.runtime import Runtime
from fcifar.runs.selection import best_epoch, is_best, should_stop

NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3.0], 0), ([3.0, 2.0, 2.5], 1), ([3.0, 2.0, 2.0], 1), ([NAN, 5.0], 1), ([NAN, NAN], 0)],
)
def test_best_epoch_is_the_first_of_the_lowest(losses: list[float], best: int) -> None:
    assert best_epoch(losses) == best
    assert is_best(losses) == (best == len(losses) - 1)


@pytest.mark.parametrize(
    ("losses", "patience", "stop"),
    [
        ([], 2, False),
        ([3.0, 2.0, 1.0, 0.5], 1, False),
        ([3.0, 2.0, 2.1], 2, False),
        ([3.0, 2.0, 2.1, 2.2], 2, True),
        ([3.0, 2.0, 2.1, 1.9], 2, False),
        ([3.0, 2.0, 2.0, 2.0], 2, True),
        ([3.0, 4.0, 5.0, 6.0, 7.0], 0, False),
    ],
)
def test_should_stop_counts_epochs_without_a_lower_loss(
    losses: list[float], patience: int, stop: bool
) -> None:
    assert should_stop(losses, patience) is stop


@pytest.fixture
def unlearnable(make_batch) -> Dataset:
    """Labels at random: every step on the training images makes the held-out ones worse."""
    batch = make_batch(80)
    labels = random.randint(random.key(7), (80,), 0, 10)
    train, test = Split(batch.images, labels), Split(*make_batch(20, seed=2))
    return make_dataset("noise", train, test, tuple("abcdefghij"), "drawn by the tests")


def valid_losses(run: Path) -> list[float]:
    return [r["loss"] for r in directory.read_records(run) if r.get("split") == "valid"]


OVERFIT = {
    "batch_size": 5,
    "epochs": 40,
    "learning_rate": 0.02,
    "valid_fraction": 0.25,
    "patience": 3,
    "restore_best": True,
    "log_every": 0,
}


def test_a_run_that_overfits_stops_there_and_ends_with_its_best(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset
) -> None:
    run = tmp_path / "run"
    report = loop.train(run, recipe.replace(**OVERFIT), runtime, unlearnable)
    assert isinstance(report, dict)
    losses = valid_losses(run)
    best = best_epoch(losses)
    assert report["stopped_early"] is True
    assert len(losses) == best + 1 + 3 < 40
    assert report["steps"] == len(losses) * 12
    assert report["epochs"] == len(losses)
    assert report["selected"] == {
        "by": "lowest validation loss",
        "step": (best + 1) * 12,
        "valid_loss": min(losses),
    }
    final, _ = checkpoint.read(run / "final.safetensors")
    kept, _ = checkpoint.read(run / "best.safetensors")
    last, _ = checkpoint.read(next(run.glob("checkpoint-*.safetensors")))
    assert tree.equal(final, kept)
    assert report["params_digest"] == tree.digest(final)
    assert not torch.equal(final["fc3.bias"], last["state.variables.params.fc3.bias"])
    train = [r for r in directory.read_records(run) if r["kind"] == "train"]
    assert [r["count"] for r in train] == [60] * len(losses), "held-out images are not trained on"


def test_a_run_that_keeps_improving_does_not_stop(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    patient = recipe.replace(valid_fraction=0.25, patience=3, epochs=12, restore_best=True)
    report = loop.train(tmp_path / "run", patient, runtime, dataset)
    assert isinstance(report, dict)
    assert report["stopped_early"] is False
    assert report["epochs"] == 12
    losses = valid_losses(tmp_path / "run")
    assert losses[-1] == min(losses)
    assert report["selected"]["step"] == report["steps"]


@pytest.mark.parametrize("steps", [5, 24, 36, 47])
def test_choices_survive_an_interruption(
    steps: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset
) -> None:
    overfit = recipe.replace(**OVERFIT)
    whole = loop.train(tmp_path / "whole", overfit, runtime, unlearnable)
    asked = iter(range(steps))
    run = tmp_path / "run"
    stopped = loop.train(
        run, overfit, runtime, unlearnable, stop=lambda: None if next(asked, -1) >= 0 else 15
    )
    assert stopped == loop.Interrupted(15, steps)
    resumed = loop.train(run, overfit, runtime, unlearnable, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    for name in ("params_digest", "selected", "steps", "test_loss"):
        assert resumed[name] == whole[name]
    assert valid_losses(run) == valid_losses(tmp_path / "whole")


def test_the_test_images_choose_nothing(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, make_batch
) -> None:
    """Other test images, the same run."""
    overfit, other = recipe.replace(**OVERFIT), make_batch(20, seed=9)
    a = loop.train(tmp_path / "a", overfit, runtime, unlearnable)
    replaced = unlearnable._replace(test_images=other.images, test_labels=other.labels)
    b = loop.train(tmp_path / "b", overfit, runtime, replaced)
    assert isinstance(a, dict)
    assert isinstance(b, dict)
    assert a["params_digest"] == b["params_digest"]
    assert a["selected"] == b["selected"]
    assert a["test_loss"] != b["test_loss"]
    splits = [
        json.loads(line).get("split")
        for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    ]
    assert splits.count("test") == 1
    assert splits[-1] == "test"


def test_validation_is_without_augmentation(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """At a learning rate of zero the network stays: so must its validation loss."""
    still = recipe.replace(
        learning_rate=0.0, valid_fraction=0.25, augment=("random_crop:8", "cutout:16"), log_every=0
    )
    loop.train(tmp_path / "run", still, runtime, dataset)
    losses = valid_losses(tmp_path / "run")
    assert len(set(losses)) == 1
    train = [r["loss"] for r in directory.read_records(tmp_path / "run") if r["kind"] == "train"]
    assert len(set(train)) == len(train), "while the training images change from epoch to epoch"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 2}, "need validation images"),
        ({"restore_best": True}, "need validation images"),
        ({"valid_fraction": 1.0}, r"must lie in \[0, 1\)"),
        ({"valid_fraction": 0.001}, "is no image of the 42"),
        ({"augment": ("flop",)}, "must be one of random_flip"),
        ({"augment": ("random_crop:x",)}, "cannot be used"),
        ({"augment": ("random_flip:2",)}, "cannot be used"),
        ({"model_options": {"dropout": 1.5}}, r"must lie in \[0, 1\)"),
    ],
)
def test_contradictions_are_named(
    changes: dict, message: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    with pytest.raises(UserError, match=message):
        loop.train(tmp_path / "run", recipe.replace(**changes), runtime, dataset)
    assert not (tmp_path / "run").exists()


def test_the_held_out_images_can_be_evaluated_again(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    report = loop.train(run, recipe.replace(**OVERFIT), runtime, unlearnable)
    assert isinstance(report, dict)
    network = trained.load(run)
    figures, _ = trained.evaluate(network, runtime, unlearnable, "valid")
    assert figures["n"] == 20
    assert figures["loss"] == report["selected"]["valid_loss"]
    with pytest.raises(UserError, match="it held none out"):
        trained.evaluate(network, runtime, dataset, "valid")
