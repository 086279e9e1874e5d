"""Runs by the recipes of the speed records, small: stages of growing images, averages, views."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import recipes, tree, tta
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.models.speednet import whitening
from fcifar.recipes import Recipe
from fcifar.runs import directory, loop, manifest, process, reproduce, trained
from fcifar.runs import runtime as runtimes
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime, activate, make_runtime
from fcifar.step import Batch, make_eval_step
from tests.runs.test_loop import after, records
from tests.small import make_recipe


@pytest.fixture
def recipe() -> Recipe:
    """Six steps an epoch, eighteen in all; images of 24 pixels before the tenth. No views."""
    return make_recipe("speed94").replace(
        resolutions=("24:0.5", "32"),
        batch_size=7,
        epochs=3,
        whiten_epochs=1.0,
        log_every=4,
        tta="none",
    )


def train(run: Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    report = loop.train(run, *arguments, **options)
    assert isinstance(report, dict)
    return report


def test_a_report_has_the_views_and_the_clocks(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe.replace(tta="translate"), runtime, dataset)
    assert report["steps"] == 18
    assert report["tta"] == "translate"
    assert 0 <= report["tta_accuracy"] <= 1
    low, high = report["tta_interval95"]
    assert low <= report["tta_accuracy"] <= high
    assert report["tta_loss"] != report["test_loss"]
    assert 0 < report["train_seconds"] < report["convention_seconds"] < report["process_seconds"]
    evaluated = [r for r in records(tmp_path / "run") if r["kind"] == "eval"]
    assert [r["split"] for r in evaluated] == ["test", "test-translate"]
    assert evaluated[0]["accuracy"] == report["test_accuracy"]
    assert evaluated[1]["accuracy"] == report["tta_accuracy"]


def test_without_views_a_report_says_nothing_of_them(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe, runtime, dataset)
    assert not [name for name in report if "tta" in name]
    assert report["convention_seconds"] < report["process_seconds"]
    assert [r["split"] for r in records(tmp_path / "run") if r["kind"] == "eval"] == ["test"]


@pytest.mark.parametrize("steps", [3, 9, 10])
def test_interrupted_on_either_side_of_a_stage_it_is_the_same_run(
    steps: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(tta="mirror")
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    stopped = loop.train(run, recipe, runtime, dataset, stop=after(steps))
    assert stopped == loop.Interrupted(2, steps)
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert records(run) == records(tmp_path / "whole")
    for name in ("params_digest", "test_loss", "test_accuracy", "tta_loss", "tta_accuracy"):
        assert resumed[name] == whole[name]


def test_settings_read_from_a_run_are_those_that_it_began_with(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    loop.train(run, recipe, runtime, dataset, stop=after(3))
    settings = manifest.read_settings(run)
    assert settings[:2] == (recipe, runtime)
    train(run, settings.recipe, settings.runtime, dataset, resume=True)


AVERAGES = {
    "lookahead": {"lookahead_every": 4, "lookahead_decay": 0.95},
    "ema": {"ema_decay": 0.8},
}


@pytest.mark.parametrize("average", AVERAGES)
def test_a_run_ends_with_its_average(
    average: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Which is measured, saved, and measured again from the file; resumed, it is the same."""
    plain = train(tmp_path / "plain", recipe, runtime, dataset)
    recipe = recipe.replace(**AVERAGES[average])
    seen: list[Any] = []
    report = train(
        tmp_path / "run",
        recipe,
        runtime,
        dataset,
        probe=lambda step, running: seen.append(tree.map(torch.clone, running.state)),
    )
    assert report["params_digest"] == tree.digest(seen[-1].average.average.params)
    assert report["params_digest"] != tree.digest(seen[-1].variables.params)
    assert report["params_digest"] != plain["params_digest"]
    network = trained.load(tmp_path / "run")
    assert tree.equal(network.variables, seen[-1].average.average), "buffers too"
    found, _ = trained.evaluate(network, runtime, dataset, "test")
    assert (found["accuracy"], found["loss"]) == (report["test_accuracy"], report["test_loss"])

    run = tmp_path / "again"
    loop.train(run, recipe, runtime, dataset, stop=after(10))  # after a step of the lookahead
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert resumed["params_digest"] == report["params_digest"]
    assert records(run) == records(tmp_path / "run")


