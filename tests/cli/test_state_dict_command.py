"""A network from a plain PyTorch script, here; and one from here, there."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fcifar import data, recipes, tensor_files
from fcifar.data import Split, make_dataset, shapes10
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import Outcome, fits

ONE = ("--threads", 1, "--device", "cpu")
SCRIPT = Path(__file__).parent.parent / "export/tutorial.py"


def in_plain_pytorch(what: str, place: Path, name: str) -> tuple[list[str], dict[str, Any]]:
    """What the tutorial's script prints, and its predictions."""
    words = [sys.executable, SCRIPT, what, place / "images.npz", place / name]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    *lines, last = done.stdout.splitlines()
    return lines, json.loads(last)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a run on them, and what the tutorial's script makes of them."""
    place = tmp_path_factory.mktemp("place")
    images = shapes10.generate(train_size=1600, test_size=201)
    train, test = Split(*images[:2]), Split(*images[2:])
    data.save(make_dataset("shapes", train, test, shapes10.CLASSES, "tests"), place / "data")
    tiny = make_dataset("tiny", Split(*images[2:]), Split(*images[2:]), tuple("abcdefghij"), "t")
    data.save(tiny, place / "data")
    np.savez(place / "images.npz", **{k: v.numpy() for k, v in images._asdict().items()})
    _, found = in_plain_pytorch("train", place, "cifar_net.pth")
    (place / "plain.json").write_text(json.dumps(found))
    recipe = recipes.get("blitz").replace(epochs=1, batch_size=10)
    shapes = data.load("shapes", place / "data")
    loop.train(place / "run", make_config(recipe, shapes, runtime=Runtime(threads=1)), shapes)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def evaluated(fcifar, *words: object) -> dict[str, Any]:
    done = fcifar("eval", *words, "--dataset", "shapes", "--json", "--quiet", *ONE)
    assert done.status == 0, done.err
    return json.loads(done.out)


def predictions(path: Path) -> list[int]:
    with path.open(encoding="utf-8", newline="") as file:
        return [int(row["prediction"]) for row in csv.DictReader(file)]


def test_theirs_here_to_the_last_example(fcifar, tmp_path: Path) -> None:
    there = json.loads((tmp_path / "plain.json").read_text())
    here = evaluated(fcifar, "cifar_net.pth", "--model", "lenet", "--per-example", "e.csv")
    assert here["accuracy"] == there["correct"] / there["total"]
    assert predictions(tmp_path / "e.csv") == there["predictions"]
    assert len(set(there["predictions"])) > 2, "it has learned something"
    assert (here["run"], here["recipe"], here["n"]) == ("cifar_net.pth", "lenet", 201)


def test_ours_there_to_the_last_example(fcifar, tmp_path: Path) -> None:
    done = fcifar("export", "run", "--to", "x.pth")
    assert done.status == 0
    lines, there = in_plain_pytorch("test", tmp_path, "x.pth")
    assert lines == ["<All keys matched successfully>"]
    here = evaluated(fcifar, "run", "--per-example", "e.csv")
    assert here["accuracy"] == there["correct"] / there["total"]
    assert predictions(tmp_path / "e.csv") == there["predictions"]
    for name in ("x.pth", "run/final.safetensors"):
        words = ("--model", "lenet") if name == "x.pth" else ()
        again = evaluated(fcifar, name, *words)
        assert (again["loss"], again["params_digest"]) == (here["loss"], here["params_digest"])


