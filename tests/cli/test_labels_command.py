"""fcifar labels, and --calibrate: what is printed, written, used again and refused."""

import csv
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
from tests.helpers.commands import Outcome, fits

HERE = ("--threads", 1, "--device", "cpu")
FOLDS = ("--recipe", "dropout-adam", "--folds", 3, "--epochs", 4, "--set", "batch_size=20")
IMAGES, FLIPPED = 480, 48


def bands(key: torch.Tensor, size: int) -> Split:
    """Noise with a bright band, whose place is the class: a model learns it in a few steps."""
    label_key, noise_key = random.split(key)
    labels = random.randint(label_key, (size,), 0, 4)
    is_bright = torch.arange(32) // 8 == labels[:, None]
    noise = random.randint(noise_key, (size, 3, 32, 32), 0, 100)
    return Split((noise + 120 * is_bright[:, None, :, None]).byte(), labels)


@pytest.fixture(scope="module")
def flipped() -> torch.Tensor:
    """The rows with a wrong label."""
    return random.permutation(random.key(7), IMAGES)[:FLIPPED]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, flipped: torch.Tensor) -> Path:
    """A data set with a tenth of its labels wrong, and the folds of ``fcifar labels``."""
    place = tmp_path_factory.mktemp("place")
    train, test = bands(random.key(0), IMAGES), bands(random.key(1), 60)
    labels = train.labels.clone()
    labels[flipped] = (labels[flipped] + random.randint(random.key(2), (FLIPPED,), 1, 4)) % 4
    made = make_dataset("bands", Split(train.images, labels), test, tuple("abcd"), "tests")
    data.save(made, place / "data")
    recipe = recipes.get("dropout-adam").replace(batch_size=20, epochs=2, log_every=0)
    config = make_config(recipe, made, runtime=Runtime(threads=1))
    loop.train(place / "run", config, made)
    plain = recipe.replace(valid_fraction=0.0, stratify=False, patience=0, restore_best=False)
    loop.train(place / "plain", config.replace(recipe=plain), made)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FCIFAR_RUNS", str(tmp_path))
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def labels(fcifar, place: Path, tmp_path: Path):
    """``fcifar labels bands`` with words, whose folds are trained once."""
    kept = place / "folds"

    def run(*words: object) -> Outcome:
        if kept.exists() and not (tmp_path / "folds").exists():
            shutil.copytree(kept, tmp_path / "folds")
        done = fcifar("labels", "bands", "--group", "folds", *words, *HERE)
        if not kept.exists() and done.status == 0:
            shutil.copytree(tmp_path / "folds", kept)
        return done

    return run


