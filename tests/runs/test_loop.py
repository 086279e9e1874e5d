"""A run: repeatable, resumable anywhere, and readable afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fcifar import tree
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import ExternalError, UsageError
from fcifar.metrics import wilson_interval
from fcifar.models.lenet import _LeNet
from fcifar.recipes import Recipe
from fcifar.runs import inference, reproduce
from fcifar.runs.verify import verify
from fcifar.train import loop, run_dir, setup
from fcifar.train.config import extend_config, make_config, read_config
from fcifar.train.metrics_log import MetricsLog
from fcifar.train.runtime import Runtime
from tests.helpers.training import SEED, after, records, train


def test_a_run_directory_has_the_documented_files(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    report = train(run, recipe, runtime, dataset)
    assert isinstance(report, dict)
    assert {f.name for f in run.iterdir()} == {
        "manifest.json",
        "metrics.jsonl",
        "digests.jsonl",
        "SHA256SUMS",
        "checkpoint-00000027.safetensors",
        ".lock",
        "final.safetensors",
        "predictions.safetensors",
        "report.json",
    }
    assert report == run_dir.read_report(run)
    assert set(report) >= {
        *("run_dir", "recipe", "dataset", "seed", "steps", "epochs", "test_accuracy", "test_loss"),
        *("train_seconds", "compile_seconds", "images_per_second", "params_digest"),
    }
    assert report["steps"] == 27
    assert sum(c["total"] for c in report["per_class"].values()) == 23
    correct = sum(c["correct"] for c in report["per_class"].values())
    assert report["test_accuracy"] == correct / 23
    assert report["interval95"] == list(wilson_interval(correct, 23))

    about = run_dir.read_manifest(run)
    assert about["dataset"]["digest"] == dataset.digest
    assert about["environment"]["versions"]["torch"] == torch.__version__
    assert read_config(run) == make_config(recipe, dataset, seed=SEED, runtime=runtime)

    logged = [r for r in records(run) if r["split"] == "train"]
    assert [r["step"] for r in logged] == [4, 8, 12, 16, 20, 24, 27]
    assert sum(r["count"] for r in logged) == 3 * 42, "every image once an epoch"
    assert records(run)[-1]["split"] == "test"
    assert logged[-1]["loss"] < logged[0]["loss"]


def test_final_parameters_are_the_tutorials_state_dict(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe, runtime, dataset)
    assert isinstance(report, dict)
    params = load_file(tmp_path / "run/final.safetensors")
    assert str(_LeNet(84, 10).load_state_dict(params)) == "<All keys matched successfully>"
    assert report["params_digest"] == tree.digest(params)


def test_the_seed_decides_everything(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    torch.manual_seed(1)
    a = train(tmp_path / "a", recipe, runtime, dataset)
    torch.manual_seed(2)
    b = train(tmp_path / "b", recipe, runtime, dataset)
    c = train(tmp_path / "c", recipe, Runtime(), dataset, seed=6)
    assert isinstance(a, dict)
    assert isinstance(b, dict)
    assert isinstance(c, dict)
    assert a["params_digest"] == b["params_digest"] != c["params_digest"]
    assert records(tmp_path / "a") == records(tmp_path / "b") != records(tmp_path / "c")


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 8, 9, 10, 17, 26])
def test_interrupted_anywhere_and_resumed_it_is_the_same_run(
    steps: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    stopped = train(run, recipe, runtime, dataset, stop=after(steps))
    assert stopped == loop.Interrupted(15, steps)
    assert not (run / run_dir.REPORT).exists()
    resumed = loop.train(run, read_config(run), dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert resumed["test_loss"] == whole["test_loss"]
    assert records(run) == records(tmp_path / "whole")


@pytest.mark.parametrize("stopped_at", [None, 5])
def test_an_extended_run_equals_a_longer_run(
    stopped_at: int | None, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Of a run that had come to its end, twice; and of one that was interrupted."""
    run, short = tmp_path / "run", recipe.replace(epochs=1)
    train(tmp_path / "whole", recipe, runtime, dataset)
    train(run, short, runtime, dataset, stop=after(stopped_at or 99))
    for epochs in (2, 3):
        config = extend_config(run, read_config(run), epochs)
        assert config == read_config(run)
        assert config.recipe == recipe.replace(epochs=epochs)
        assert not (run / run_dir.REPORT).exists()
        report = loop.train(run, config, dataset, resume=True)
    assert isinstance(report, dict)
    assert report["epochs"] == 3
    assert report["params_digest"] == run_dir.read_report(tmp_path / "whole")["params_digest"]
    assert config.earlier_ends == ((2,) if stopped_at else (1, 2))
    ends = {9 * epochs for epochs in config.earlier_ends}
    found, expected = (
        {r["step"]: r["digest"] for r in records(path) if r["split"] == "train"}
        for path in (run, tmp_path / "whole")
    )
    assert found.items() >= expected.items(), "the log points of the longer run are among them"
    assert found.keys() - expected.keys() == ends - expected.keys()
    assert [r["step"] for r in records(run) if r["split"] != "train"] == [27]
    assert verify(run) == []
    again = reproduce.reproduce(reproduce.read(run), dataset)
    assert isinstance(again, dict)
    assert again["identical"]


