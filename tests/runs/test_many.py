"""A group: each run is what it is alone, and the group goes on where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import io, tensor_files
from fcifar.analysis import ensembles
from fcifar.data import Dataset
from fcifar.errors import DamagedError, ExternalError, UsageError
from fcifar.recipes import Recipe
from fcifar.recipes.trials import compile_groups, make_trials
from fcifar.runs import reproduce
from fcifar.runs.verify import verify
from fcifar.train import loop, metrics_log, run_dir, sweep
from fcifar.train.config import CheckpointConfig, make_config
from fcifar.train.evaluate import read_predictions
from fcifar.train.runtime import Runtime
from fcifar.train.sweep import Sweep
from tests.helpers.training import after, records, train

METHODS = ["loop", "vmap"]


@pytest.fixture
def ask(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Callable[..., Sweep]:
    def ask(
        method: str = "loop",
        seeds: tuple[int, ...] = (5, 6),
        grid: dict[str, list[Any]] | None = None,
        changes: dict[str, Any] | None = None,
        **checkpoint: Any,
    ) -> Sweep:
        base = recipe.replace(**(changes or {}))
        axes = {
            name: [(value, base.replace(**{name: value})) for value in values]
            for name, values in (grid or {}).items()
        }
        config = make_config(
            base,
            dataset,
            seed=seeds[0],
            runtime=runtime,
            checkpoint=CheckpointConfig(**checkpoint),
        )
        trials = make_trials(base, axes, seeds)
        return Sweep(trials, method, config.replace(recipe=trials[0].recipe))

    return ask


def digests(summary: Any) -> list[str]:
    assert isinstance(summary, dict)
    return [member["params_digest"] for member in summary["members"]]


def test_in_a_loop_each_run_is_bit_for_bit_the_run_alone(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    asked = ask(changes={"alternating_flip": True, "valid_fraction": 0.2})
    summary = sweep.train(tmp_path / "group", asked, dataset)
    for trial, digest in zip(asked.trials, digests(summary), strict=True):
        alone = train(tmp_path / trial.name, trial.recipe, Runtime(), dataset, seed=trial.seed)
        assert isinstance(alone, dict)
        assert alone["params_digest"] == digest
        assert records(tmp_path / "group" / trial.name) == records(tmp_path / trial.name)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_at_once_each_run_is_the_run_alone_to_rounding(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, schedule: str
) -> None:
    """Also where the last batch is short, flips alternate, and images are held out."""
    changes = {"alternating_flip": True, "valid_fraction": 0.2, "schedule": schedule}
    asked = ask("vmap", (5, 6, 7), changes=changes)
    summary = sweep.train(tmp_path / "vmap", asked, dataset)
    assert len(set(digests(summary))) == 3
    sweep.train(tmp_path / "loop", asked._replace(method="loop"), dataset)
    for trial in asked.trials:
        a, b = (
            tensor_files.read(tmp_path / method / trial.name / run_dir.FINAL)[0]
            for method in METHODS
        )
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-5)
        ours, theirs = (metrics_log.read(tmp_path / method / trial.name) for method in METHODS)
        for x, y in zip(ours, theirs, strict=True):
            assert (x["split"], x["step"], x["count"]) == (y["split"], y["step"], y["count"])
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_each_grid_point_equals_a_run_with_its_values(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, method: str
) -> None:
    """Two numbers that one step is mapped or called with, and a width that needs its own."""
    grid = {"learning_rate": [0.001, 0.02], "momentum": [0.0, 0.9], "batch_size": [5, 7]}
    asked = ask(method, (5,), grid, {"valid_fraction": 0.2})
    assert [(len(p.trials), p.traced_hparams) for p in compile_groups(asked.trials)] == [
        (4, ("learning_rate", "momentum"))
    ] * 2
    summary = sweep.train(tmp_path / "group", asked, dataset)
    assert isinstance(summary, dict)
    for trial in asked.trials[::3]:
        alone = train(tmp_path / trial.name, trial.recipe, asked.config.runtime, dataset)
        assert isinstance(alone, dict)
        a, b = (
            tensor_files.read(run / run_dir.FINAL)[0]
            for run in (tmp_path / "group" / trial.name, tmp_path / trial.name)
        )
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-5)
    best = max(summary["cells"], key=lambda cell: cell["valid_accuracy"]["mean"])
    assert summary["best"] == best["name"]
    assert [cell["changes"] for cell in summary["cells"]] == [m.changes for m in asked.trials]


def test_without_validation_images_no_best_point_is_selected(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    summary = sweep.train(tmp_path, ask(grid={"learning_rate": [0.1, 0.2]}), dataset)
    assert isinstance(summary, dict)
    assert summary["best"] is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [0, 4, 11, 30])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, method: str, steps: int
) -> None:
    asked = ask(method)
    whole = sweep.train(tmp_path / "whole", asked, dataset)
    run = tmp_path / "run"
    stopped = sweep.train(run, asked, dataset, stop=after(steps))
    if method == "vmap" and steps == 30:
        assert digests(stopped) == digests(whole)  # it was finished
        return
    assert isinstance(stopped, loop.Interrupted)
    assert stopped.signum == 15
    if not run_dir.is_group(run):  # it had not begun
        assert not run.exists()
        return
    resumed = sweep.train(run, sweep.read(run), dataset, resume=True)
    assert digests(resumed) == digests(whole)
    assert run_dir.read_report(run, run_dir.SUMMARY) == io.finite(resumed)


def test_a_vmapped_sweep_resumes_from_the_last_common_checkpoint(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    """As after a kill between the checkpoints of two runs."""
    asked = ask("vmap", checkpoint_every="4", keep_checkpoints=9)
    whole = sweep.train(tmp_path / "whole", asked, dataset)
    run = tmp_path / "run"
    sweep.train(run, asked, dataset, stop=after(14))
    first, second = (run / trial.name for trial in asked.trials)
    assert list(run_dir.list_checkpoints(first)) == [13, 12, 9, 8, 4], "9 steps are an epoch"
    run_dir.checkpoint_path(second, 13).unlink()
    run_dir.checkpoint_path(first, 12).unlink()
    resumed = sweep.train(run, asked, dataset, resume=True)
    assert digests(resumed) == digests(whole)
    run_dir.checkpoint_path(second, 24).unlink()  # and with nothing in common, from the beginning
    for trial in asked.trials:
        (run / trial.name / run_dir.REPORT).unlink()
    for path in run_dir.list_checkpoints(first).values():
        path.unlink()
    assert digests(sweep.train(run, asked, dataset, resume=True)) == digests(whole)


@pytest.mark.parametrize("method", METHODS)
def test_finished_runs_are_not_trained_again(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, method: str
) -> None:
    asked = ask(method)
    whole = sweep.train(tmp_path, asked, dataset)
    report = (tmp_path / "seed5" / run_dir.REPORT).read_bytes()
    (tmp_path / "seed6" / run_dir.REPORT).unlink()
    for path in run_dir.list_checkpoints(tmp_path / "seed6").values():
        path.unlink()
    assert digests(sweep.train(tmp_path, asked, dataset, resume=True)) == digests(whole)
    assert (tmp_path / "seed5" / run_dir.REPORT).read_bytes() == report


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_run_stops_and_the_others_continue(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, method: str
) -> None:
    asked = ask(method, (5,), {"learning_rate": [0.001, 1e20, 0.01]})
    notes: list[str] = []
    summary = sweep.train(tmp_path, asked, dataset, observe=lambda event: notes.append(str(event)))
    assert isinstance(summary, dict)
    fine, failed, also_fine = summary["members"]
    assert "test_accuracy" in fine
    assert "test_accuracy" in also_fine
    assert failed["failed"] == "the loss was not finite at step 2"
    assert any("learning_rate=1e+20: the loss is not finite" in note for note in notes)
    assert [cell["failed"] for cell in summary["cells"]] == [0, 1, 0]
    again = sweep.train(tmp_path, asked, dataset, resume=True)
    assert isinstance(again, dict)
    assert again["members"] == summary["members"]
    if method == "loop":  # mapped over three, and over two, it rounds otherwise
        two = ask(method, (5,), {"learning_rate": [0.001, 0.01]})
        ends = [member["params_digest"] for member in (fine, also_fine)]
        assert digests(sweep.train(tmp_path / "two", two, dataset)) == ends


def test_a_group_without_a_finished_run_is_an_error(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    with pytest.raises(ExternalError, match=r"no run of .* finished: the loss was not finite"):
        sweep.train(tmp_path, ask(changes={"learning_rate": 1e20}), dataset)


def test_the_summary_has_the_ensemble(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    summary = sweep.train(tmp_path, ask(seeds=(1, 2, 3)), dataset)
    assert isinstance(summary, dict)
    found = [read_predictions(tmp_path / f"seed{i}" / run_dir.PREDICTIONS)[0] for i in (1, 2, 3)]
    logits = torch.stack([examples.logits for examples in found])
    (cell,) = summary["cells"]
    assert cell["together"] == ensembles.summarize_replicas(logits, dataset.test_labels)
    accuracies = [member["test_accuracy"] for member in summary["members"]]
    assert cell["together"]["accuracies"] == pytest.approx(accuracies)
    assert summary["test_accuracy"] == pytest.approx(sum(accuracies) / 3)


@pytest.mark.parametrize("method", METHODS)
def test_a_group_reproduces_and_a_change_is_found(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset, method: str
) -> None:
    asked = ask(method)
    sweep.train(tmp_path / "group", asked, dataset)
    result = reproduce.reproduce_group(tmp_path / "group", dataset)
    assert isinstance(result, dict)
    assert result["identical"]
    assert result["expected"]
    other = asked._replace(trials=asked.trials[::-1][:1] + asked.trials[:1])
    renamed = [
        trial._replace(name=name)
        for trial, name in zip(other.trials, ("seed5", "seed6"), strict=True)
    ]
    sweep.train(tmp_path / "other", asked._replace(trials=tuple(renamed)), dataset)
    (tmp_path / "other" / run_dir.SWEEP).write_bytes(
        (tmp_path / "group" / run_dir.SWEEP).read_bytes()
    )
    run_dir.write_checksums(tmp_path / "other", [run_dir.SWEEP, run_dir.SUMMARY])
    result = reproduce.reproduce_group(tmp_path / "other", dataset)
    assert isinstance(result, dict)
    assert not result["identical"]
    assert [run["first_difference"]["step"] for run in result["runs"]] == [4, 4]


def test_a_run_of_a_loop_reproduces_alone_and_one_of_vmap_does_not(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    for method, doubt in (("loop", None), ("vmap", "one of 4 that were trained at once")):
        asked = ask(method, (5, 6), {"learning_rate": [0.001, 0.02]})
        sweep.train(tmp_path / method, asked, dataset)
        original = reproduce.read(tmp_path / method / asked.trials[1].name)
        assert original.config.traced_hparams == ("learning_rate",)
        assert [doubt in text for text in original.mismatches] == ([True] if doubt else [])
        if method == "loop":
            result = reproduce.reproduce(original, dataset)
            assert isinstance(result, dict)
            assert result["identical"]


def test_a_changed_file_of_a_group_is_found_and_named(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    sweep.train(tmp_path, ask(), dataset)
    assert verify(tmp_path) == []
    for name in (f"seed5/{run_dir.FINAL}", f"seed6/{run_dir.REPORT}", run_dir.SUMMARY):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before[:-20] + bytes([before[-20] ^ 1]) + before[-19:])
        (problem,) = verify(tmp_path)
        assert problem.startswith(str(tmp_path / name))
        (tmp_path / name).write_bytes(before)
    text = (tmp_path / run_dir.SWEEP).read_text()
    (tmp_path / run_dir.SWEEP).write_text(text.replace('"loop"', '"vmap"'))
    with pytest.raises(DamagedError, match="its SHA-256 is"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("members"), "is not complete"),
        (lambda v: v.update(format=9), "is of format 9, and this fcifar reads format 3"),
        (lambda v: v["members"][0].update(name="../../x"), "is not a valid name of a run"),
        (lambda v: v["members"][0].update(name=".."), "is not a valid name of a run"),
        (lambda v: v["members"][0].update(name=7), "is not complete"),
        (lambda v: v["members"][0].update(recipe=[]), "not a recipe"),
        (lambda v: v.update(runtime=3), "is not complete"),
    ],
)
def test_an_invalid_group_is_refused_in_one_line(
    tmp_path: Path, ask: Callable[..., Sweep], change: Callable[[Any], Any], message: str
) -> None:
    sweep.write(tmp_path, ask())
    values = json.loads((tmp_path / run_dir.SWEEP).read_text())
    change(values)
    io.write_json(tmp_path / run_dir.SWEEP, values)
    run_dir.write_checksums(tmp_path, [run_dir.SWEEP])
    with pytest.raises(UsageError, match=message) as caught:
        sweep.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read_back(tmp_path: Path, ask: Callable[..., Sweep]) -> None:
    asked = ask("vmap", (1, 2), {"batch_size": [3, 4]}, {"augment": ("random_flip",)})
    sweep.write(tmp_path, asked)
    assert sweep.read(tmp_path) == asked


def test_names_are_names_of_folders(recipe: Recipe) -> None:
    axes = {"augment": [(text, recipe) for text in ("random_crop:4", "random_flip")]}
    names = [trial.name for trial in make_trials(recipe, axes, [3])]
    assert names == ["cell000", "augment=random_flip"]
    assert [m.name for m in make_trials(recipe, {}, [3])] == ["seed3"]
    lr = {"lr": [(0.1, recipe)]}
    assert [m.name for m in make_trials(recipe, lr, [0, 1])] == ["lr=0.1-seed0", "lr=0.1-seed1"]
    with pytest.raises(UsageError, match="10,001 runs; a group has at most 10,000"):
        make_trials(recipe, {}, range(10_001))


def test_changes_of_one_grid_point_are_combined(recipe: Recipe) -> None:
    wide = recipe.replace(model="conv3", model_options={"dropout": 0.1})
    dropped = [(p, wide.replace(model_options={"dropout": p})) for p in (0.2, 0.3)]
    longer = [(n, wide.replace(epochs=n)) for n in (4, 5)]
    found = [m.recipe for m in make_trials(wide, {"dropout": dropped, "epochs": longer}, [0])]
    assert [(r.model_options["dropout"], r.epochs) for r in found] == [
        *((0.2, 4), (0.2, 5), (0.3, 4), (0.3, 5))
    ]


def test_another_data_set_is_refused_and_nothing_written(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    asked = ask()
    asked = asked._replace(config=asked.config.replace(dataset_digest="0" * 64))
    with pytest.raises(UsageError, match="is not the one that"):
        sweep.train(tmp_path / "group", asked, dataset)
    with pytest.raises(UsageError, match="batch_size is 100"):
        sweep.train(tmp_path / "group", ask(changes={"batch_size": 100}), dataset)
    assert not (tmp_path / "group").exists()


def test_paths_expand_to_the_runs_that_have_ended(
    tmp_path: Path, ask: Callable[..., Sweep], dataset: Dataset
) -> None:
    asked = ask()
    sweep.train(tmp_path / "group", asked, dataset, stop=after(30))
    ended = tmp_path / "group" / "seed5"
    assert sweep.expand([tmp_path / "x", tmp_path / "group"]) == [tmp_path / "x", ended]
    sweep.write(tmp_path, asked)
    with pytest.raises(UsageError, match=r"no run of .* is finished"):
        sweep.expand([tmp_path])