def test_flipped_labels_are_found(labels, tmp_path: Path, flipped: torch.Tensor) -> None:
    done = labels(*FOLDS, "--no-compile", "--out", "found", "--to", "clean")
    assert done.status == 0, done.err
    assert fits(done.out)
    assert "480 training images" in done.out
    report = json.loads((tmp_path / "found/report.json").read_text())
    rows = [image["row"] for image in report["images"]]
    hits = len(set(rows) & set(flipped.tolist()))
    assert hits >= 0.9 * FLIPPED, "recall"
    assert hits >= 0.9 * len(rows), "precision"
    assert abs(report["estimated"] - FLIPPED) <= 0.25 * FLIPPED
    assert imread(tmp_path / "found/sheet.png").ndim == 3
    with (tmp_path / "found/labels.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(each["row"]) for each in table] == rows
    assert table[0]["image"] == f"train/{rows[0]:05}"
    assert table[0]["given"] != table[0]["suggested"]
    scores = [float(each["self_confidence"]) for each in table]
    assert scores == sorted(scores)
    clean = data.load("clean", tmp_path / "data")
    assert clean.digest == report["written"]["digest"]
    assert len(clean.train_labels) == IMAGES - len(rows)
    assert clean.source.startswith(f"bands without {len(rows)} likely label errors (fcifar labels")
    shown = " ".join(fcifar_info(clean).split())
    assert f"{len(rows)} likely label errors of bands" in shown


def fcifar_info(dataset: data.Dataset) -> str:
    """What ``fcifar data info`` says was left out."""
    from fcifar.cli.data import _preparation

    return str(_preparation(dataset.preparation))


def test_finished_folds_are_used_again(labels, fcifar, tmp_path: Path) -> None:
    assert labels(*FOLDS, "--no-compile", "--quiet").status == 0
    begun = (tmp_path / "folds/fold=1of3/report.json").stat().st_mtime_ns
    first = json.loads(labels("--json", "--quiet").out)
    assert (tmp_path / "folds/fold=1of3/report.json").stat().st_mtime_ns == begun
    assert (len(first["runs"]), first["examined"], first["recipe"]) == (3, IMAGES, "dropout-adam")
    # The same runs, given as a group; one of them, and another filter and rank.
    words = ("labels", "bands", "--json", "--quiet", *HERE)
    again = json.loads(fcifar(*words, "--runs", "folds").out)
    assert again["images"] == first["images"]
    more = ("--filter", "predicted_neq_given", "--rank", "normalized_margin")
    one = json.loads(fcifar(*words, "--runs", "folds/fold=2of3", *more).out)
    assert (one["examined"], one["n"], one["rank"]) == (160, IMAGES, "normalized_margin")
    margins = [image["normalized_margin"] for image in one["images"]]
    assert margins == sorted(margins)
    assert "160 training images, of 480" in fcifar(*words[:2], "--runs", "folds/fold=2of3").out
    # With the same settings, and with others.
    assert labels(*FOLDS, "--quiet").status == 0
    for words, message in (
        (("--recipe", "blitz"), "has 3 runs, not 5 as given"),
        ((*FOLDS[:4], "--set", "batch_size=30"), "has batch_size 20, not 30 as given"),
        ((*FOLDS, "--seed", 1), "has seed 0, not 1 as given"),
    ):
        done = labels(*words)
        assert (done.status, done.out) == (2, "")
        assert message in done.err


def test_interrupted_folds_are_resumed(labels, tmp_path: Path) -> None:
    assert labels(*FOLDS, "--no-compile", "--quiet").status == 0
    whole = json.loads(labels("--json", "--quiet").out)
    (tmp_path / "folds/summary.json").unlink()
    (tmp_path / "folds/fold=2of3/report.json").unlink()
    (tmp_path / "folds/fold=2of3/final.safetensors").unlink()
    shutil.rmtree(tmp_path / "folds/fold=3of3")
    done = labels("--json", "--quiet")
    assert done.status == 0, done.err
    assert json.loads(done.out)["images"] == whole["images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--filter", "all"), "--filter is 'all'; it must be one of prune_by_noise_rate"),
        (("--rank", "loss"), "--rank is 'loss'; it must be one of self_confidence"),
        (("--folds", 1), "--folds is 1; it must be a whole number from 2"),
        (("--runs", "run", "--folds", 3), "--runs are trained already, and --folds would train"),
        (("--runs", "run", "--group", "x"), "and --group would train"),
        (("--runs", "plain"), "plain held out no training images"),
        (("--runs", "nowhere"), "no run of that name"),
        (("--to", "bands"), "there is a data set 'bands'"),
        (("--to", "bands", "--force"), "the data set itself; choose another name"),
        (("--to", "Not a name"), "cannot name a data set"),
        (("--force",), "--force is of --to; give both"),
        (("--group", "run", "--recipe", "blitz"), "already holds a run; choose another"),
        (("--recipe", "nonsense"), "no recipe 'nonsense'"),
    ],
)
def test_mistakes_are_one_line(fcifar, words: tuple[object, ...], message: str) -> None:
    done = fcifar("labels", "bands", *words, *HERE, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


# Temperature --------------------------------------------------------------------------------------


def test_a_temperature_is_kept_and_used(fcifar, tmp_path: Path) -> None:
    done = fcifar("eval", "run", "--calibrate", "--out", "drawn", *HERE, "--quiet")
    assert done.status == 0, done.err
    assert fits(done.out)
    assert "of 49 validation images" in done.out
    report = json.loads((tmp_path / "drawn/report.json").read_text())
    kept = json.loads((tmp_path / "run/calibration.json").read_text())["final"]
    found = report["calibration"]
    assert found["fitted"] == kept
    assert found["before"]["loss"] == report["loss"]
    assert found["before"]["ece"] == report["ece"]
    assert kept["params_digest"] == report["params_digest"]
    assert imread(tmp_path / "drawn/calibration.png").shape[2] == 4
    assert fcifar("verify", "run").status == 0
    assert "run" in fcifar("runs", "list").out
    # What is exported and loaded again has the loss that was reported.
    words = ("--to", "net.safetensors", "--calibrated", "--json", "--quiet", "--threads", 1)
    exported = json.loads(fcifar("export", "run", *words).out)
    assert exported["temperature"] == kept["temperature"]
    evaluated = json.loads(fcifar("eval", "net.safetensors", *HERE, "--json", "--quiet").out)
    assert evaluated["loss"] == pytest.approx(found["after"]["loss"], rel=1e-6)
    assert evaluated["accuracy"] == report["accuracy"]
    fcifar("data", "preview", "bands", "--out", "image.png")
    guesses = [
        json.loads(fcifar("predict", "run", "image.png", *HERE, *more, "--json").out)[0]
        for more in ((), ("--calibrated",))
    ]
    plain, scaled = (
        {g["class"]: g["probability"] for g in guess["predictions"]} for guess in guesses
    )
    (a, p), (b, q) = sorted(plain.items())[:2]
    ratio = torch.tensor([p / q, scaled[a] / scaled[b]]).log()
    assert (ratio[0] / ratio[1]).item() == pytest.approx(kept["temperature"], rel=1e-3)
    assert fcifar("runs", "rm", "run", "--yes").status == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "plain", "--calibrate"), "none in bands; train with --valid-fraction 0.1"),
        (("eval", "run", "plain", "--calibrate"), "--calibrate is of one model, and 2 runs"),
        (("eval", "run", "--calibrate", "--split", "valid"), "and --split is valid; leave"),
        (("export", "run", "--calibrated", "--to", "x.onnx"), "run has no temperature; fit one"),
        (("predict", "run", "data", "--calibrated"), "first with fcifar eval run --calibrate"),
        (
            ("export", "run/final.safetensors", "--calibrated", "--to", "x.safetensors"),
            "--calibrated is of a run directory",
        ),
        (("export", "run", "--calibrated", "--to", "x.csv"), "takes a run's metrics"),
    ],
)
def test_calibrations_that_are_refused(fcifar, words: tuple[object, ...], message: str) -> None:
    done = fcifar(*words, "--threads", 1)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("error: ") == 1