def test_checkpoints_and_prefixes_are_taken_off_and_said(fcifar, tmp_path: Path) -> None:
    plain = torch.load(tmp_path / "cifar_net.pth", weights_only=True)
    wrapped = {f"_orig_mod.module.{name}": value for name, value in plain.items()}
    torch.save({"state_dict": wrapped, "epoch": 1}, tmp_path / "wrapped.pt")
    save_file(wrapped, tmp_path / "wrapped.safetensors")
    expected = evaluated(fcifar, "cifar_net.pth", "--model", "lenet")
    for name, notes in (("wrapped.pt", 2), ("wrapped.safetensors", 1)):
        words = ("eval", name, "--recipe", "blitz", "--dataset", "shapes", "--json", "-q", *ONE)
        done = fcifar(*words)
        assert done.status == 0
        assert done.err.count("\n") == notes
        assert all(name in line for line in done.err.splitlines())
        assert "left out '_orig_mod.module.' before the names" in done.err
        found = json.loads(done.out)
        assert found["recipe"] == "blitz"
        assert found["loss"] == expected["loss"]


def test_options_of_the_network_and_the_normalisation(fcifar, tmp_path: Path) -> None:
    recipe = recipes.get("blitz").replace(
        epochs=1, batch_size=50, model_options={"hidden": 20}, mean=(0.3,) * 3, std=(0.2,) * 3
    )
    shapes = data.load("shapes", tmp_path / "data")
    config = make_config(recipe, shapes, runtime=Runtime(threads=1))
    report = loop.train(tmp_path / "other", config, shapes)
    assert fcifar("export", "other", "--to", "o.pth", "-q").status == 0
    same = ("--set", "hidden=20", "--set", "mean=0.3,0.3,0.3", "--set", "std=[0.2,0.2,0.2]")
    assert evaluated(fcifar, "o.pth", "--model", "lenet", *same)["loss"] == report["test_loss"]
    otherwise = evaluated(fcifar, "o.pth", "--model", "lenet", "--set", "hidden=20")
    assert otherwise["loss"] != report["test_loss"]


