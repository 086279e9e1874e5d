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

from fcifar import recipes, tensor_files, tree
from fcifar.augment import tta
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.models.speednet import whitening
from fcifar.recipes import Recipe
from fcifar.runs import inference, reproduce
from fcifar.runs.verify import verify
from fcifar.step import Batch, make_eval_step
from fcifar.train import loop, metrics_log, run_dir
from fcifar.train import runtime as runtime_module
from fcifar.train.config import RunConfig, make_config, read_config
from fcifar.train.evaluate import read_predictions
from fcifar.train.runtime import Runtime, activate, make_runtime
from fcifar.train.setup import make_training, stage_at
from tests.helpers import training
from tests.helpers.small import make_recipe
from tests.helpers.training import SEED, after, records


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
    report = training.train(run, *arguments, **options)
    assert isinstance(report, dict)
    return report


def test_a_report_has_the_views_and_the_timings(
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
    evaluated = [r for r in records(tmp_path / "run") if r["split"] != "train"]
    assert [r["split"] for r in evaluated] == ["test", "test-translate"]
    assert evaluated[0]["accuracy"] == report["test_accuracy"]
    assert evaluated[1]["accuracy"] == report["tta_accuracy"]


def test_without_views_a_report_has_no_tta_entries(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe, runtime, dataset)
    assert not [name for name in report if "tta" in name]
    assert report["convention_seconds"] < report["process_seconds"]
    assert [r["split"] for r in records(tmp_path / "run") if r["split"] != "train"] == ["test"]


@pytest.mark.parametrize("steps", [3, 9, 10])
def test_interrupted_on_either_side_of_a_stage_it_is_the_same_run(
    steps: int, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipe.replace(tta="mirror")
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    stopped = training.train(run, recipe, runtime, dataset, stop=after(steps))
    assert stopped == loop.Interrupted(15, steps)
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert records(run) == records(tmp_path / "whole")
    for name in ("params_digest", "test_loss", "test_accuracy", "tta_loss", "tta_accuracy"):
        assert resumed[name] == whole[name]


def test_the_config_of_a_run_is_the_one_that_it_began_with(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    loop.train(run, config, dataset, stop=after(3))
    assert read_config(run) == config
    assert isinstance(loop.train(run, read_config(run), dataset, resume=True), dict)
    assert read_config(run) == config


def test_a_run_with_lookahead_ends_with_its_slow_weights(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """Which are measured, saved, and measured again from the file; resumed, it is the same."""
    plain = train(tmp_path / "plain", recipe, runtime, dataset)
    recipe = recipe.replace(lookahead_every=4, lookahead_decay=0.95)
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
    assert "average" not in report
    network = inference.load(tmp_path / "run")
    assert tree.equal(network.variables, seen[-1].average.average), "buffers too"
    found, _ = inference.evaluate(network, runtime, dataset, "test")
    assert (found["accuracy"], found["loss"]) == (report["test_accuracy"], report["test_loss"])

    run = tmp_path / "again"
    training.train(run, recipe, runtime, dataset, stop=after(10))  # after a step of the lookahead
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert resumed["params_digest"] == report["params_digest"]
    assert records(run) == records(tmp_path / "run")


@pytest.mark.parametrize("name", tta.VIEWS)
def test_evaluating_a_run_by_views_gives_its_report(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    report = train(tmp_path / "run", recipe.replace(tta=name, epochs=1), runtime, dataset)
    network = inference.load(tmp_path / "run" / run_dir.FINAL)
    found = inference.evaluate_views(network, runtime, dataset, "test", name)
    expected = {key: value for key, value in report.items() if key.startswith("tta")}
    assert found == expected
    assert bool(found) == (name != "none")
    plain = inference.evaluate(network, runtime, dataset, "test")[0]
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
    network = inference.load(tmp_path / "run")
    with pytest.raises(UsageError, match="--tta is 'flip'; it must be none or mirror or translate"):
        inference.evaluate_views(network, runtime, dataset, "test", "flip")


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
    assert found["log_points"] == len(metrics_log.read(run))


def test_bfloat16_repeats_and_ends_with_float32(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    half = dataclasses.replace(runtime, precision="bf16")
    a, b = (train(tmp_path / name, recipe, half, dataset) for name in "ab")
    assert a["params_digest"] == b["params_digest"]
    assert a["params_digest"] != train(tmp_path / "c", recipe, runtime, dataset)["params_digest"]
    variables = inference.load(tmp_path / "a").variables
    assert all(value.dtype == torch.float32 for value in tree.leaves(variables))


def test_a_training_has_its_stages_and_adapts_to_training_images(
    recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    with activate(runtime):
        recipe = recipe.replace(valid_fraction=0.5, batch_size=3)
        made = make_training(make_config(recipe, dataset, seed=SEED, runtime=runtime), dataset)
        state = made.init().state
    assert list(made.stages) == [0, made.total_steps // 2]
    first, second = made.stages.values()
    half = made.total_steps // 2
    for step, expected in ((0, first), (half - 1, first), (half, second), (half + 5, second)):
        assert stage_at(made.stages, step) is expected
    last_epoch = made.inputs(made.total_steps - made.steps_per_epoch)
    rows = torch.cat([inputs.indices for inputs in last_epoch])
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
def test_the_recipes_precision_is_the_default(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "_has_bf16", lambda: has_bf16)
    expected = "bf16" if has_bf16 else "fp32"
    assert make_runtime(device="cpu", preferred="bf16").precision == expected
    assert make_runtime(device="cpu", preferred="fp32").precision == "fp32"
    assert make_runtime(device="cpu").precision == "fp32"
    for asked in ("fp32", "bf16"):
        for preferred in ("fp32", "bf16"):
            made = make_runtime(device="cpu", precision=asked, preferred=preferred)
            assert made.precision == asked


# The log ------------------------------------------------------------------------------------------


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """As any program reads it."""
    return [json.loads(line) for line in (run / name).read_text().split("\n")[:-1]]


def test_each_line_of_the_log_has_the_figures_that_are_documented(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """And the same line of the other file has the digests of the same."""
    run = tmp_path / "run"
    report = train(run, recipe.replace(valid_fraction=0.3, tta="mirror"), runtime, dataset)
    first, last = ["step", "epoch", "split", "loss", "accuracy", "count"], ["seconds"]
    evaluated = [*first, "images_per_second", *last]
    wanted = {
        "train": [*first, "learning_rate", "images_per_second", *last],
        **dict.fromkeys(("valid", "test", "test-mirror"), evaluated),
    }
    metrics, digests = (lines(run, name) for name in ("metrics.jsonl", "digests.jsonl"))
    assert {record["split"] for record in metrics} == set(wanted)
    state = {name.removeprefix("state.") for name in tensor_files.read(latest(run))[0]}
    for record, digest in zip(metrics, digests, strict=True):
        split = record["split"]
        assert list(record) == wanted[split]
        assert isinstance(record["step"], int)
        assert record["epoch"] == record["step"] / (report["steps"] / 3)
        assert record["images_per_second"] > 0
        assert (digest["step"], digest["split"]) == (record["step"], split)
        more = ["tensors"] if split == "train" else []
        assert list(digest) == ["step", "split", "digest", *more]
        assert set(digest.get("tensors", {})) <= state
        assert ("variables.params.head.weight" in digest.get("tensors", {})) == bool(more)
    examples, _ = read_predictions(run / "predictions.safetensors")
    (of_test,) = [digest for digest in digests if digest["split"] == "test"]
    assert of_test["digest"] == tree.digest(examples)[:16]


def latest(run: Path) -> Path:
    return next(iter(run_dir.list_checkpoints(run).values()))


def test_the_log_is_a_table_with_the_learning_rate_of_each_step(
    tmp_path: Path, runtime: Runtime, dataset: Dataset
) -> None:
    linear = {"schedule": "linear", "learning_rate": 0.01, "log_every": 1}
    recipe = recipes.get("blitz").replace(batch_size=7, epochs=3, **linear)
    train(tmp_path / "run", recipe, runtime, dataset)
    rows = [r for r in lines(tmp_path / "run", "metrics.jsonl") if r["split"] == "train"]
    column = {name: [row[name] for row in rows] for name in rows[0]}
    assert column["step"] == list(range(1, 19))
    rates = [0.01 * (1 - done / 18) for done in range(18)]
    assert column["learning_rate"] == pytest.approx(rates, rel=1e-5)
    assert column["count"] == [7] * 18
    assert column["seconds"] == sorted(column["seconds"])
    assert all(isinstance(value, float) for value in column["loss"])


def test_a_constant_learning_rate_is_in_the_log(
    tmp_path: Path, runtime: Runtime, dataset: Dataset
) -> None:
    recipe = recipes.get("blitz").replace(batch_size=7, epochs=1, log_every=0)
    train(tmp_path / "run", recipe, runtime, dataset)
    (row,) = [r for r in lines(tmp_path / "run", "metrics.jsonl") if r["split"] == "train"]
    assert row["learning_rate"] == recipe.learning_rate


@pytest.mark.parametrize(
    "ending", ['{"step": 12, "spl', '{"step": 12, "split": "train"}\n', "\x00"]
)
@pytest.mark.parametrize("names", [["metrics"], ["digests"], ["metrics", "digests"]], ids="+".join)
def test_log_lines_after_the_checkpoint_are_removed(
    names: list[str],
    ending: str,
    tmp_path: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
) -> None:
    """A last line that is torn is ignored until then."""
    train(tmp_path / "whole", recipe, runtime, dataset)
    run = tmp_path / "run"
    training.train(run, recipe, runtime, dataset, stop=after(10))
    before = metrics_log.read_digests(run)
    assert [record["step"] for record in before] == [4, 8]
    for name in names:
        with (run / f"{name}.jsonl").open("a") as file:
            file.write(ending)
    if not ending.endswith("\n"):
        assert metrics_log.read_digests(run) == before
        assert verify(run) == []
    train(run, recipe, runtime, dataset, resume=True)
    assert records(run) == records(tmp_path / "whole")
    assert verify(run) == []
    for name in ("metrics.jsonl", "digests.jsonl"):
        assert len(lines(run, name)) == len(lines(tmp_path / "whole", name))


# The clock of the process -------------------------------------------------------------------------


WAITED = "sleep 1; exec {python} -c {code}"
CLOCKS = """
import time
until = time.process_time() + 0.2
while time.process_time() < until: pass
import os, pathlib, fcifar
from fcifar.train import environment
fields = pathlib.Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
print(time.clock_gettime(time.CLOCK_BOOTTIME) - started, environment.since_process_start())
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_process_seconds_exclude_the_shell() -> None:
    """Which waited a second; what was computed before fcifar was imported counts."""
    command = WAITED.format(python=shlex.quote(sys.executable), code=shlex.quote(CLOCKS))
    done = subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True)
    age, since = map(float, done.stdout.split())
    assert 0.2 <= since <= age - 0.9
