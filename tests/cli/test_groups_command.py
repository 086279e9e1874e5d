"""fcifar train --replicas and --sweep: one table, one document, one line for a mistake."""

import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fcifar import data, random
from fcifar.data import Split, make_dataset
from fcifar.train import sweep
from tests.helpers.commands import fits

FEW = ("--dataset", "tiny", "--threads", 1, "--device", "cpu", "--epochs", 1, "--batch-size", 8)


@pytest.fixture(autouse=True)
def _small_data(tmp_path: Path) -> None:
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((42, 23))
        for labels in [torch.arange(size) % 10]
    )
    data.save(make_dataset("tiny", train, test, tuple("abcdefghij"), "tests"), tmp_path / "data")


@pytest.mark.figures
def test_replicas(fcifar, tmp_path: Path) -> None:
    done = fcifar("train", "blitz", *FEW, "--replicas", 3, "--seed", 4, "--out", "g")
    assert done.status == 0
    assert fits(done.out)
    for text in ("seed4", "seed5", "seed6", "over 3 seeds", "independent", "ensemble"):
        assert text in done.out, text
    assert "seed5  epoch   1.00  step        6  training" in done.err
    assert {path.name for path in (tmp_path / "g/plots").iterdir()} == {"curves.png", "spread.png"}

    again = fcifar("train", "--resume", "g", "--json", "--quiet")
    assert again.status == 0
    assert again.err == ""
    summary = json.loads(again.out)
    assert [member["seed"] for member in summary["members"]] == [4, 5, 6]
    assert summary["method"] == "loop"
    assert set(summary) >= {
        *("run_dir", "recipe", "dataset", "seed", "steps", "test_accuracy", "test_loss"),
        *("train_seconds", "compile_seconds", "process_seconds"),
    }
    alone = fcifar("train", "blitz", *FEW, "--seed", 5, "--out", "alone", "--json", "--quiet")
    assert json.loads(alone.out)["params_digest"] == summary["members"][1]["params_digest"]

    assert fcifar("verify", "g").out == "g is unchanged and complete\n"
    reproduced = fcifar("reproduce", "g", "--quiet")
    assert reproduced.status == 0
    assert "identical: 3 of 3 runs" in reproduced.out
    compared = fcifar("compare", "g", "--threads", 1, "--json", "--quiet")
    assert [run["run"] for run in json.loads(compared.out)["runs"]] == [
        f"g/seed{seed}" for seed in (4, 5, 6)
    ]


@pytest.mark.figures
def test_a_sweep(fcifar, tmp_path: Path) -> None:
    grid = ("--sweep", "lr=0.001,1e25", "--sweep", "momentum=0,0.9", "--valid-fraction", 0.25)
    done = fcifar("train", "blitz", *FEW, *grid, "--replica-method", "vmap", "--out", "g", "-q")
    assert done.status == 0
    assert fits(done.out)
    head, *rows = done.out.splitlines()
    assert head.split() == ["lr", "momentum", "validation", "test", "test", "loss", "runs"]
    assert [row.split()[:2] for row in rows[:4]] == [
        *(["0.001", "0"], ["0.001", "0.9"], ["1e+25", "0"], ["1e+25", "0.9"])
    ]
    assert "best" in done.out
    assert "all at once, by vmap" in done.out
    assert "failed" in done.out
    assert [trial.seed for trial in sweep.read(tmp_path / "g").trials] == [0] * 4
    height, width, _ = imread(tmp_path / "g/plots/sweep.png").shape
    assert width >= 800
    assert height > 400


@pytest.mark.figures
def test_a_sweep_over_one_value_and_over_shapes(fcifar, tmp_path: Path) -> None:
    words = ("train", "dropout-adam", *FEW, "--sweep", "hidden=4,8", "--replicas", 2)
    done = fcifar(*words, "--valid-fraction", 0.25, "--out", "g", "--json", "--quiet")
    assert done.status == 0, done.err
    summary = json.loads(done.out)
    names = [f"hidden={n}-seed{s}" for n in (4, 8) for s in (0, 1)]
    assert [member["name"] for member in summary["members"]] == names
    assert summary["best"] is not None, "this recipe holds images out"
    assert (tmp_path / "g/plots/sweep.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--replicas", 0), "--replicas is 0; it must be a whole number from 1 to 10,000"),
        (("--sweep", "lr"), "--sweep is 'lr'; it must be NAME=VALUE,VALUE,..."),
        (("--sweep", "lr="), "--sweep is 'lr='; it must be NAME=VALUE,VALUE,..."),
        (("--sweep", "lr=1,,2"), "--sweep is 'lr=1,,2'; it must be NAME=VALUE,VALUE,..."),
        (("--sweep", "lr=1,1"), "--sweep 'lr=1,1' has a value twice; give each once"),
        (("--sweep", "lr=1", "--sweep", "lr=2"), "--sweep names the same value twice"),
        (("--sweep", "lr=1", "--sweep", "learning_rate=2"), "--sweep names the same value twice"),
        (("--sweep", "lr=much"), "--sweep lr is 'much'; it must be 0, or a number"),
        (("--sweep", "speed=1,2"), "--sweep 'speed' is neither a setting of recipes nor"),
        (("--replica-method", "vmap"), "--replica-method needs --replicas or --sweep"),
        (("--replicas", 2, "--replica-method", "both"), "it must be auto, loop or vmap"),
        (("--replicas", 2, "--seed", 2**63), "--seed"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(fcifar, tmp_path, words, message) -> None:
    before = set(tmp_path.rglob("*"))
    done = fcifar("train", "blitz", *FEW, *words, "--out", "g")
    assert done.status == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert set(tmp_path.rglob("*")) == before


def test_what_belongs_to_one_run_is_refused_for_a_group(fcifar) -> None:
    fcifar("train", "blitz", *FEW, "--replicas", 2, "--out", "g", "-q")
    assert "leave that out" in fcifar("train", "--resume", "g", "--replicas", 3).err
    until = fcifar("reproduce", "g", "--until", 3)
    assert until.status == 2
    assert "--until and --device are of a single run" in until.err
    assert fcifar("train", "blitz", *FEW, "--replicas", 2, "--out", "g").status == 2
