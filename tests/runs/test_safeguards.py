"""A run that is hard to lose: checkpoints, locks, signals, full disks, numbers gone wrong."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fcifar.data import Dataset, save
from fcifar.errors import UsageError
from fcifar.io import locked
from fcifar.recipes import Recipe
from fcifar.train import bookkeeping, events, loop, run_dir
from fcifar.train.config import CheckpointConfig
from fcifar.train.events import Noted, Pace, update_pace
from fcifar.train.loop import NonFiniteError
from fcifar.train.runtime import Runtime
from tests.helpers.training import after, records, train


def steps_saved(run: Path) -> list[int]:
    return list(run_dir.list_checkpoints(run))


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("1", (1, float("inf"))),
        ("500", (500, float("inf"))),
        ("30s", (float("inf"), 30)),
        ("5min", (float("inf"), 300)),
        ("2h", (float("inf"), 7200)),
    ],
)
def test_every_is_steps_or_time(text: str, every: tuple[float, float]) -> None:
    assert CheckpointConfig(checkpoint_every=text).every == every


@pytest.mark.parametrize("text", ["", "0", "0s", "-3", "1.5", "5 min", "s", "1e3", "٣", 30, None])
def test_anything_else_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="a number of steps such as 500"):
        CheckpointConfig(checkpoint_every=text)


@pytest.mark.parametrize("kept", [0, -1, 1.5, True, 10**9])
def test_keeping_none_is_refused(kept: Any) -> None:
    with pytest.raises(UsageError, match="--keep-checkpoints"):
        CheckpointConfig(keep_checkpoints=kept)


def test_checkpoint_interval_and_number_kept(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    written: list[int] = []

    def watch(step: int, running: Any) -> None:
        written.extend(set(steps_saved(tmp_path / "run")) - set(written))

    keep = CheckpointConfig(checkpoint_every="5", keep_checkpoints=3)
    train(tmp_path / "run", recipe, runtime, dataset, checkpoint=keep, probe=watch)
    assert written == [5, 10, 15, 20, 25]
    assert steps_saved(tmp_path / "run") == [27, 25, 20]


def test_safeguards_change_no_bit(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    one, other = (
        train(tmp_path / every, recipe, runtime, dataset, checkpoint=CheckpointConfig(**values))
        for every, values in (
            ("1", {"checkpoint_every": "1"}),
            ("1h", {"checkpoint_every": "1h", "allow_nonfinite": True}),
        )
    )
    assert isinstance(one, dict)
    assert isinstance(other, dict)
    assert one["params_digest"] == other["params_digest"]


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    damage: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run, keep = tmp_path / "run", CheckpointConfig(checkpoint_every="6")
    train(run, recipe, runtime, dataset, checkpoint=keep, stop=after(14))
    assert steps_saved(run) == [14, 12]
    latest = run_dir.checkpoint_path(run, 14)
    content = bytearray(latest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    latest.write_bytes({"torn": content[:-1], "empty": b""}.get(damage, content))
    if damage == "gone":
        latest.unlink()
    told: list[str] = []

    def observe(event: Any) -> None:
        told.extend([event.text] if isinstance(event, Noted) else [])

    resumed = train(run, recipe, runtime, dataset, resume=True, observe=observe)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    if damage != "gone":
        assert "checkpoint of step 14 is not used" in told[0]
        assert str(latest) in told[0]
        assert (run / (latest.name + ".damaged")).exists(), "kept for whoever wants to look"
    else:
        assert not told


def test_without_a_valid_checkpoint_the_run_starts_again(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    run, told = tmp_path / "run", []
    train(run, recipe, runtime, dataset, stop=after(14))
    run_dir.checkpoint_path(run, 14).write_bytes(b"nonsense")
    resumed = train(run, recipe, runtime, dataset, resume=True, observe=told.append)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert any("starts again from step 0" in e.text for e in told if isinstance(e, Noted))


@pytest.mark.parametrize("name", ["metrics.jsonl", "digests.jsonl"])
def test_a_checkpoint_with_a_damaged_log_is_not_used(
    name: str, tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """The second line of the log is changed: only the checkpoint before it can be used."""
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    keep = CheckpointConfig(checkpoint_every="6", keep_checkpoints=9)
    run, told = tmp_path / "run", []
    train(run, recipe, runtime, dataset, checkpoint=keep, stop=after(14))
    assert steps_saved(run) == [14, 12, 6]
    lines = (run / name).read_text().split("\n")
    lines[1] = lines[1].replace("8", "9", 1)
    (run / name).write_text("\n".join(lines))
    resumed = train(run, recipe, runtime, dataset, resume=True, observe=told.append)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    notes = [event.text for event in told if isinstance(event, Noted)]
    assert len(notes) == 2
    assert all(f"{name} does not begin with the" in note for note in notes)
    assert records(run) == records(tmp_path / "whole")
    assert (run / f"{name}.damaged").read_text() == "\n".join(lines), "as it was then"


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_the_best_model_survives_a_crash_between_two_files(
    epoch: int,
    tmp_path: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended after the checkpoint of an epoch and before the network of that epoch was written."""
    recipe = recipe.replace(valid_fraction=0.25, restore_best=True)
    whole = train(tmp_path / "whole", recipe, runtime, dataset)
    assert isinstance(whole, dict)
    assert whole["selected"]["step"] == whole["steps"], "each epoch is the best so far"
    run, save_model, calls = tmp_path / "run", bookkeeping.save_model, []

    def crash(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        save_model(*arguments)

    monkeypatch.setattr(bookkeeping, "save_model", crash)
    with pytest.raises(KeyboardInterrupt):
        train(run, recipe, runtime, dataset)
    monkeypatch.undo()
    resumed = train(run, recipe, runtime, dataset, resume=True)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    best = (run / "best.safetensors").read_bytes()
    assert best == (tmp_path / "whole" / "best.safetensors").read_bytes()


def test_partial_files_of_a_killed_process_are_removed(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run = tmp_path / "run"
    train(run, recipe, runtime, dataset, stop=after(5))
    (run / ".checkpoint-00000006.99999.partial.safetensors").write_bytes(b"half")
    train(run, recipe, runtime, dataset, resume=True)
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} <= {".lock"}


# Two processes ------------------------------------------------------------------------------------


def _hold(run: Path, ready: Any, done: Any) -> None:
    with locked(run):
        ready.set()
        done.wait(30)


def test_a_second_process_is_refused_and_a_crash_of_the_first_unlocks(
    tmp_path: Path, recipe: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run, spawn = tmp_path / "run", multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(run, ready, done))
    other.start()
    assert ready.wait(30)
    with pytest.raises(UsageError, match="another process is training into"):
        train(run, recipe, runtime, dataset)
    other.kill()
    other.join()
    assert isinstance(train(run, recipe, runtime, dataset), dict)


def test_a_lock_leaves_no_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), locked(tmp_path / "runs" / "run"):
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


