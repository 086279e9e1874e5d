"""fcifar influence: what is printed, written and refused."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.train import loop, run_dir
from fcifar.train.config import CheckpointConfig, make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

HERE = ("--threads", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has four checkpoints, and its data set."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((42, 23))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=6, epochs=4)
    checkpoint = CheckpointConfig(checkpoint_every="7", keep_checkpoints=9)
    config = make_config(recipe, tiny, runtime=Runtime(threads=1), checkpoint=checkpoint)
    loop.train(place / "run", config, tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_influence_is_shown_and_written(fcifar, tmp_path: Path) -> None:
    words = ("influence", "run", "--image", "3,17", "--top", 4, *HERE)
    done = fcifar(*words, "--out", "found")
    assert done.status == 0
    assert done.err == "tracing training images\n"
    assert fits(done.out)
    assert "test/00003: d, predicted" in done.out
    assert "tracin, of 4 checkpoints, after steps 7 to 28" in done.out
    report = json.loads((tmp_path / "found/report.json").read_text())
    assert json.loads(fcifar(*words, "--json", "--quiet").out) == report
    assert imread(tmp_path / "found/influence.png").shape[2] >= 3
    with (tmp_path / "found/influence.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report["train_n"] == 42
    for image in report["images"]:
        scores = {row["id"]: float(row[image["id"]]) for row in rows}
        assert len(image["proponents"]) == len(image["opponents"]) == 4
        order = sorted(scores, key=lambda name: -scores[name])
        assert [entry["id"] for entry in image["proponents"]] == order[:4]
        assert [entry["id"] for entry in image["opponents"]] == order[:-5:-1]


def test_influence_functions(fcifar) -> None:
    words = ("influence", "run", "--image", 3, "--split", "train", *HERE, "--quiet")
    words += ("--method", "gauss_newton", "--curvature-images", 20, "--damping", 0.5)
    done = fcifar(*words)
    assert done.status == 0
    assert fits(done.out)
    assert "gauss_newton, damping 0.5, curvature of 20 images" in done.out.replace("\n", " ")
    (image,) = json.loads(fcifar(*words, "--json").out)["images"]
    assert image["id"] == "train/00003"


def test_the_final_model_alone_is_said(fcifar, tmp_path: Path) -> None:
    for path in run_dir.list_checkpoints(tmp_path / "run").values():
        path.unlink()
    for model in ("run", "run/final.safetensors"):
        done = fcifar("influence", model, "--image", 0, *HERE, "--quiet")
        assert "of the final model alone" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--image", "x"), "--image is 'x'; give row numbers of the split"),
        (("run", "--image", 99), "--image 99 is not an image of the test split of tiny; give rows"),
        (("run", "--image", 1, "--split", "valid"), "it held out nothing of tiny"),
        (("run", "--image", 1, "--method", "lissa"), "--method is 'lissa'; it must be one of"),
        (("run", "--image", 1, "--damping", 1), "--damping is of --method gauss_newton; leave it"),
        (("run", "--image", 1, "--top", 0), "--top is 0; it must be"),
        (
            ("run", "--image", 1, "--method", "gauss_newton", "--damping", 0),
            "--damping is 0.0; it must be above 0, such as 0.1",
        ),
        (("run",), "image"),
        (("nothing", "--image", 1), "there is no nothing"),
    ],
)
def test_mistakes_are_one_line(fcifar, words: tuple[object, ...], message: str) -> None:
    done = fcifar("influence", *words, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