@pytest.mark.parametrize(
    ("changes", "epochs", "message"),
    [
        ({}, 3, "has 3 epochs; with --resume, give a larger total number of epochs"),
        ({"schedule": "cosine"}, 4, "spreads schedule over the whole run"),
        ({"warmup_fraction": 0.1, "lookahead_every": 2}, 4, "warmup_fraction and lookahead_every"),
        ({"valid_fraction": 0.2, "patience": 1, "learning_rate": 0.0}, 4, "stopped early, after 1"),
    ],
)
def test_extending_is_refused_if_the_run_would_differ(
    changes: dict[str, Any],
    epochs: int,
    message: str,
    tmp_path: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
) -> None:
    run = tmp_path / "run"
    train(run, recipe.replace(**changes), runtime, dataset)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UsageError, match=message):
        extend_config(run, read_config(run), epochs)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("name", ["none", "balanced"])
def test_class_weights_are_in_the_loss_of_training_alone(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, make_batch
) -> None:
    """Without learning, the losses of training and of testing are of the same parameters."""
    labels = (torch.arange(40) % 10 == 0).long()  # 36 and 4
    split = Split(make_batch(40).images, labels)
    data = make_dataset("rare", split, split, ("common", "rare"), "drawn by the tests")
    recipe = recipe.replace(learning_rate=0.0, epochs=1, log_every=0, class_weights=name)
    run = tmp_path / "run"
    train(run, recipe, runtime, data)
    assert read_config(run).recipe.class_weights == name
    logits = load_file(run / "predictions.safetensors")["logits"]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = torch.tensor({"none": [1.0, 1.0], "balanced": [40 / 72, 40 / 8]}[name])
    trained_with, tested = records(run)
    assert trained_with["loss"] == pytest.approx(float((weights[labels] * losses).mean()), rel=1e-5)
    assert tested["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_a_private_run_is_the_same_when_resumed(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Its noise is a function of the seed and the step; another seed has another."""
    recipe = recipe.replace(dp_clip=1.0, dp_noise=0.5, augment=("random_flip",))
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(5))
    resumed = loop.train(run, read_config(run), dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert records(run) == records(tmp_path / "whole")


@pytest.mark.parametrize("optimizer", ["schedule_free", "schedule_free_adamw"])
def test_micro_batches_sam_and_schedule_free_are_the_same_when_resumed(
    optimizer: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """With dropout and augmentation, whose draws are those of whole batches."""
    recipe = recipe.replace(
        micro_batch=2,
        sam_rho=0.05,
        optimizer=optimizer,
        momentum=0.0,
        augment=("random_flip",),
        model_options={"dropout": 0.2},
    )
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(5))
    resumed = loop.train(run, read_config(run), dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert records(run) == records(tmp_path / "whole")


def test_log_points_after_the_checkpoint_are_repeated(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """As after a crash: the log is ahead of the checkpoint, and its last line is torn."""
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(6))
    for name in ("metrics.jsonl", "digests.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 8, "split": "train", "loss": 9.9}\n{"step": 9, "sp')
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert records(run) == records(tmp_path / "whole")
    assert resumed["params_digest"] == whole["params_digest"]


def test_drop_last_leaves_the_short_batch_out(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe.replace(drop_last=True), runtime, dataset)
    assert isinstance(report, dict)
    assert report["steps"] == 24
    assert sum(r["count"] for r in records(tmp_path / "run") if r["split"] == "train") == 120


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 5},
        {"nesterov": True, "weight_decay": 0.01, "clip_norm": 1.0, "schedule": "linear"},
        {"dp_clip": 0.5},
        {"dp_clip": 1e9, "dp_noise": 1e-10},
        {"sam_rho": 0.05},
        {"optimizer": "schedule_free", "momentum": 0.0},
    ],
)
def test_recipe_settings_change_the_result(
    changes: dict, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    plain = train(tmp_path / "plain", recipe, runtime, dataset)
    changes = {"momentum": 0.0} | changes if "adam" in str(changes) else changes
    changed = train(tmp_path / "run", recipe.replace(**changes), runtime, dataset)
    assert isinstance(plain, dict)
    assert isinstance(changed, dict)
    assert changed["params_digest"] != plain["params_digest"]


@pytest.mark.slow
def test_compiled_runs_repeat_and_resume_too(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    whole = train(tmp_path / "whole", recipe, runtime, dataset, compile=True)
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, compile=True, stop=after(10))
    assert read_config(run).compile is True
    resumed = train(run, recipe, runtime, dataset, compile=True, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert whole["compile_seconds"] > 0
    assert records(run) == records(tmp_path / "whole")


def test_evaluating_a_finished_run_gives_its_report(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    report = train(run, recipe, runtime, dataset)
    assert isinstance(report, dict)
    for path in (run, run / "final.safetensors"):
        network = inference.load(path)
        found, _ = inference.evaluate(network, runtime, dataset, "test")
        assert found["accuracy"] == report["test_accuracy"]
        assert found["loss"] == report["test_loss"]
        assert found["params_digest"] == report["params_digest"]
    assert inference.evaluate(inference.load(run), runtime, dataset, "train")[0]["n"] == 42


def test_a_used_directory_is_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is not empty"):
        train(tmp_path, recipe, runtime, dataset)
    assert [f.name for f in tmp_path.iterdir()] == ["letter.txt"]
    train(tmp_path / "run", recipe, runtime, dataset, stop=after(2))
    with pytest.raises(UsageError, match="--resume"):
        train(tmp_path / "run", recipe, runtime, dataset)


def test_invalid_requests_write_nothing(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    for changes, message in (
        ({"batch_size": 43}, "has 42 training images"),
        ({"warmup_steps": 27}, "only 27 steps"),
        ({"model_options": {"depth": 3}}, "do not fit the model lenet"),
    ):
        with pytest.raises(UsageError, match=message):
            train(tmp_path / "run", recipe.replace(**changes), runtime, dataset)
    assert not (tmp_path / "run").exists()


def test_damage_is_named(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(5))
    with pytest.raises(UsageError, match="fcifar train --resume"):
        inference.load(run)
    with pytest.raises(UsageError, match="began with another recipe"):
        train(run, recipe.replace(epochs=4), runtime, dataset, resume=True)
    (run / "manifest.json").write_text("{")
    with pytest.raises(ExternalError, match=r"manifest\.json is damaged: its SHA-256 is"):
        read_config(run)
    (run / "SHA256SUMS").unlink()
    with pytest.raises(ExternalError, match="cannot be read as JSON"):
        read_config(run)
    with pytest.raises(UsageError, match="not a run directory"):
        read_config(tmp_path)


def test_other_classes_are_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path / "run", recipe, runtime, dataset)
    network = inference.load(tmp_path / "run")
    other = make_dataset(
        "other",
        Split(dataset.train_images, dataset.train_labels),
        Split(dataset.test_images, dataset.test_labels),
        tuple("jihgfedcba"),
        "",
    )
    with pytest.raises(UsageError, match="with the same classes"):
        inference.evaluate(network, runtime, other, "test")
    with pytest.raises(UsageError, match="must be test, train or valid"):
        inference.evaluate(network, runtime, dataset, "holdout")


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    record = {"step": 1, "split": "train", "loss": float("nan"), "more": [float("inf")]}
    MetricsLog(tmp_path).append(record, {"digest": "x"})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "split": "train", "loss": null, "more": [null]}\n'


def test_the_holdout_is_drawn_once_a_run(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    drawn = []

    def holdout(*args: Any, **more: Any) -> Any:
        drawn.append(args)
        return original(*args, **more)

    original = setup.holdout
    monkeypatch.setattr(setup, "holdout", holdout)
    train(tmp_path / "run", recipe.replace(valid_fraction=0.2), runtime, dataset)
    assert len(drawn) == 1


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(5))
    saved = run / "checkpoint-00000005.safetensors"
    before = saved.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ExternalError, match="No space left on device; free some space"):
        train(run, recipe, runtime, dataset, resume=True)
    assert saved.read_bytes() == before
    assert not [f for f in run.iterdir() if f.name.startswith(".") and f.name != ".lock"]


def test_a_run_that_appears_before_the_lock_is_not_overwritten(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Of a run that another process began and left, and of somebody's folder in a sweep."""
    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(UsageError, match="run already holds a run"):
        train(run, recipe, runtime, dataset, begin=lambda: (run / "manifest.json").write_text("{}"))
    assert (run / "manifest.json").read_text() == "{}"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    config = make_config(recipe, dataset, runtime=runtime)
    with pytest.raises(UsageError, match=r"--out .*other is not empty"):
        loop.train(tmp_path, config, dataset, rows=[loop.Row(other, config)], resume=True)
    assert [path.name for path in other.iterdir() if path.name[0] != "."] == ["notes.txt"]
