"""fcifar soup, fcifar lr-find, and --average: what is printed, written and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.recipes.trials import make_trials
from fcifar.train import loop, sweep
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

HERE = ("--threads", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has an average, a group, and their data set."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((42, 23))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=6, epochs=2, valid_fraction=0.2)
    config = make_config(recipe, tiny, runtime=Runtime(threads=1))
    averaged = recipe.replace(swa_start=0.5, tta="mirror")
    loop.train(place / "run", config.replace(recipe=averaged), tiny)
    rates = [(rate, recipe.replace(learning_rate=rate)) for rate in (0.001, 0.01, 0.02)]
    trials = make_trials(recipe, {"lr": rates}, (0,))
    asked = sweep.Sweep(trials, "loop", config.replace(recipe=trials[0].recipe))
    sweep.train(place / "group", asked, tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_an_average_is_reported_and_used(fcifar, tmp_path: Path) -> None:
    shown = fcifar("report", "run")
    assert "average (swa)" in shown.out
    assert shown.out.count("with --tta mirror") == 2
    report = json.loads(fcifar("report", "run", "--json").out)
    listed = fcifar("runs", "show", "run").out
    assert "average (swa)" in listed
    assert fcifar("report", "run", "--html", "page.html").status == 0
    assert "of the average (swa)" in (tmp_path / "page.html").read_text()
    found = {}
    for words in ((), ("--average",)):
        done = fcifar("eval", "run", *HERE, "--json", "--quiet", *words)
        assert done.status == 0
        found[words] = json.loads(done.out)
    assert found[()]["accuracy"] == report["test_accuracy"]
    assert found["--average",]["accuracy"] == report["average_accuracy"]
    assert found["--average",]["params_digest"] == report["average_params_digest"]
    exported = fcifar("export", "run", "--average", "--to", "x.pth", "--json", "--quiet")
    assert json.loads(exported.out)["params_digest"] == report["average_params_digest"]
    done = fcifar("compare", "run/final.safetensors", "run/average.safetensors", *HERE, "--quiet")
    assert done.status == 0


def test_a_soup(fcifar, tmp_path: Path) -> None:
    words = ("soup", "group", "--method", "greedy", *HERE)
    done = fcifar(*words, "--to", "soup.safetensors", "--out", "drawn")
    assert done.status == 0
    assert done.err == "evaluating\n"
    assert fits(done.out)
    assert "8 validation images of tiny" in done.out
    assert "greedy, of" in done.out
    assert imread(tmp_path / "drawn/soup.png").shape[2] == 4
    report = json.loads((tmp_path / "drawn/report.json").read_text())
    again = json.loads(fcifar(*words, "--json", "--quiet").out)
    assert report.pop("path") == "soup.safetensors"
    assert again == report
    for command in (("eval", "soup.safetensors"), ("export", "soup.safetensors", "--to", "x.pth")):
        used = fcifar(*command, "--threads", 1, "--json", "--quiet")
        assert json.loads(used.out)["params_digest"] == report["params_digest"]
    assert fcifar(*words, "--to", "soup.safetensors", "--force", "--quiet").status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("soup", "run"),
            "run alone cannot be averaged; give two runs or more, or a group of runs",
        ),
        (
            ("soup", "group", "--method", "best"),
            "--method is 'best'; it must be one of mean, greedy",
        ),
        (("soup", "group", "--to", "x.pth"), "--to is x.pth; its name must end in .safetensors"),
        (("soup", "group", "--to", "run/final.safetensors"), "already exists; choose another name"),
        (("eval", "group", "--average"), "has no average beside its model: its recipe has neither"),
        (("export", "run", "--average", "--to", "x.csv"), "takes a run's metrics, and --average"),
        (("lr-find", "blitz", "--dataset", "tiny", "--rates", 1), "--rates is 1; it must be"),
        (("lr-find", "blitz", "--dataset", "tiny", "--steps", 0), "--steps is 0; it must be"),
        (("lr-find", "blitz", "--dataset", "tiny", "--lowest", 0), "--lowest must be above 0"),
        (("lr-find", "blitz", "--dataset", "tiny", "--method", "x"), "--method is 'x'; it must be"),
        (("lr-find", "nonsense"), "nonsense"),
    ],
)
def test_mistakes_are_one_line(fcifar, words: tuple[object, ...], message: str) -> None:
    done = fcifar(*words, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_search_for_the_rate(fcifar, tmp_path: Path) -> None:
    words = ("lr-find", "blitz", "--dataset", "tiny", "--set", "batch_size=6", *HERE)
    words += ("--rates", 4, "--steps", 4, "--highest", 1e10)
    done = fcifar(*words, "--out", "found")
    assert done.status == 0
    assert fits(done.out)
    assert "suggestion  --lr " in done.out
    assert "diverged" in done.out
    assert "training\n" in done.err
    report = json.loads((tmp_path / "found/report.json").read_text())
    assert imread(tmp_path / "found/rates.png").shape[2] == 4
    assert json.loads(fcifar(*words, "--json", "--quiet").out) == report
    assert (report["recipe"], report["recipe_rate"], len(report["rates"])) == ("blitz", 0.001, 4)
