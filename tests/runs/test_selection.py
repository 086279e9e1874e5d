"""Choosing by validation loss, alone and in a run."""

import json
from pathlib import Path

import pytest
import torch

from fcifar import random, tensor_files, tree
from fcifar.data import Dataset, Split, make_dataset
from fcifar.data.dataset import EMPTY
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.recipes.trials import make_trials
from fcifar.runs import inference, reproduce
from fcifar.train import loop, metrics_log, run_dir, sweep
from fcifar.train.config import make_config, read_config
from fcifar.train.early_stopping import best_epoch, is_best, should_stop
from fcifar.train.runtime import Runtime
from tests.helpers.training import train

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
    return [r["loss"] for r in metrics_log.read(run) if r["split"] == "valid"]


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
    report = train(run, recipe.replace(**OVERFIT), runtime, unlearnable)
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
    final, _ = tensor_files.read(run / "final.safetensors")
    kept, _ = tensor_files.read(run / "best.safetensors")
    last, _ = tensor_files.read(next(run.glob("checkpoint-*.safetensors")))
    assert tree.equal(final, kept)
    assert report["params_digest"] == tree.digest(final)
    assert not torch.equal(final["fc3.bias"], last["state.variables.params.fc3.bias"])
    logged = [r for r in metrics_log.read(run) if r["split"] == "train"]
    assert [r["count"] for r in logged] == [60] * len(losses), "held-out images are not trained on"


