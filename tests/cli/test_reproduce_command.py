"""fcifar reproduce and fcifar verify: what a person reads, and the exit codes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fcifar import cli, data
from fcifar.data import Split, make_dataset

TRAIN = ("train", "--dataset", "tiny", "--epochs", 2, "--batch-size", 5, "--threads", 1)


@pytest.fixture
def fcifar(
    tmp_path: Path, make_batch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Exit status, stdout and stderr of a command, in a folder of its own, 80 columns wide."""
    splits = Split(*make_batch(42, seed=1)), Split(*make_batch(23, seed=2))
    data.save(make_dataset("tiny", *splits, tuple("abcdefghij"), "tests"), tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fcifar", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def run(fcifar, tmp_path: Path) -> Path:
    assert fcifar(*TRAIN, "--out", "run", "--device", "cpu", "--quiet")[0] == 0
    return tmp_path / "run"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_identical_run(fcifar, run: Path) -> None:
    digest = json.loads((run / "report.json").read_text())["params_digest"]
    status, out, err = fcifar("reproduce", "run")
    assert status == 0
    assert out.split("\n")[0].split() == ["verdict", "identical"]
    assert digest in out
    assert "reproducing run: blitz on tiny, seed 0, cpu, 1 thread, fp32, eager" in err
    assert "identity can be expected" in err
    assert all(len(line) <= 80 for line in out.splitlines())
    status, out, err = fcifar("reproduce", "run", "--json", "--quiet")
    assert status == 0
    assert err == ""
    assert json.loads(out)["identical"] is True
    assert json.loads(out)["digest"] == digest


def test_until_and_out(fcifar, run: Path) -> None:
    status, out, _ = fcifar("reproduce", "run", "--until", 99, "--out", "new")
    assert (status, "identical up to step 18" in out) == (0, True)
    status, _, err = fcifar("reproduce", "run", "--out", "new")
    assert (status, "new already holds a run" in err) == (2, True)
    status, _, err = fcifar("reproduce", "run", "--until", 1)
    assert (status, "the first is at step 18" in err) == (2, True)
    assert fcifar("reproduce", "elsewhere")[0] == 2


def test_damage_is_exit_code_1_and_named(fcifar, run: Path) -> None:
    assert fcifar("verify", "run")[:2] == (0, "run is unchanged and complete\n")
    flip(run / "final.safetensors", -9)
    status, out, _ = fcifar("verify", "run")
    assert status == 1
    assert out.startswith("run/final.safetensors is damaged")
    status, out, _ = fcifar("verify", "run", "--json")
    assert status == 1
    assert json.loads(out)["intact"] is False
    status, out, err = fcifar("reproduce", "run")
    assert status == 1
    assert "the training is identical, but a file has changed" in out
    assert "damaged: run/final.safetensors" in err
    flip(run / "metrics.jsonl", 30)
    status, out, err = fcifar("reproduce", "run")
    assert (status, out) == (1, "")
    assert err.startswith(
        "error: run/metrics.jsonl is damaged: its SHA-256 is not that in SHA256SUMS"
    )


def test_changed_data_are_refused(fcifar, run: Path, tmp_path: Path) -> None:
    flip(tmp_path / "data" / "tiny.safetensors", -40)
    status, _, err = fcifar("reproduce", "run")
    assert status == 1
    assert "is damaged: its content has digest" in err


def test_a_run_that_differs(fcifar, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcifar.train import loop

    train = loop.train

    def other(path: Path, config, *arguments, **options):
        recipe = config.recipe.replace(learning_rate=0.01)
        return train(path, config.replace(recipe=recipe), *arguments, **options)

    monkeypatch.setattr(loop, "train", other)
    status, out, err = fcifar("reproduce", "run")
    assert status == 1
    assert out.split("\n")[0].split() == ["verdict", "not", "identical"]
    assert "first difference at step 18 (training): tensor variables.params.conv1.bias and" in err
    assert "checkpoint-00000018.safetensors, after step 18: 20 differing tensors" in out
    assert "largest difference" in out
    assert "new digest" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_another_device_is_told(fcifar, run: Path) -> None:
    status, _, err = fcifar("reproduce", "run", "--device", "cuda:77")
    assert status == 2
    assert err.count("\n") == 1
