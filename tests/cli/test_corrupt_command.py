"""fcifar eval with --corrupt, and on CIFAR-10-C: what is printed, written and refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.data.readers.cifar import CLASSES
from fcifar.train import evaluate as evaluation
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

ONE = ("--threads", 1, "--device", "cpu", "--quiet")
RUNS = ("run0", "run1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, their data set, and files like those of CIFAR-10-C."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((20, 12))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, CLASSES, "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=5, epochs=1)
    for seed, run in enumerate(RUNS):
        config = make_config(recipe, tiny, seed=seed, runtime=Runtime(threads=1))
        loop.train(place / run, config, tiny)
    folder = place / "CIFAR-10-C"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    for i, name in enumerate(("fog", "gaussian_noise")):
        np.save(folder / f"{name}.npy", np.roll(images, i, 0))
    np.save(folder / "labels.npy", np.tile(np.arange(10), 5))
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 12)  # batches are padded
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_one_run(fcifar, tmp_path: Path) -> None:
    done = fcifar("eval", "run0", "--corrupt", "fog,contrast:3", "--out", "drawn", *ONE)
    assert done.status == 0
    assert fits(done.out)
    assert "Accuracy by severity, %" in done.out
    assert "2, drawn with seed 0" in done.out
    assert "12 test images of tiny" in done.out
    report = json.loads((tmp_path / "drawn/report.json").read_text())
    found = report["robustness"]
    assert found["severities"] == {"fog": [1, 2, 3, 4, 5], "contrast": [3]}
    assert found["runs"][0]["accuracy"] == report["accuracy"]
    for name in ("robustness.png", "corruptions.png"):
        assert imread(tmp_path / "drawn" / name).shape[2] in (3, 4)


def test_several_runs_and_a_reference(fcifar) -> None:
    words = ("--corrupt", "all:1", "--corrupt", "all", "--seed", 5, "--reference", "run1")
    done = fcifar("eval", *RUNS, *words, *ONE, "--json")
    assert done.status == 0
    found = json.loads(done.out)["robustness"]
    assert found["seed"] == 5
    assert [run["name"] for run in found["runs"]] == ["A", "B"]
    assert found["reference"]["mce"] == pytest.approx(1)
    assert found["runs"][1]["corruptions"] == found["reference"]["corruptions"]
    assert len(found["runs"][0]["corruptions"]) == 15
    shown = fcifar("eval", *RUNS, "--corrupt", "fog:1", "--reference", "run1", *ONE)
    assert fits(shown.out)
    assert "reference" in shown.out


def test_cifar10c(fcifar, tmp_path: Path) -> None:
    done = fcifar("data", "import", "CIFAR-10-C", "--quiet")
    assert done.status == 0
    assert "gaussian_noise, fog; severities 1, 2, 3, 4, 5; 10 images each" in " ".join(
        done.out.split()
    )
    done = fcifar("eval", "run0", "--dataset", "cifar10-c", "--out", "drawn", *ONE)
    assert done.status == 0
    assert fits(done.out)
    assert "as in the files" in done.out
    found = json.loads((tmp_path / "drawn/report.json").read_text())
    assert found["robustness"]["n"] == 10
    mean = found["robustness"]["runs"][0]["mean_accuracy"]
    assert mean == pytest.approx(found["accuracy"])
    assert (tmp_path / "drawn/robustness.png").exists()
    assert not (tmp_path / "drawn/corruptions.png").exists()
    refused = fcifar("eval", "run0", "--dataset", "cifar10-c", "--corrupt", "fog", *ONE)
    assert refused.status == 2
    assert "corrupted already" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corrupt", "fogg"), "did you mean 'fog'?"),
        (("--seed", 3), "--seed is that of --corrupt and --attack; give one of them, too"),
        (("--reference", "run1"), "--reference is that of --corrupt; give that, too"),
        (("--corrupt", "fog", "--seed", -(2**40)), "seed"),
    ],
)
def test_what_cannot_be(fcifar, words: tuple[str, ...], message: str) -> None:
    done = fcifar("eval", "run0", *words, *ONE)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