def test_a_run_that_keeps_improving_does_not_stop(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    patient = recipe.replace(valid_fraction=0.25, patience=3, epochs=12, restore_best=True)
    report = train(tmp_path / "run", patient, runtime, dataset)
    assert isinstance(report, dict)
    assert report["stopped_early"] is False
    assert report["epochs"] == 12
    losses = valid_losses(tmp_path / "run")
    assert losses[-1] == min(losses)
    assert report["selected"]["step"] == report["steps"]


@pytest.mark.parametrize("steps", [5, 24, 36, 47])
def test_model_selection_survives_an_interruption(
    steps: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset
) -> None:
    overfit = recipe.replace(**OVERFIT)
    whole = train(tmp_path / "whole", overfit, runtime, unlearnable)
    asked = iter(range(steps))
    run = tmp_path / "run"
    stopped = train(
        run, overfit, runtime, unlearnable, stop=lambda: None if next(asked, -1) >= 0 else 15
    )
    assert stopped == loop.Interrupted(15, steps)
    resumed = train(run, overfit, runtime, unlearnable, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    for name in ("params_digest", "selected", "steps", "test_loss"):
        assert resumed[name] == whole[name]
    assert valid_losses(run) == valid_losses(tmp_path / "whole")


def test_the_test_images_are_not_used_for_selection(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, make_batch
) -> None:
    """Other test images, the same run."""
    overfit, other = recipe.replace(**OVERFIT), make_batch(20, seed=9)
    a = train(tmp_path / "a", overfit, runtime, unlearnable)
    replaced = unlearnable._replace(test_images=other.images, test_labels=other.labels)
    b = train(tmp_path / "b", overfit, runtime, replaced)
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
    train(tmp_path / "run", still, runtime, dataset)
    losses = valid_losses(tmp_path / "run")
    assert len(set(losses)) == 1
    seen = [r["loss"] for r in metrics_log.read(tmp_path / "run") if r["split"] == "train"]
    assert len(set(seen)) == len(seen), "while the training images change from epoch to epoch"


# Given validation images --------------------------------------------------------------------------


@pytest.fixture
def given(unlearnable: Dataset, make_batch) -> Dataset:
    """The same training images, and 30 validation images besides."""
    train, test = Split(*unlearnable[1:3]), Split(*unlearnable[3:5])
    valid = Split(*make_batch(30, seed=3))
    return make_dataset("given", train, test, unlearnable.classes, "drawn by the tests", valid)


GIVEN = {**OVERFIT, "valid_fraction": 0.0, "valid": "given"}


def test_given_images_select_the_best_epoch_and_are_not_trained_on(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, given: Dataset, make_batch
) -> None:
    run = tmp_path / "run"
    report = train(run, recipe.replace(**GIVEN), runtime, given)
    assert isinstance(report, dict)
    losses = valid_losses(run)
    assert report["stopped_early"]
    assert report["selected"]["valid_loss"] == min(losses)
    assert report["valid_n"] == 30
    counts = {(r["split"], r["count"]) for r in metrics_log.read(run)}
    assert counts == {("train", 80), ("valid", 30), ("test", 20)}, "all 80 are trained on"
    network = inference.load(run)
    figures, _ = inference.evaluate(network, runtime, given, "valid")
    assert figures["n"] == 30
    assert figures["loss"] == report["selected"]["valid_loss"]

    still = {**GIVEN, "patience": 0, "restore_best": False, "epochs": 2}
    other = make_batch(30, seed=4)
    replaced = given._replace(valid_images=other.images, valid_labels=other.labels)
    a = train(tmp_path / "a", recipe.replace(**still), runtime, given)
    b = train(tmp_path / "b", recipe.replace(**still), runtime, replaced)
    assert isinstance(a, dict)
    assert isinstance(b, dict)
    assert a["params_digest"] == b["params_digest"], "other validation images, the same training"
    assert valid_losses(tmp_path / "a") != valid_losses(tmp_path / "b")


def test_given_images_are_evaluated_without_augmentation(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, given: Dataset
) -> None:
    still = recipe.replace(valid="given", learning_rate=0.0, augment=("random_crop:8",))
    train(tmp_path / "run", still, runtime, given)
    assert len(set(valid_losses(tmp_path / "run"))) == 1


def test_unused_given_images_change_nothing(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, given: Dataset
) -> None:
    for name, changes in (("plain", {}), ("held", {"valid_fraction": 0.25})):
        a = train(tmp_path / f"{name}-a", recipe.replace(**changes), runtime, unlearnable)
        b = train(tmp_path / f"{name}-b", recipe.replace(**changes), runtime, given)
        assert isinstance(a, dict)
        assert isinstance(b, dict)
        assert a["params_digest"] == b["params_digest"]
        assert valid_losses(tmp_path / f"{name}-a") == valid_losses(tmp_path / f"{name}-b")
    held = inference.load(tmp_path / "held-b")
    assert inference.evaluate(held, runtime, given, "valid")[0]["n"] == 20, "what it held out"


def test_a_run_with_given_images_is_resumed_and_reproduced(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, given: Dataset
) -> None:
    overfit = recipe.replace(**GIVEN)
    whole = train(tmp_path / "whole", overfit, runtime, given)
    run, asked = tmp_path / "run", iter(range(30))
    stopped = train(run, overfit, runtime, given, stop=lambda: None if next(asked, -1) >= 0 else 15)
    assert stopped == loop.Interrupted(15, 30)
    assert read_config(run).recipe.valid == "given"
    resumed = loop.train(run, read_config(run), given, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    for name in ("params_digest", "selected", "steps", "test_loss", "valid_n"):
        assert resumed[name] == whole[name]
    found = reproduce.reproduce(reproduce.read(run), given)
    assert isinstance(found, dict)
    assert found["identical"]


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_replicas_share_given_images(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, given: Dataset, method: str
) -> None:
    config = make_config(recipe.replace(valid="given"), given, seed=5, runtime=runtime)
    asked = sweep.Sweep(make_trials(config.recipe, {}, (5, 6)), method, config)
    summary = sweep.train(tmp_path / "group", asked, given)
    assert isinstance(summary, dict)
    for member in asked.trials:
        report = run_dir.read_report(tmp_path / "group" / member.name)
        assert report["valid_n"] == 30
        assert len(valid_losses(tmp_path / "group" / member.name)) == 3
    networks = [inference.load(tmp_path / "group" / m.name) for m in asked.trials]
    inference.check_images(networks, given, "valid")  # which is the same for each seed
    names = inference.image_names(networks[0], given, "valid")
    assert (names[0], names[-1]) == ("valid/00000", "valid/00029")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid": "given"}, "has no validation images; .* --valid-fraction 0.1"),
        ({"valid": "given", "valid_fraction": 0.1}, "give one or the other"),
        ({"valid": "given", "stratify": True}, "give one or the other"),
        ({"valid": "giben"}, "valid is 'giben'; it must be one of fraction, given; did you mean"),
        ({"patience": 2}, "needs validation images"),
        ({"restore_best": True}, "needs validation images"),
        ({"valid_fraction": 1.0}, r"must lie in \[0, 1\)"),
        ({"valid_fraction": 0.001}, "holds out no images .42 in tiny"),
        ({"augment": ("flop",)}, "must be one of random_flip"),
        ({"augment": ("random_crop:x",)}, "cannot be used"),
        ({"augment": ("random_flip:2",)}, "cannot be used"),
        ({"model_options": {"dropout": 1.5}}, r"must lie in \[0, 1\)"),
    ],
)
def test_contradicting_settings_are_refused(
    changes: dict, message: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "run", recipe.replace(**changes), runtime, dataset)
    assert not (tmp_path / "run").exists()


def test_the_held_out_images_can_be_evaluated_again(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    report = train(run, recipe.replace(**OVERFIT), runtime, unlearnable)
    assert isinstance(report, dict)
    network = inference.load(run)
    figures, _ = inference.evaluate(network, runtime, unlearnable, "valid")
    assert figures["n"] == 20
    assert figures["loss"] == report["selected"]["valid_loss"]
    with pytest.raises(UsageError, match="it held out nothing of"):
        inference.evaluate(network, runtime, dataset, "valid")


def test_a_test_set_alone_is_evaluated_and_not_trained_on(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, unlearnable: Dataset, make_batch
) -> None:
    test = Split(*make_batch(20, seed=9))
    alone = make_dataset("alone", EMPTY, test, unlearnable.classes, "drawn by the tests")
    with pytest.raises(UsageError, match="alone is a test set without training images; train on"):
        train(tmp_path / "none", recipe, runtime, alone)
    assert not (tmp_path / "none").exists()
    train(tmp_path / "run", recipe, runtime, unlearnable)
    network = inference.load(tmp_path / "run")
    assert inference.evaluate(network, runtime, alone, "test")[0]["n"] == 20
    with pytest.raises(UsageError, match="without training images; use --split test"):
        inference.evaluate(network, runtime, alone, "train")
    with pytest.raises(UsageError, match="no validation images of its own either"):
        inference.evaluate(network, runtime, alone, "valid")
