"""fcifar runs, and where fcifar train puts what nobody gives a place."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from fcifar import data
from fcifar.data import Split, make_dataset
from tests.helpers.commands import Person, fits

TRAIN = ("train", "--dataset", "tiny", "--batch-size", 7, "--threads", 1, "--device", "cpu", "-q")


@pytest.fixture(autouse=True)
def _tiny(tmp_path: Path, make_batch) -> None:
    splits = (Split(*make_batch(n, seed=s)) for n, s in ((42, 1), (23, 2)))
    data.save(make_dataset("tiny", *splits, tuple("abcdefghij"), "tests"), tmp_path / "data")


def test_commands_take_a_run_by_its_name(fcifar, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FCIFAR_RUNS", "mine")
    assert fcifar(*TRAIN, "--epochs", 1).status == 0
    (run,) = (tmp_path / "mine").iterdir()
    for command in (
        ("eval", run.name, run.name, "-q"),
        ("compare", f"mine/{run.name}", run.name, "-q"),
        ("report", run.name),
        ("export", run.name, "--to", "metrics.csv", "-q"),
        ("reproduce", run.name, "-q"),
        ("verify", run.name),
        ("train", "--resume", run.name, "-q"),
    ):
        done = fcifar(*command)
        assert done.status == 0, (command, done.err)
    wrong = fcifar("eval", run.name[:-1])
    assert wrong.status == 2
    assert wrong.err == (
        f"error: there is no {run.name[:-1]}, and no run of that name in mine; did you mean "
        f"{run.name!r}?\n"
    )
    (tmp_path / run.name).touch()  # a path that is there comes before a name
    assert fcifar("verify", run.name).status == 2


def test_every_command_on_runs_takes_their_folder(fcifar, tmp_path: Path) -> None:
    there = ("--runs-dir", "mine")
    assert fcifar(*TRAIN, *there, "--epochs", 1).status == 0
    (run,) = (tmp_path / "mine").iterdir()
    Image.new("RGB", (32, 32)).save("image.png")
    for command in (
        ("eval", run.name, "-q"),
        ("predict", run.name, "image.png", "-q"),
        ("compare", run.name, run.name, "-q"),
        ("report", run.name),
        ("export", run.name, "--to", "metrics.csv"),
        ("reproduce", run.name, "-q"),
        ("verify", run.name),
        ("train", "--resume", run.name, "-q"),
        ("runs", "show", run.name),
    ):
        assert fcifar(*command, *there).status == 0, command
        missing = fcifar(*command)
        assert missing.status == 2
        assert f"there is no {run.name}, and no run of that name in runs; " in missing.err
        assert missing.err.count("\n") == 1


def test_a_run_is_listed_shown_and_removed(fcifar, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FCIFAR_RUNS", "mine")
    done = fcifar(*TRAIN, "--epochs", 1, "--lr", 0.01)
    assert done.status == 0
    (run,) = (tmp_path / "mine").iterdir()
    assert re.fullmatch(r"blitz-tiny-seed0-\d{8}-\d{6}", run.name)
    assert not (tmp_path / "runs").exists()

    listed = fcifar("runs", "list")
    assert listed.status == 0
    assert fits(listed.out)
    assert run.name in listed.out
    assert "blitz on tiny, seed 0" in listed.out
    (entry,) = json.loads(fcifar("runs", "list", "--json").out)
    report = json.loads((run / "report.json").read_text())
    assert entry["test_accuracy"] == report["test_accuracy"]
    assert (entry["recipe"], entry["dataset"], entry["seed"]) == ("blitz", "tiny", 0)
    assert (entry["state"], entry["resume"]) == ("finished", None)

    shown = fcifar("runs", "show", run.name)
    assert fits(shown.out)
    for words in ("batch_size 7, not 4", "epochs 1, not 2", "learning_rate 0.01, not 0.001"):
        assert words in shown.out
    assert f"fcifar reproduce mine/{run.name}" in shown.out
    assert report["params_digest"] in shown.out
    facts = json.loads(fcifar("runs", "show", f"mine/{run.name}", "--json").out)
    assert set(facts["changes"]) == {"batch_size", "epochs", "learning_rate"}
    assert facts["report"]["test_accuracy"] == report["test_accuracy"]

    refused = fcifar("runs", "rm", run.name)
    assert refused.status == 2
    assert "pass --yes" in refused.err
    monkeypatch.setattr("sys.stdin", Person("n\n"))
    refused = fcifar("runs", "rm", run.name)
    assert refused.status == 2
    assert "remove 1 run?" in refused.err
    assert run.exists()
    monkeypatch.setattr("sys.stdin", Person("y\n"))
    assert fcifar("runs", "rm", run.name).status == 0
    assert not run.exists()
    assert "there is no run in mine yet" in fcifar("runs", "list").out


def test_an_interrupted_run_says_how_to_go_on(fcifar, tmp_path: Path) -> None:
    assert fcifar(*TRAIN, "--epochs", 1, "--out", "runs/one").status == 0
    (tmp_path / "runs/one/report.json").unlink()
    done = fcifar("runs", "list")
    assert "interrupted" in done.out
    assert done.out.splitlines()[-1] == "resume with: fcifar train --resume runs/one"
    assert "fcifar train --resume runs/one" in fcifar("runs", "show", "one").out
    (entry,) = json.loads(fcifar("runs", "list", "--json").out)
    assert entry["resume"] == "fcifar train --resume runs/one"
    assert fcifar(*entry["resume"].split()[1:], "-q").status == 0
    (entry,) = json.loads(fcifar("runs", "list", "--json").out)
    assert entry["state"] == "finished"


def test_groups(fcifar, tmp_path: Path) -> None:
    sweep = ("--sweep", "lr=0.01,0.02", "--runs-dir", "here", "--epochs", 1)
    assert fcifar(*TRAIN, *sweep).status == 0
    (group,) = (tmp_path / "here").iterdir()
    (entry,) = json.loads(fcifar("runs", "list", "--runs-dir", "here", "--json").out)
    assert (entry["members"], entry["state"]) == (2, "finished")
    shown = fcifar("runs", "show", group.name, "--runs-dir", "here")
    assert fits(shown.out)
    assert "lr=0.01" in shown.out
    assert re.search(r"swept +lr\n| +lr +$", shown.out, re.MULTILINE)
    document = json.loads(fcifar("runs", "show", group, "--json").out)
    assert [run["state"] for run in document["runs"]] == ["finished", "finished"]
    removed = fcifar("runs", "rm", group.name, "--runs-dir", "here", "--yes", "--json")
    assert json.loads(removed.out)["bytes"] == entry["bytes"]
    assert not group.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("runs", "show", "nope"), "there is no nope, and no run of that name in runs"),
        (("runs", "show", "data"), "data is not a run directory"),
        (("runs", "rm", "data", "--yes"), "data is not a run directory"),
        (("runs", "rm"), "Missing argument"),
        ((*TRAIN, "--out", "a", "--runs-dir", "b"), "give one of them"),
        (
            ("train", "--resume", "a", "--runs-dir", "b"),
            "there is no a, and no run of that name",
        ),
    ],
)
def test_mistakes_are_one_line(fcifar, tmp_path: Path, words, message: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = fcifar(*words)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
