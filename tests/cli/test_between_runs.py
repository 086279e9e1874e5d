"""fcifar compare --path and --plane: what is printed, written and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

HERE = ("--threads", 1, "--device", "cpu", "--points", 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs and their data set."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((12, 23))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=6, epochs=1)
    for seed, name in enumerate("abc"):
        config = make_config(recipe, tiny, seed=seed, runtime=Runtime(threads=1))
        loop.train(place / name, config, tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_a_path(fcifar, tmp_path: Path) -> None:
    words = ("compare", "a", "b", "--path", *HERE)
    done = fcifar(*words, "--match", "--out", "drawn")
    assert done.status == 0
    assert done.err == "evaluating\n"
    assert fits(done.out)
    assert "23 test images of tiny" in done.out
    assert "as trained" in done.out
    assert "of 226 units in 4 groups moved" in done.out.replace("\n", " ")
    assert imread(tmp_path / "drawn/path.png").shape[2] == 4
    report = json.loads((tmp_path / "drawn/report.json").read_text())
    assert json.loads(fcifar(*words, "--match", "--json", "--quiet").out) == report
    alone = json.loads(fcifar("compare", "a", "b", *HERE[:-2], "--json", "--quiet").out)
    for run, compared in zip(report["runs"], alone["runs"], strict=True):
        for name in ("accuracy", "params_digest", "run", "name", "seed"):
            assert run[name] == compared[name]
        assert run["loss"] == pytest.approx(compared["loss"])
    plain = fcifar(*words, "--quiet")
    assert (plain.status, plain.err) == (0, "")
    assert "matched" not in plain.out


def test_a_plane(fcifar, tmp_path: Path) -> None:
    words = ("compare", "a", "b", "c", "--plane", "--images", 9, *HERE)
    done = fcifar(*words, "--out", "drawn")
    assert done.status == 0
    assert fits(done.out)
    assert "9 test images of tiny" in done.out
    assert "3 x 3 points" in done.out
    assert imread(tmp_path / "drawn/plane.png").shape[2] == 4
    report = json.loads((tmp_path / "drawn/report.json").read_text())
    assert json.loads(fcifar(*words, "--json", "--quiet").out) == report
    assert "C matched" in fcifar(*words, "--match", "--quiet").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "--path", "--plane"), "--path and --plane cannot be given together"),
        (("a", "b", "--points", 5), "--points is for the loss between runs; give --path or"),
        (("a", "b", "--match"), "--match is for the loss between runs"),
        (("a", "b", "--images", 5), "--images is for the loss between runs"),
        (("a", "b", "--out", "x"), "--out is for the loss between runs"),
        (("a", "b", "c", "--path"), "--path goes through two runs, not 3"),
        (("a", "b", "--plane"), "--plane goes through three runs, not 2"),
        (("a", "b", "--path", "--points", 0), "--points is 0; it must be a whole number from 3"),
        (("a", "b", "--path", "--images", 0), "--images is 0; it must be a whole number from 1"),
    ],
)
def test_mistakes_are_one_line(fcifar, words: tuple[object, ...], message: str) -> None:
    done = fcifar("compare", *words, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
