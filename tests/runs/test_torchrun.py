"""Two processes of torchrun: what one makes alone, also when one of them is killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import data, tensor_files
from fcifar.runs.verify import verify
from fcifar.train import distributed, metrics_log, run_dir
from tests.helpers import torchrun
from tests.helpers.commands import Outcome
from tests.helpers.pages import ROOT, blocks

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="finds and kills processes as Linux tells them"
)

SMALL = ("--batch-size", "4", "--log-every", "5", "--threads", "1", "--device", "cpu")
TRAIN = ("train", "blitz", "--dataset", "tiny", "--quiet", "--json", *SMALL)
AUGMENTED = ("--augment", "random_flip,random_crop:4", "--valid-fraction", "0.25", "--drop-last")
RUN = (*TRAIN, *AUGMENTED, "--epochs", "12", "--checkpoint-every", "20")
FOR_EVER = (*TRAIN, "--epochs", "100000", "--no-compile")
NORMED = (
    *("train", "speed90", "--dataset", "tiny", "--quiet", "--json", "--no-compile", "--drop-last"),
    *("--set", "widths=4,8,8", "--precision", "fp32", "--epochs", "1", *SMALL),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(autouse=True)
def _tiny(dataset: data.Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """42 images: ten batches of four, and a last one of two."""
    if not (folder / "tiny.safetensors").exists():
        data.save(dataset, folder)
    monkeypatch.setenv("FCIFAR_DATA", str(folder))


@pytest.fixture
def undisturbed(folder: Path) -> Path:
    """A run of two processes."""
    run = folder / "undisturbed"
    if not run.exists():
        report(torchrun.run([*RUN, "--out", str(run)]))
    return run


def report(outcome: Outcome) -> dict[str, Any]:
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def records(run: Path) -> list[dict[str, Any]]:
    return metrics_log.read_digests(run)


def assert_close(run: Path, other: Path) -> None:
    """Losses and parameters to rounding, counts exactly."""
    assert len(records(run)) == len(records(other)) > 3
    for found, wanted in zip(records(run), records(other), strict=True):
        assert found["count"] == wanted["count"]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    (found, _), (wanted, _) = (tensor_files.read(r / run_dir.FINAL) for r in (run, other))
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-4, msg=name)


def test_two_processes_make_the_run_of_one(undisturbed: Path, tmp_path: Path) -> None:
    report(torchrun.alone([*RUN, "--out", str(tmp_path / "single")]))
    assert_close(undisturbed, tmp_path / "single")
    assert not verify(undisturbed)
    manifest = run_dir.read_manifest(undisturbed)
    assert manifest["runtime"]["processes"] == 2
    assert "gloo" in manifest["environment"]["distributed"]


@pytest.mark.slow
def test_torchrun_restarts_from_the_last_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = torchrun.start([*RUN, "--out", str(run)], options=("--max-restarts", "2"))
    torchrun.wait_for_steps(run, 5)
    (process,) = torchrun.find(launcher, 1)
    os.kill(process, signal.SIGKILL)
    found = report(torchrun.end(launcher))
    assert found["params_digest"] == run_dir.read_report(undisturbed)["params_digest"]
    without = {"seconds", "images_per_second"}
    whole, anew = (
        [{k: v for k, v in record.items() if k not in without} for record in records(path)]
        for path in (undisturbed, run)
    )
    assert whole == anew


@pytest.mark.slow
def test_given_validation_images_are_divided_as_others_are(
    dataset: data.Dataset, folder: Path, tmp_path: Path, make_batch
) -> None:
    parts = data.Split(*dataset[1:3]), data.Split(*dataset[3:5])
    valid = data.Split(*make_batch(13, seed=3))
    data.save(data.make_dataset("given", *parts, dataset.classes, "drawn", valid), folder)
    words = [*RUN[: RUN.index("--valid-fraction")], "--drop-last", "--epochs", "3"]
    words[words.index("tiny")] = "given"
    single, double = (tmp_path / name for name in ("single", "double"))
    report(torchrun.alone([*words, "--set", "valid=given", "--out", str(single)]))
    report(torchrun.run([*words, "--set", "valid=given", "--out", str(double)]))
    assert_close(single, double)
    counts = {r["count"] for r in records(double) if r["split"] == "valid"}
    assert counts == {13}
    assert report(torchrun.run(["reproduce", str(double), "--json", "-q"]))["identical"]


@pytest.mark.slow
def test_batch_norm_sees_the_whole_batch(tmp_path: Path) -> None:
    single, double = (tmp_path / name for name in ("single", "double"))
    report(torchrun.alone([*NORMED, "--out", str(single)]))
    report(torchrun.run([*NORMED, "--out", str(double)]))
    losses = [
        [r["loss"] for r in records(run) if r["split"] == "train"] for run in (single, double)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_the_all_reduce_is_in_the_compiled_step(undisturbed: Path, tmp_path: Path) -> None:
    words = [*RUN[: RUN.index("--epochs")], "--epochs", "2", "--compile"]
    report(torchrun.run([*words, "--out", str(tmp_path / "run")]))
    compiled, eager = (
        [r["loss"] for r in records(run) if r["split"] == "train"][:3]
        for run in (tmp_path / "run", undisturbed)
    )
    assert compiled == pytest.approx(eager, rel=1e-4)


@pytest.mark.slow
def test_a_run_is_resumed_and_reproduced(tmp_path: Path) -> None:
    """Stopped by a signal to torchrun, resumed, and reproduced, each in two processes."""
    run = tmp_path / "run"
    launcher = torchrun.start([*TRAIN, "--epochs", "60", "--out", str(run)])
    torchrun.wait_for_steps(run, 4)
    launcher.send_signal(signal.SIGTERM)
    stopped = torchrun.end(launcher)
    assert stopped.status != 0
    assert "resume with: torchrun --nproc-per-node 2 -m fcifar train --resume" in stopped.err
    report(torchrun.run(["train", "--resume", str(run), "-q", "--json"]))
    alone = torchrun.alone(["reproduce", str(run)])
    assert alone.status == 2
    assert "torchrun --nproc-per-node 2 -m fcifar" in alone.err
    assert report(torchrun.run(["reproduce", str(run), "--json", "-q"]))["identical"]


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a CUDA device for each process")
def test_two_devices_make_the_run_of_one(undisturbed: Path, tmp_path: Path) -> None:
    report(torchrun.run([*RUN, "--device", "cuda", "--out", str(tmp_path / "run")]))
    assert_close(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_rank_is_killed_the_others_end_with_an_error(tmp_path: Path, rank: int) -> None:
    run = tmp_path / "run"
    launcher = torchrun.start([*FOR_EVER, "--out", str(run)])
    torchrun.wait_for_steps(run, 2)
    (process,) = torchrun.find(launcher, rank)
    os.kill(process, signal.SIGKILL)
    started = time.monotonic()
    outcome = torchrun.end(launcher)
    assert time.monotonic() - started < 30
    assert outcome.status != 0
    assert outcome.err.count("error: another of the 2 processes has ended") == 1
    assert f"resume with: torchrun --nproc-per-node 2 -m fcifar train --resume {run}" in outcome.err
    assert not torchrun.find(launcher, 1 - rank)


@pytest.mark.slow
def test_a_rank_that_hangs_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(distributed.TIMEOUT, "3")
    run = tmp_path / "run"
    launcher = torchrun.start([*FOR_EVER, "--out", str(run)])
    torchrun.wait_for_steps(run, 2)
    (process,) = torchrun.find(launcher, 1)
    os.kill(process, signal.SIGSTOP)
    time.sleep(5)
    os.kill(process, signal.SIGKILL)  # torchrun would wait half a minute for it
    outcome = torchrun.end(launcher)
    assert outcome.status != 0
    assert outcome.err.count("error: another of the 2 processes did not answer in time") == 1
    assert f"--resume {run}" in outcome.err


@pytest.mark.slow
def test_a_script_trains_data_parallel(undisturbed: Path, tmp_path: Path) -> None:
    """The one in docs/scaling.md, on each rank."""
    (block,) = blocks(ROOT / "docs" / "scaling.md", "python")
    script = tmp_path / "script.py"
    script.write_text(block.text.replace('Path("run")', f'Path("{tmp_path / "run"}")'))
    outcome = torchrun.end(torchrun.start([str(script)], program=()))
    assert outcome.status == 0, outcome.err
    assert run_dir.read_manifest(tmp_path / "run")["runtime"]["processes"] == 2
    assert not verify(tmp_path / "run")


@pytest.mark.slow
def test_restarts_without_a_fixed_run_directory_are_refused() -> None:
    outcome = torchrun.run(TRAIN, options=("--max-restarts", "1"))
    assert outcome.status != 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2, "once each time that torchrun starts them"
    message = "torchrun --max-restarts needs a fixed run directory"
    assert all(message in line and "--out" in line for line in lines)


@pytest.mark.slow
def test_a_group_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    words = (*TRAIN, "--replicas", "2", "--runs-dir", str(tmp_path))
    found = report(torchrun.run(words))
    (group,) = tmp_path.iterdir()
    assert found["run_dir"] == str(group)
    assert {path.name for path in group.glob("seed*")} == {"seed0", "seed1"}


@pytest.mark.slow
def test_a_mapped_group_has_the_same_bits_in_fewer_processes(tmp_path: Path) -> None:
    """Interrupted, resumed and reproduced, for its shares are those of two processes throughout."""
    words = [*TRAIN, "--epochs", "40", "--replicas", "4", "--replica-method", "vmap"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    report(torchrun.run([*words, "--out", str(whole)]))
    launcher = torchrun.start([*words, "--out", str(run)])
    torchrun.wait_for_steps(run / "seed0", 4)
    launcher.send_signal(signal.SIGTERM)
    assert torchrun.end(launcher).status != 0
    resumed = report(torchrun.alone(["train", "--resume", str(run), "-q", "--json"]))
    wanted = run_dir.read_report(whole, run_dir.SUMMARY)
    digests = [[m["params_digest"] for m in found["members"]] for found in (resumed, wanted)]
    assert digests[0] == digests[1]
    for start in (torchrun.alone, torchrun.run):
        assert report(start(["reproduce", str(run), "--json", "-q"]))["identical"]


@pytest.mark.slow
def test_a_run_is_extended_by_all_ranks(tmp_path: Path) -> None:
    words = [*TRAIN, "--drop-last", "--out"]
    report(torchrun.run([*words, str(tmp_path / "whole"), "--epochs", "3"]))
    report(torchrun.run([*words, str(tmp_path / "run"), "--epochs", "2"]))
    more = ["train", "--resume", str(tmp_path / "run"), "--epochs", "3", "-q", "--json"]
    found = report(torchrun.run(more))["params_digest"]
    assert found == run_dir.read_report(tmp_path / "whole")["params_digest"]


@pytest.mark.slow
def test_other_commands_run_once() -> None:
    outcome = torchrun.run(["env", "--json"])
    assert outcome.status == 0, outcome.err
    assert "versions" in json.loads(outcome.out)


@pytest.mark.slow
def test_replicas_are_divided_among_the_ranks(tmp_path: Path) -> None:
    """Each is bit for bit what one process makes of it, and so is the group afterwards."""
    words = [*TRAIN, "--epochs", "1", "--replicas", "3", "--sweep", "lr=0.001,0.01"]
    one, two = tmp_path / "one", tmp_path / "two"
    single = report(torchrun.alone([*words, "--out", str(one)]))
    double = report(torchrun.run([*words, "--out", str(two)]))
    digests = [
        {m["name"]: m["params_digest"] for m in found["members"]} for found in (single, double)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 6
    again = torchrun.alone(["reproduce", str(two), "--json", "-q"])
    assert report(again)["identical"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TRAIN, "--batch-size", "5"], "--batch-size is 5, which 2 processes"),
        pytest.param(["eval", "nowhere"], "there is no nowhere", marks=pytest.mark.slow),
    ],
    ids=["odd", "eval"],
)
def test_an_error_is_printed_once(tmp_path: Path, words: list[str], message: str) -> None:
    words = [*words, "--out", str(tmp_path / "run")] if words[0] == "train" else words
    outcome = torchrun.run(words)
    assert outcome.status != 0
    assert outcome.err.count("error: ") == 1
    assert message in outcome.err
    assert not (tmp_path / "run").exists()
