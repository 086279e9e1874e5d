"""An average beside the weights: evaluated, saved, verified, reproduced, and loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import averaging, recipes, tensor_files, tree
from fcifar.data import Dataset
from fcifar.errors import ExternalError, UsageError
from fcifar.recipes import Recipe
from fcifar.recipes.trials import make_trials
from fcifar.runs import inference, reproduce
from fcifar.runs.verify import verify
from fcifar.train import loop, metrics_log, run_dir, sweep
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers import training
from tests.helpers.small import make_recipe
from tests.helpers.training import after, records, train

AVERAGES = {"ema": {"ema_decay": 0.8}, "swa": {"swa_start": 0.5}}
each_average = pytest.mark.parametrize("average", AVERAGES)


def states(run: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset) -> tuple[Any, list[Any]]:
    """The report of a run, and its state after each step."""
    seen: list[Any] = []

    def probe(step: int, running: Any) -> None:
        seen.append(tree.map(torch.clone, running.state))

    return train(run, recipe, runtime, dataset, probe=probe), seen


@each_average
def test_both_are_evaluated_and_saved(
    average: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """The weights are those of a run without an average; resumed, both are the same."""
    plain = train(tmp_path / "plain", recipe, runtime, dataset)
    recipe = recipe.replace(**AVERAGES[average], tta="mirror")
    report, seen = states(tmp_path / "run", recipe, runtime, dataset)
    last = seen[-1]
    assert report["params_digest"] == plain["params_digest"] == tree.digest(last.variables.params)
    assert report["test_loss"] == plain["test_loss"]
    assert report["average"] == average
    assert report["average_params_digest"] == tree.digest(last.average.average.params)
    assert report["average_params_digest"] != report["params_digest"]

    for is_average, prefix in ((False, "test"), (True, "average")):
        model = inference.load(tmp_path / "run", average=is_average)
        found, _ = inference.evaluate(model, runtime, dataset, "test")
        for name in ("accuracy", "loss"):
            assert found[name] == report[f"{prefix}_{name}"]
        views = inference.evaluate_views(model, runtime, dataset, "test", "mirror")
        before = "average_" if is_average else ""
        assert views["tta_accuracy"] == report[f"{before}tta_accuracy"]
    splits = [r["split"] for r in metrics_log.read(tmp_path / "run") if r["split"] != "train"]
    assert splits == ["test", "test-mirror", "test-average", "test-average-mirror"]

    run = tmp_path / "again"
    training.train(run, recipe, runtime, dataset, stop=after(20))
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert resumed["average_params_digest"] == report["average_params_digest"]
    assert records(run) == records(tmp_path / "run")


@pytest.mark.parametrize(("start", "first"), [(0.01, 1), (0.34, 2), (0.5, 2), (2 / 3, 2), (0.9, 3)])
def test_swa_has_the_weights_after_each_epoch(
    start: float, first: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    _, seen = states(tmp_path / "run", recipe.replace(swa_start=start), runtime, dataset)
    ends = [seen[9 * epoch - 1].variables.params for epoch in range(first, 4)]
    found = inference.load(tmp_path / "run", average=True).variables.params
    for name, value in averaging.mean(ends).items():
        torch.testing.assert_close(found[name], value)


@each_average
def test_batch_norm_has_statistics_of_the_averaged_weights(
    average: str, tmp_path: Path, runtime: Runtime, dataset: Dataset
) -> None:
    """Of training images that are not held out, whatever the running statistics were."""
    recipe = make_recipe("speed90").replace(
        batch_size=8,
        epochs=2,
        precision="fp32",
        valid_fraction=0.2,
        tta="none",
        schedule="constant",
    )
    recipe = recipe.replace(lookahead_every=0, **AVERAGES[average])
    report, seen = states(tmp_path / "run", recipe, runtime, dataset)
    model = inference.load(tmp_path / "run", average=True)
    rows = torch.arange(len(dataset.train_labels))
    held_out = inference.rows_of(model, dataset, "valid")[1].tolist()
    images = dataset.train_images[[row for row in rows.tolist() if row not in held_out]]
    x = recipes.make_preprocess(recipe)(images)
    key = torch.zeros(2, dtype=torch.int64)
    params, buffers = model.variables
    once = model.model.apply(model.variables, x, key=key, train=True)[1]
    for name, value in buffers.items():
        if name.endswith(averaging.STATISTICS):
            torch.testing.assert_close(once[name], value, rtol=1e-4, atol=1e-4)
            assert not torch.equal(value, seen[-1].average.average.buffers[name])
        else:
            assert torch.equal(value, seen[-1].average.average.buffers[name])
    assert report["average_params_digest"] == tree.digest(params)


def test_validation_and_selection_are_of_the_weights(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(ema_decay=0.5, valid_fraction=0.2, restore_best=True)
    report, seen = states(tmp_path / "run", recipe, runtime, dataset)
    chosen = seen[report["selected"]["step"] - 1]
    assert report["params_digest"] == tree.digest(chosen.variables.params)
    assert report["average_params_digest"] == tree.digest(seen[-1].average.average.params)
    model = inference.load(tmp_path / "run")
    found, _ = inference.evaluate(model, runtime, dataset, "valid")
    assert found["loss"] == pytest.approx(report["selected"]["valid_loss"], rel=1e-6)


@each_average
def test_it_is_verified_and_reproduced(
    average: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe.replace(**AVERAGES[average]), runtime, dataset)
    assert verify(run) == []
    found = reproduce.reproduce(reproduce.read(run), dataset)
    assert found["identical"]
    assert found["log_points"] == len(metrics_log.read(run))
    file = run / run_dir.AVERAGE
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (problem,) = verify(run)
    assert str(file) in problem
    file.unlink()
    (problem,) = verify(run)
    assert "average.safetensors is missing" in problem
    with pytest.raises(ExternalError, match=r"average\.safetensors is gone, though the run is"):
        inference.load(run, average=True)


def test_another_average_is_a_difference(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Of its parameters alone, though the weights and every log point are the same."""
    run = tmp_path / "run"
    train(run, recipe.replace(ema_decay=0.8), runtime, dataset)
    tensors, metadata = tensor_files.read(run / run_dir.AVERAGE)
    tensors["fc3.bias"] += 1
    metadata["params_digest"] = tree.digest(tensors)
    tensor_files.save(run / run_dir.AVERAGE, tensors, metadata)
    report = run_dir.read_report(run)
    run_dir.write_result(run, {**report, "average_params_digest": metadata["params_digest"]})
    assert verify(run) == []
    found = reproduce.reproduce(reproduce.read(run), dataset)
    assert not found["identical"]
    assert found["log_points_differing"] == 0
    assert [each["tensor"] for each in found["final"]["differing"]] == ["fc3.bias"]
    assert found["final"]["digest"] == found["final"]["new_digest"]


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_a_group_has_the_averages_of_its_runs(
    method: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(swa_start=0.5)
    config = make_config(recipe, dataset, runtime=runtime)
    trials = make_trials(recipe, {}, (0, 1))
    summary = sweep.train(tmp_path / "group", sweep.Sweep(trials, method, config), dataset)
    figures = [member["average_accuracy"] for member in summary["members"]]
    assert summary["cells"][0]["average_accuracy"]["mean"] == pytest.approx(sum(figures) / 2)
    assert verify(tmp_path / "group") == []
    for member in summary["members"]:
        model = inference.load(tmp_path / "group" / member["name"], average=True)
        assert tree.digest(model.variables.params) == member["average_params_digest"]


def test_what_has_no_average_is_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe.replace(epochs=1), runtime, dataset)
    assert not (run / run_dir.AVERAGE).exists()
    assert not [name for name in run_dir.read_report(run) if name.startswith("average")]
    with pytest.raises(UsageError, match="has no average beside its model"):
        inference.load(run, average=True)
    with pytest.raises(UsageError, match="--average is of a run directory, and"):
        inference.load(run / run_dir.FINAL, average=True)
    train(tmp_path / "stopped", recipe.replace(swa_start=0.5), runtime, dataset, stop=after(3))
    with pytest.raises(UsageError, match="is not finished; resume it with"):
        inference.load(tmp_path / "stopped", average=True)


def test_a_run_of_an_earlier_version_is_read(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Its manifest has no swa_start, and its model is what it was."""
    run = tmp_path / "run"
    report = train(run, recipe, runtime, dataset)
    manifest = json.loads((run / run_dir.MANIFEST).read_text())
    del manifest["recipe"]["swa_start"]
    (run / run_dir.MANIFEST).write_text(json.dumps(manifest))
    run_dir.write_result(run, report)
    assert verify(run) == []
    assert (
        loop.train(
            run,
            make_config(recipe, dataset, seed=training.SEED, runtime=runtime),
            dataset,
            resume=True,
        )
        == report
    )