# Numbers gone wrong -------------------------------------------------------------------------------


@pytest.fixture
def poisoned(recipe: Recipe) -> Recipe:
    """It overflows within a few steps."""
    return recipe.replace(learning_rate=1e6, log_every=1000)


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, poisoned: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    run, seen = tmp_path / "run", {}

    def look(step: int, running: Any) -> None:
        seen[step] = int(running.nonfinite)

    keep = CheckpointConfig(checkpoint_every="1")
    with pytest.raises(
        NonFiniteError, match=r"not finite at step \d+.*--allow-nonfinite"
    ) as caught:
        train(run, poisoned, runtime, dataset, checkpoint=keep, probe=look)
    found = json.loads((run / "nonfinite.json").read_text())
    assert f"at step {found['step']}, " in str(caught.value)
    assert f"training images {', '.join(map(str, found['rows']))} (see" in str(caught.value)
    assert len(found["rows"]) == 5
    last = next(iter(run_dir.list_checkpoints(run).values()))
    assert found["checkpoint"] == last.name
    assert str(last) in str(caught.value)
    with safe_open(last, framework="pt") as file:
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118
    assert not (run / "report.json").exists()

    with pytest.raises(NonFiniteError, match=f"at step {found['step']}, "):
        train(run, poisoned, runtime, dataset, checkpoint=keep, resume=True)
    allowed = CheckpointConfig(checkpoint_every="1", allow_nonfinite=True)
    report = train(run, poisoned, runtime, dataset, checkpoint=allowed, resume=True)
    assert isinstance(report, dict)
    assert report["steps"] == 27
    assert not (run / "nonfinite.json").exists()


