"""fcifar export, and fcifar train --tensorboard."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

TRAIN = ("--dataset", "tiny", "--threads", 1, "--device", "cpu", "--epochs", 1, "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in bf16, and the data set it was made from."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(
            random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(),
            random.randint(random.key(seed), (size,), 0, 10),
        )
        for seed, size in enumerate((42, 23))
    )
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=5, epochs=2, precision="bf16")
    runtime = Runtime(threads=1, precision="bf16")
    loop.train(place / "run", make_config(recipe, tiny, runtime=runtime), tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_a_network(fcifar, tmp_path: Path) -> None:
    done = fcifar("export", "run", "--to", "new/x.safetensors", "--json", "--quiet")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    path = tmp_path / "new/x.safetensors"
    assert (found["path"], found["format"]) == ("new/x.safetensors", "safetensors")
    assert found["bytes"] == path.stat().st_size
    assert found["check"].pop("largest_difference") < 1e-5, "float32 on both sides"
    assert found["check"] == {
        "images": 23,
        "different": 0,
        "same_predictions": True,
        "source": "tiny, test",
    }
    (tmp_path / "data/tiny.safetensors").unlink()
    shown = fcifar("export", "run/final.safetensors", "--to", "x.pth")
    assert shown.status == 0
    assert fits(shown.out)
    assert "written  x.pth: state_dict, " in shown.out
    assert "1,000 images (random: tiny is not prepared here)" in shown.out
    assert shown.err == "writing and checking x.pth\n"


def test_the_metrics(fcifar, tmp_path: Path) -> None:
    done = fcifar("export", "run", "--to", "m.csv", "--json")
    assert done.status == 0
    found = json.loads(done.out)
    assert (found["format"], found["rows"]) == ("CSV", 2)
    lines = (tmp_path / "m.csv").read_text().splitlines()
    assert lines[0].split(",") == found["columns"]
    assert set(found["columns"]) == {
        *("step", "epoch", "split", "loss", "accuracy", "count", "learning_rate"),
        *("images_per_second", "seconds", "digest"),
    }
    assert len(lines) == 1 + found["rows"]
    shown = fcifar("export", "run", "--to", "again.csv")
    assert shown.out.split() == ["written", "again.csv:", "2", "log", "points,", "10", "columns"]


def test_mistakes_are_one_line_and_leave_nothing(fcifar, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    (tmp_path / "there.pth").write_bytes(b"mine")
    (tmp_path / "there.csv").write_bytes(b"mine")
    for words, message in (
        (("run", "--to", "x.h5"), ".pth, .safetensors, .onnx, .pt2 for the model, or in .csv"),
        (("run", "--to", "there.pth"), "there.pth already exists; choose another name, or give"),
        (("run", "--to", "there.csv"), "there.csv already exists; choose another name, or give"),
        (("nowhere", "--to", "x.pth"), "there is no nowhere"),
        (("nowhere", "--to", "x.csv"), "there is no nowhere"),
        (("run",), "Missing option '--to'"),
        (("run", "--to", "x.csv", "--model", "lenet"), "leave them out"),
        (("run", "--to", "x.pth", "--model", "lenet"), "run records its own model"),
        (("run", "--to", "data"), "is a directory"),
    ):
        done = fcifar("export", *words)
        assert done.status == 2, words
        assert done.out == ""
        assert message in done.err
        assert done.err.count("\n") == 1
    for name in ("there.pth", "there.csv"):
        assert (tmp_path / name).read_bytes() == b"mine"
        assert fcifar("export", "run", "--to", name, "--force", "-q").status == 0
        assert (tmp_path / name).read_bytes() != b"mine"
        (tmp_path / name).unlink()
    assert sorted(tmp_path.iterdir()) == before
    assert fits(fcifar("export", "--help").out)


def test_a_finished_run_whose_network_is_gone_is_not_to_be_resumed(fcifar, tmp_path: Path) -> None:
    (tmp_path / "run/final.safetensors").unlink()
    done = fcifar("export", "run", "--to", "x.pth")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "is gone, though the run is finished; restore it, or train again with" in done.err


def test_a_group(fcifar, tmp_path: Path) -> None:
    assert fcifar("train", *TRAIN, "--replicas", 2, "--out", "group").status == 0
    done = fcifar("export", "group", "--to", "x.pth")
    assert done.status == 2
    assert "export one of them, such as group/seed0" in done.err
    found = json.loads(fcifar("export", "group", "--to", "m.csv", "--json").out)
    assert found["columns"][0] == "run"


def test_without_an_extra_it_is_said_at_once(
    fcifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = ("onnx", "onnxscript", "onnxruntime", "tensorboard")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )
    done = fcifar("export", "run", "--to", "x.onnx")
    assert done.status == 2
    assert "pip install 'fcifar[onnx]', or choose .pth" in done.err
    done = fcifar("train", *TRAIN, "--tensorboard", "--out", "new")
    assert done.status == 2
    assert "pip install 'fcifar[tensorboard]'" in done.err
    assert not (tmp_path / "new").exists()


def test_event_files(fcifar, tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorboard", reason="needs tensorboard: pip install 'fcifar[tensorboard]'"
    )
    assert fcifar("train", *TRAIN, "--tensorboard", "--out", "new").status == 0
    (first,) = (tmp_path / "new/tensorboard").iterdir()
    assert fcifar("train", *TRAIN, "--tensorboard", "--replicas", 2, "--out", "group").status == 0
    assert len(list(tmp_path.glob("group/seed?/tensorboard/events*"))) == 2
    assert fcifar("verify", "new").status == 0
    # Without being asked again, for the run that goes on had them.
    (tmp_path / "new/report.json").unlink()
    done = fcifar("train", "--resume", "new", "--quiet")
    assert done.status == 0, done.err
    (second,) = (tmp_path / "new/tensorboard").iterdir()
    assert first.name != second.name
    assert not list((tmp_path / "run").glob("tensorboard"))