def test_an_average_is_what_is_validated_and_chosen(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(ema_decay=0.5, valid_fraction=0.2, restore_best=True, batch_size=5)
    seen: dict[int, Any] = {}

    def look(step: int, running: Any) -> None:
        seen[step] = tree.map(torch.clone, running.state.average.average)

    report = train(tmp_path / "run", recipe, runtime, dataset, probe=look)
    chosen = seen[report["selected"]["step"]]
    assert report["params_digest"] == tree.digest(chosen.params)
    network = trained.load(tmp_path / "run")
    assert tree.equal(network.variables, chosen)
    found, _ = trained.evaluate(network, runtime, dataset, "valid")
    assert found["loss"] == pytest.approx(report["selected"]["valid_loss"], rel=1e-6)


@pytest.mark.parametrize("name", tta.VIEWS)
def test_evaluating_a_run_by_views_gives_its_report(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe.replace(tta=name, epochs=1), runtime, dataset)
    network = trained.load(tmp_path / "run" / directory.FINAL)
    found = trained.evaluate_views(network, runtime, dataset, "test", name)
    expected = {key: value for key, value in report.items() if key.startswith("tta")}
    assert found == expected
    assert bool(found) == (name != "none")
    plain = trained.evaluate(network, runtime, dataset, "test")[0]
    assert plain["loss"] == report["test_loss"]

    step = make_eval_step(
        network.model, preprocess=recipes.make_preprocess(recipe), views=tta.VIEWS[name]
    )
    examples = step(network.variables, Batch(dataset.test_images, dataset.test_labels))
    assert float(examples.correct.double().mean()) == pytest.approx(
        found.get("tta_accuracy", report["test_accuracy"])
    )


def test_views_that_are_not_known_are_refused(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    train(tmp_path / "run", recipe.replace(epochs=1), runtime, dataset)
    network = trained.load(tmp_path / "run")
    with pytest.raises(UserError, match="--tta is 'flip'; it must be none or mirror or translate"):
        trained.evaluate_views(network, runtime, dataset, "test", "flip")


@pytest.mark.parametrize("changes", [{}, {"lookahead_every": 4}])
def test_it_is_reproduced_to_the_bit(
    changes: dict, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe.replace(**changes, tta="mirror"), runtime, dataset)
    found = reproduce.reproduce(reproduce.read(run), dataset)
    assert isinstance(found, dict)
    json.dumps(found, allow_nan=False)
    assert found["identical"]
    assert found["whole"]
    assert found["log_points"] == len(directory.read_records(run))


def test_bfloat16_repeats_and_ends_with_float32(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    half = dataclasses.replace(runtime, precision="bf16")
    a, b = (train(tmp_path / name, recipe, half, dataset) for name in "ab")
    assert a["params_digest"] == b["params_digest"]
    assert a["params_digest"] != train(tmp_path / "c", recipe, runtime, dataset)["params_digest"]
    variables = trained.load(tmp_path / "a").variables
    assert all(value.dtype == torch.float32 for value in tree.leaves(variables))


def test_a_program_has_its_stages_and_adapts_to_training_images(
    recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    with activate(runtime):
        program = build(
            recipe.replace(valid_fraction=0.5, batch_size=3), runtime, dataset, compiled=False
        )
        state = program.init().state
    assert list(program.stages) == [0, program.total_steps // 2]
    first, second = program.stages.values()
    half = program.total_steps // 2
    for step, expected in ((0, first), (half - 1, first), (half, second), (half + 5, second)):
        assert program.step_at(step) is expected
    rows = torch.cat(list(program.rows_from(program.total_steps - program.steps_per_epoch)))
    images = recipes.make_preprocess(recipe)(dataset.train_images[rows])
    found = state.variables.buffers["whiten.weight"]
    torch.testing.assert_close(found, whitening(images).float(), rtol=1e-3, atol=1e-4)


def test_images_alternate_by_the_epoch(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Of mirror-symmetric images, alternating mirrors nothing; of others, it does."""
    recipe = recipe.replace(epochs=1, whiten_epochs=0.5)
    plain = recipe.replace(alternating_flip=False)
    a, b = (
        train(tmp_path / r.tta / str(i), r, runtime, dataset) for i, r in enumerate((recipe, plain))
    )
    assert a["params_digest"] != b["params_digest"]
    both = dataset.train_images.maximum(dataset.train_images.flip(-1))
    symmetric = dataset._replace(train_images=both)
    a, b = (
        train(tmp_path / "s" / str(i), r, runtime, symmetric) for i, r in enumerate((recipe, plain))
    )
    assert a["params_digest"] == b["params_digest"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_recipes_precision_is_used_where_nobody_says_otherwise(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "_has_bf16", lambda: has_bf16)
    expected = "bf16" if has_bf16 else "fp32"
    assert make_runtime(device="cpu", preferred="bf16").precision == expected
    assert make_runtime(device="cpu", preferred="fp32").precision == "fp32"
    assert make_runtime(device="cpu").precision == "fp32"
    for asked in ("fp32", "bf16"):
        for preferred in ("fp32", "bf16"):
            made = make_runtime(device="cpu", precision=asked, preferred=preferred)
            assert made.precision == asked


WAITED = "sleep 1; exec {python} -c {code}"
CLOCKS = """
import time
until = time.process_time() + 0.2
while time.process_time() < until: pass
import fcifar
from fcifar.runs import process
age = process._age()
print(age, process.since_process_start())
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_clock_of_the_process_is_not_that_of_the_shell_before_it() -> None:
    """Which waited a second; what was computed before fcifar was imported counts."""
    command = WAITED.format(python=shlex.quote(sys.executable), code=shlex.quote(CLOCKS))
    done = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    age, since = map(float, done.stdout.split())
    assert 0.2 <= since <= age - 0.9


def test_the_clock_of_the_process_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    known = process.since_process_start()
    assert known <= process._age()
    monkeypatch.setattr(process, "Path", lambda name: Path("/nowhere"))
    assert process._age() == float("inf")
    assert process.since_process_start() >= known