def test_the_first_non_finite_step_is_recorded(
    tmp_path: Path, poisoned: Recipe, runtime: Runtime, dataset: Dataset
) -> None:
    """The rows it names are the ones whose loss was not finite, and no step before it was."""
    losses, seen = {}, {}

    def look(step: int, running: Any) -> None:
        losses[step], seen[step] = float(running.totals.loss), int(running.nonfinite)

    allowed = CheckpointConfig(allow_nonfinite=True)
    poisoned = poisoned.replace(log_every=1000)
    train(tmp_path / "run", poisoned, runtime, dataset, checkpoint=allowed, probe=look)
    first = min(step for step, loss in losses.items() if not torch.tensor(loss).isfinite())
    assert {step: n for step, n in seen.items() if step != 27} == {
        step: first if step >= first else 0 for step in seen if step != 27
    }


# Real processes -----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, dataset: Dataset) -> Callable[..., subprocess.CompletedProcess]:
    """``command("train", ...)`` as a process of its own, with a tiny data set in its store."""
    save(dataset, tmp_path / "data")
    environment = {**os.environ, "FCIFAR_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}

    def run(*words: str, **options: Any) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "fcifar", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    return run


TRAIN = ("train", "--dataset", "tiny", "--threads", "1", "--device", "cpu", "--out", "run")


def test_a_disk_that_fills_up_ends_the_run_with_everything_before_kept(
    command: Callable[..., subprocess.CompletedProcess],
    tmp_path: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
) -> None:
    """The kernel refuses to let any file grow past a limit, in the middle of a write."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))

    words = (*TRAIN, "--epochs", "3", "--batch-size", "5", "--log-every", "4")
    failed = command(*words, "--checkpoint-every", "8", preexec_fn=limit)
    assert failed.returncode == 1, failed.stderr
    last = failed.stderr.strip().split("\n")[-1]
    assert last.startswith("error: cannot write run/")
    assert "free some space" in last
    assert "Traceback" not in failed.stderr
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {".lock", "SHA256SUMS", "manifest.json", "metrics.jsonl", "digests.jsonl"}, (
        "nothing half-written"
    )
    resumed = train(tmp_path / "run", recipe, runtime, dataset, seed=0, resume=True)
    whole = train(tmp_path / "whole", recipe, runtime, dataset, seed=0)
    assert isinstance(resumed, dict)
    assert isinstance(whole, dict)
    assert resumed["params_digest"] == whole["params_digest"]


def test_a_slowdown_is_reported_once_with_the_figures() -> None:
    """Windows of three seconds of training; the fastest is the measure."""
    pace, reports = Pace(step=10, seconds=5.0), []
    # Steps and seconds at which the loop looks: 1, 1, 1.5, 4, 8 and 1 seconds a step.
    for step, seconds in ((11, 6.0), (13, 8.0), (16, 11.0), (18, 14.0), (19, 18.0), (20, 26.0)):
        pace, times = update_pace(pace, step, seconds)
        reports.append(times)
    assert reports == [0, 0, 0, 0, 4.0, 0]
    assert (pace.best, pace.last) == (1.0, 8.0)
    assert update_pace(pace, 20, 99.0) == (pace, 0.0), "no step was made"


def test_a_run_says_when_its_steps_become_slow(
    tmp_path: Path, recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TICK", 0.0)
    monkeypatch.setattr(events, "WINDOW", 0.0)
    monkeypatch.setattr(events, "SLOWDOWN", 1e-9)
    notes: list[str] = []

    def observe(event: Any) -> None:
        if isinstance(event, Noted):
            notes.append(event.text)

    train(tmp_path / "run", recipe, Runtime(threads=2), dataset, observe=observe)
    (note,) = notes
    assert note.startswith("a step now takes ")
    assert note.endswith("; a new run with --threads 1 would slow down less than one with 2")
