"""A run made again: identical, or where, what and by how much it differs."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import io, tree
from fcifar.data import Dataset, Split, make_dataset, save
from fcifar.errors import ExternalError, UsageError
from fcifar.recipes import Recipe
from fcifar.runs import reproduce
from fcifar.runs.reproduce import compare_environments, compare_records
from fcifar.train import environment, loop, metrics_log, run_dir
from fcifar.train.config import CheckpointConfig, RunConfig
from fcifar.train.events import Noted
from fcifar.train.runtime import Runtime
from tests.helpers.small import chosen_recipes, make_recipe
from tests.helpers.training import train

KEEP = CheckpointConfig(checkpoint_every="10", keep_checkpoints=9)


def again(run: Path, dataset: Dataset, **options: Any) -> dict[str, Any]:
    result = reproduce.reproduce(reproduce.read(run), dataset, **options)
    assert isinstance(result, dict)
    json.dumps(result, allow_nan=False)
    return result


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", chosen_recipes())
def test_every_recipe_is_identical(
    name: str, compiled: bool, tmp_path: Path, runtime: Runtime, dataset: Dataset
) -> None:
    """In this process; for a new process, and compiled, see the next test."""
    recipe = make_recipe(name).replace(batch_size=7, epochs=2, log_every=3)
    train(tmp_path, recipe, runtime, dataset, compile=compiled, checkpoint=KEEP)
    found = again(tmp_path, dataset)
    assert found["identical"]
    assert found["whole"]
    assert found["expected"]
    assert found["first_difference"] is None
    assert found["log_points"] == len(metrics_log.read(tmp_path))
    assert [c["differing"] for c in found["checkpoints"]] == [[] for _ in found["checkpoints"]]
    assert found["checkpoints"]
    assert found["digest"] == run_dir.read_report(tmp_path)["params_digest"]


def test_a_run_with_validation_is_identical(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(valid_fraction=0.2, restore_best=True, patience=1, epochs=5)
    train(tmp_path / "run", recipe, runtime, dataset)
    found = again(tmp_path / "run", dataset)
    assert found["identical"]
    assert found["final"]["identical"]


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_a_new_process(compile: bool, tmp_path: Path, recipe: Recipe, dataset: Dataset) -> None:
    save(dataset, tmp_path / "data")
    train(tmp_path / "run", recipe, Runtime(threads=1), dataset, compile=compile)
    words = ["reproduce", "run", "--json", "--data-dir", "data"]
    done = subprocess.run(
        [sys.executable, "-m", "fcifar", *words],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"]
    assert found["digest"] == run_dir.read_report(tmp_path / "run")["params_digest"]
    assert "identity can be expected" in done.stderr


def test_what_an_interrupted_run_has_is_compared(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    asked = iter([None] * 14)
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=lambda: next(asked, 2))
    found = again(run, dataset)
    assert found["identical"]
    assert not found["whole"]
    assert found["steps"] == 14, "the checkpoint of the signal"
    assert found["log_points"] == 3
    assert [entry["step"] for entry in found["checkpoints"]] == [14]


@pytest.mark.parametrize(("until", "points", "checkpoints"), [(4, 1, 0), (11, 2, 1), (99, 7, 3)])
def test_until_a_step(
    until: int,
    points: int,
    checkpoints: int,
    tmp_path: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
) -> None:
    run, kept = tmp_path / "run", tmp_path / "kept"
    train(run, recipe, runtime, dataset, checkpoint=KEEP)
    found = again(run, dataset, until=until, out=kept)
    assert found["identical"]
    assert not found["whole"]
    assert (found["log_points"], len(found["checkpoints"])) == (points, checkpoints)
    assert (kept / "manifest.json").exists()
    assert found["out"] == str(kept)


def test_until_before_the_first_log_point_is_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset)
    with pytest.raises(UsageError, match=r"up to step 3 to compare with; the first is at step 4"):
        again(tmp_path, dataset, until=3)


def test_a_difference_is_found_where_it_begins(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    """The new run has one bit of one weight flipped after step 9."""
    run, original, told = tmp_path / "run", loop.train, []
    train(run, recipe, runtime, dataset, checkpoint=KEEP)

    def damaged(*arguments: Any, probe: Callable[[int, Any], None], **options: Any) -> Any:
        def flip(step: int, running: Any) -> None:
            if step == 9:
                weight = running.state.variables.params["conv2.weight"]
                weight.view(-1)[7:8].view(torch.int32).bitwise_xor_(1)
            probe(step, running)

        return original(*arguments, probe=flip, **options)

    monkeypatch.setattr(loop, "train", damaged)
    found = again(run, dataset, observe=told.append)
    assert not found["identical"]
    assert found["expected"], "nothing in the environment explains it"
    first = found["first_difference"]
    assert first["step"] == 10
    assert first["kind"] == "checkpoint"
    at_ten = found["checkpoints"][0]
    assert at_ten["step"] == 10
    weight = next(t for t in at_ten["differing"] if t["tensor"].endswith("params.conv2.weight"))
    assert 0 < weight["largest_difference"] < 1e-6
    assert weight["elements"] == 16 * 6 * 25
    assert found["log_points_differing"] == 5 + 1, "of steps 12 to 27, and the test"
    notes = [event.text for event in told if isinstance(event, Noted)]
    assert len(notes) == 1
    assert notes[0].startswith("first difference at step 10 (checkpoint): tensor variables")
    assert not found["final"]["identical"]
    assert found["final"]["differing"]


def test_a_difference_at_a_log_point_names_the_tensor(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset, monkeypatch
) -> None:
    run, original = tmp_path / "run", loop.train
    train(run, recipe, runtime, dataset)

    def other(path: Path, config: RunConfig, *arguments: Any, **options: Any) -> Any:
        config = config.replace(recipe=recipe.replace(learning_rate=0.0011))
        return original(path, config, *arguments, **options)

    monkeypatch.setattr(loop, "train", other)
    first = again(run, dataset)["first_difference"]
    assert first["step"] == 4
    assert first["kind"] == "training"
    assert first["tensors"][0] == "variables.params.conv1.bias"
    assert "key" not in first["tensors"]
    figures = {what["name"]: what for what in first["what"]}
    assert 0 < figures["loss"]["difference"] < 0.1
    assert figures["loss"]["then"] != figures["loss"]["now"]


@pytest.mark.parametrize("name", ["final.safetensors", "checkpoint-00000010.safetensors"])
def test_a_damaged_file_is_named_and_the_rest_compared(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset, checkpoint=KEEP)
    content = bytearray((tmp_path / name).read_bytes())
    content[-5] ^= 4
    (tmp_path / name).write_bytes(content)
    found = again(tmp_path, dataset)
    assert not found["identical"]
    assert found["first_difference"] is None
    assert name in found["damaged"][0]
    assert found["final"]["identical"], "the report knows the digest"


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl"])
def test_a_damaged_manifest_or_log_is_refused(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset)
    content = (tmp_path / name).read_text()
    (tmp_path / name).write_text(content.replace('"count": 20', '"count": 21').replace("5", "6", 1))
    with pytest.raises(ExternalError, match=name):
        reproduce.read(tmp_path)


def test_other_data_are_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset)
    images = dataset.test_images.clone()
    images[3, 1, 4, 1] ^= 1
    other = make_dataset(
        "tiny",
        Split(dataset.train_images, dataset.train_labels),
        Split(images, dataset.test_labels),
        dataset.classes,
        "",
    )
    with pytest.raises(UsageError, match="is not the one that"):
        again(tmp_path, other)


# The environment ----------------------------------------------------------------------------------


def test_the_environment_has_what_bits_depend_on() -> None:
    about = environment.describe()
    assert set(about) >= {
        *("versions", "code", "git_commit", "cpu", "cpu_capability", "cores", "threads"),
        *("interop_threads", "libc", "torch_build", "switches", "cuda", "cudnn", "devices"),
        *("compiler", "kernels", "variables", "platform"),
    }
    assert json.loads(json.dumps(about)) == about
    assert len(about["code"]) == 12


def test_changes_that_matter_are_marked(runtime: Runtime) -> None:
    now = environment.describe()
    then = json.loads(json.dumps(now))
    assert compare_environments(then, now, runtime, compiled=True) == []
    then["versions"]["torch"], then["versions"]["rich"] = "2.0.1", "1.0"
    then["cpu"], then["cores"], then["compiler"] = "an abacus", 77, "cc 1"
    then["variables"] = {"MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "9"}
    changes = {c.name: c for c in compare_environments(then, now, runtime, compiled=True)}
    matter = {name for name, change in changes.items() if change.matters}
    assert matter - {n for n in matter if n.startswith("$")} == {"torch", "cpu", "compiler"}
    assert "$MKL_CBWR" in matter
    assert {"cores", "rich", "$OMP_NUM_THREADS"} <= set(changes) - matter
    assert changes["cpu"].then == "an abacus"
    eager = {c.name: c for c in compare_environments(then, now, runtime, compiled=False)}
    assert not eager["compiler"].matters


def test_a_run_from_another_environment_is_not_expected_to_be_identical(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset)
    assert reproduce.read(tmp_path).mismatches == []
    about = run_dir.read_manifest(tmp_path)
    about["environment"]["versions"]["torch"] = "2.11.0"
    io.write_json(tmp_path / "manifest.json", about)
    (tmp_path / "SHA256SUMS").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    assert reproduce.read(tmp_path).mismatches == [f"torch was 2.11.0 and is {torch.__version__}"]


def test_a_fast_run_is_not_expected_to_be_identical(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, dataclasses.replace(runtime, deterministic=False), dataset)
    assert "--fast" in reproduce.read(tmp_path).mismatches[0]


# The parts ----------------------------------------------------------------------------------------


def test_records_compare_to_the_bit_and_ignore_the_clock() -> None:
    a = {
        "split": "train",
        "step": 3,
        "loss": 0.1,
        "seconds": 1.0,
        "tensors": {"w": "00", "b": "11"},
    }
    assert compare_records(a, {**a, "seconds": 2.0, "images_per_second": 3.0}) is None
    found = compare_records(a, {**a, "loss": 0.1 + 2**-55, "tensors": {"w": "00", "b": "12"}})
    assert found is not None
    assert found["tensors"] == ["b"]
    assert found["what"][0]["name"] == "loss"
    assert compare_records(a, None)["what"][0]["name"] == "log point missing from the new run"
    assert compare_records({**a, "loss": None}, {**a, "loss": None}) is None


def test_trees_compare_to_the_bit() -> None:
    a = {"w": torch.tensor([1.0, 0.0, float("nan")]), "n": torch.tensor([2, 3])}
    assert tree.differences(a, tree.map(torch.clone, a)) == []
    b = {"w": torch.tensor([1.0, -0.0, float("nan")]), "n": torch.tensor([2, 5])}
    n, w = tree.differences(a, b)
    assert (n["tensor"], n["largest_difference"], n["elements_differing"]) == ("n", 2.0, 1)
    assert w["tensor"] == "w"


def test_a_reproduction_does_not_change_the_run(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path, recipe, runtime, dataset)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again(tmp_path, dataset)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert list(run_dir.list_checkpoints(tmp_path)) == [27]