def test_predict_and_compare(fcifar, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 32, 3), np.uint8)).save(tmp_path / "a.png")
    words = ("predict", "cifar_net.pth", "a.png", "--model", "lenet", "--json", "-q", *ONE)
    for dataset, classes in (
        ((), {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"}),
        (("--dataset", "tiny"), set("abcdefghij")),
        (("--dataset", "shapes10"), set(shapes10.CLASSES)),
    ):
        (found,) = json.loads(fcifar(*words, *dataset).out)
        assert {guess["class"] for guess in found["predictions"]} <= classes | {"truck"}
    done = fcifar("compare", "run", "cifar_net.pth", "--model", "lenet", *ONE)
    assert done.status == 0, done.err
    assert fits(done.out)
    assert "201 test images of shapes" in done.out, "those of the run"
    found = json.loads(fcifar("compare", "cifar_net.pth", "run", "--model=lenet", "--json").out)
    assert [run["trained_on"] for run in found["runs"]] == [None, "shapes"]
    (tmp_path / "data").rename(tmp_path / "moved")
    elsewhere = fcifar(*words, "--dataset", "tiny", "--data-dir", "moved")
    assert {g["class"] for g in json.loads(elsewhere.out)[0]["predictions"]} <= set("abcdefghij")


def refused(done: Outcome, *parts: str) -> None:
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err


def test_mistakes_are_one_line(fcifar, tmp_path: Path) -> None:
    shapes = ("--dataset", "shapes")
    refused(fcifar("eval", "cifar_net.pth"), "names and shapes are those of lenet; pass --model")
    wrong = fcifar("eval", "cifar_net.pth", "--model", "conv3", *shapes)
    refused(wrong, "conv1.weight is [6, 3, 5, 5], not [16, 3, 3, 3]; it fits --model lenet")
    hidden = fcifar("eval", "cifar_net.pth", "--model=lenet", "--set=hidden=9", *shapes)
    refused(hidden, "fc2.weight is [84, 120], not [9, 120]", "it fits --model lenet")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    refused(fcifar("eval", "module.pth", "--model", "lenet"), "save net.state_dict(), not net")
    refused(fcifar("eval", "images.npz", "--model", "lenet"), "images.npz")
    refused(fcifar("eval", "nowhere.pth", "--model", "lenet"), "there is no nowhere.pth")
    refused(fcifar("eval", "run", "--model", "lenet"), "run records its own model")
    lenet = ("eval", "cifar_net.pth", "--model", "lenet")
    refused(fcifar(*lenet, "--recipe", "blitz"), "give one of them")
    refused(fcifar(*lenet, "--set", "learning_rate=1"), "(hidden, dropout), mean or std")
    refused(fcifar(*lenet, "--set", "hidden"), "it must be NAME=VALUE")
    refused(fcifar(*lenet, "--set", "std=0,1,1"), "std")
    refused(fcifar(*lenet, "--split", "valid", *shapes), "use --split test")
    refused(fcifar("eval", "cifar_net.pth", "--set=hidden=9"), "give --model or --recipe, too")
    refused(fcifar("eval", "cifar_net.pth", "--model", "LeNet"), "model is 'LeNet'")
    refused(fcifar("predict", "run", "a.png", *shapes), "run has its own")
    for command in ("eval", "predict", "compare"):
        assert fits(fcifar(command, "--help").out)


# Training that begins with them ------------------------------------------------------------------

TUNE = ("train", "blitz", "--dataset", "three", "--epochs", 1, "--batch-size", 10, *ONE)


@pytest.fixture
def three(tmp_path: Path) -> None:
    """Sixty images of three classes."""
    images = shapes10.generate(train_size=200, test_size=100)
    train, test = (
        Split(pictures[labels < 3], labels[labels < 3])
        for pictures, labels in (images[:2], images[2:])
    )
    data.save(make_dataset("three", train, test, shapes10.CLASSES[:3], "tests"), tmp_path / "data")


@pytest.mark.usefixtures("three")
def test_training_begins_with_a_state_dict_and_another_head(fcifar, tmp_path: Path) -> None:
    tuned = fcifar(*TUNE, "--init", "cifar_net.pth", "--freeze", "conv*,fc1.*", "--out", "tuned")
    assert tuned.status == 0, tuned.err
    assert "drew fc3.weight, fc3.bias anew, which cifar_net.pth has not in" in tuned.err
    assert fits(tuned.out)
    given = torch.load(tmp_path / "cifar_net.pth")
    final, _ = tensor_files.read(tmp_path / "tuned/final.safetensors")
    for name, value in given.items():
        frozen = name.startswith(("conv", "fc1."))
        assert (value.shape == final[name].shape and torch.equal(value, final[name])) == frozen
    init = json.loads((tmp_path / "tuned/manifest.json").read_text())["init"]
    assert (init["source"], init["drawn"]) == ("cifar_net.pth", ["fc3.weight", "fc3.bias"])
    (tmp_path / "cifar_net.pth").unlink()
    assert fcifar("reproduce", "tuned", "--quiet").status == 0
    longer = fcifar(*TUNE, "--init", "tuned", "--out", "longer", "--json", "--quiet")
    assert longer.status == 0
    assert json.loads((tmp_path / "longer/manifest.json").read_text())["init"]["drawn"] == []
    assert fcifar("eval", "longer", "--dataset", "three", "--quiet", *ONE).status == 0


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--init", "nowhere.pth"), "there is no nowhere.pth"),
        (("--init-partial",), "--init-partial needs --init"),
        (("--init", "cifar_net.pth", "--model", "conv3"), "does not fit conv3 with 3 classes: "),
        (("--init", "cifar_net.pth", "--freeze", "cov*"), "--freeze has 'cov*', which matches no"),
        (("--init", "cifar_net.pth", "--freeze", "*"), "leaves no parameter to train"),
        (("--init", "data/three"), "data/three"),
        (("--sweep", "hidden=64,84", "--init", "cifar_net.pth"), "--sweep has different models"),
    ],
)
def test_what_cannot_be_begun_with_is_said(
    fcifar, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = fcifar(*TUNE, *words, "--out", "tuned")
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "tuned").exists()


def test_a_run_is_not_resumed_with_other_weights(fcifar) -> None:
    done = fcifar("train", "--resume", "run", "--init", "cifar_net.pth")
    assert done.status == 2
    assert "--init would change them" in done.err
