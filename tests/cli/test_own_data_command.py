"""fcifar data with somebody's own pictures, and with the sets that can be fetched."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcifar.data.catalog import KNOWN
from tests.helpers.commands import fits


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Fifty classes of three pictures, none of them 32x32."""
    for number in range(50):
        folder = tmp_path / "My Photos" / f"kind {number:02}"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40 + i, 50), (5 * number, 50 * i, 0)).save(folder / f"{i}.jpg")
    return tmp_path / "My Photos"


def test_photos_become_a_data_set_that_trains(fcifar, photos: Path, tmp_path: Path) -> None:
    done = fcifar("data", "import", photos)
    assert done.status == 2
    assert "add --test-fraction 0.1" in done.err.splitlines()[-1]
    words = ("data", "import", photos, "--test-fraction", 0.3)
    assert "add --resize crop or --resize stretch" in fcifar(*words).err
    done = fcifar(*words, "--resize", "crop")
    assert done.status == 0
    assert fits(done.out)
    assert "kind 07 and 42 more" in done.out
    assert "fcifar train --dataset my-photos" in done.out
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["my-photos.safetensors"]

    info = fcifar("data", "info", "my-photos")
    assert fits(info.out)
    assert "... and 20 classes more" in info.out
    assert "100 + 50" in info.out
    train = ("train", "--dataset", "my-photos", "--epochs", 1, "--threads", 1, "--device", "cpu")
    trained = fcifar(*train, "--out", "run", "-q")
    assert trained.status == 0
    assert fits(trained.out)
    assert "... of 50 classes; --json and report.json have all" in trained.out
    measured = fcifar("eval", "run", "--threads", 1, "--device", "cpu")
    assert fits(measured.out)
    report = json.loads(fcifar("eval", "run", "--threads", 1, "--json").out)
    assert len(report["per_class"]) == len(report["confusion"]) == 50
    shown = fcifar("runs", "show", "run")
    assert "100 + 50 images of 50 classes" in " ".join(shown.out.split())


def test_pictures_that_cannot_be_read_are_listed_and_skipped(fcifar, photos: Path) -> None:
    for number, content in enumerate((b"text", b"", b"\xff\xd8\xff")):
        (photos / f"kind 0{number}" / "bad.jpg").write_bytes(content)
    (photos / "kind 09/raw.cr2").write_bytes(b"II*")
    words = ("data", "import", photos, "--test-fraction", 0.3, "--resize", "crop", "-q")
    done = fcifar(*words)
    assert done.status == 2
    *listed, error = done.err.splitlines()
    assert [line.split(" is ")[0].split(" cannot ")[0].strip() for line in listed] == [
        f"kind 0{number}/bad.jpg" for number in range(3)
    ]
    assert "3 of 153 images cannot be read" in error
    assert "add --skip-unreadable" in error

    done = fcifar(*words, "--skip-unreadable")
    assert done.status == 0
    assert fits(done.out)
    assert "left out     1 .cr2, 3 that cannot be read" in done.out
    assert "pixels       150 resized (crop)" in done.out
    info = fcifar("data", "info", "my-photos")
    assert fits(info.out)
    assert "left out  1 .cr2, 3 that cannot be read" in info.out
    found = json.loads(fcifar("data", "info", "my-photos", "--json").out)["preparation"]
    assert (found["images"], found["resized"], found["unreadable"]) == (150, 150, 3)
    assert found["left_out"] == {".cr2": 1}
    again = json.loads(fcifar(*words, "--skip-unreadable", "--force", "--json").out)
    assert again["preparation"] == found


def test_another_seed_holds_other_images_out(fcifar, photos: Path) -> None:
    words = ("data", "import", photos, "--test-fraction", 0.3, "--resize", "stretch", "--json")
    digests = {
        json.loads(fcifar(*words, "--seed", seed, "--name", f"set{seed}").out)["digest"]
        for seed in (0, 1)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 1), "--seed needs --test-fraction; give that, too"),
        (("--test-fraction", 0), "--test-fraction is 0.0; it must lie between 0 and 1"),
        (("--test-fraction", 0.1, "--seed", 2**32), "--seed is 4294967296"),
        (("--labels", "fine"), "--labels does not go with a folder of class folders"),
    ],
)
def test_mistakes_are_one_line(fcifar, photos: Path, words: tuple, message: str) -> None:
    done = fcifar("data", "import", photos, "-q", *words)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1


def numbers(count: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Images of one colour each, and labels in turn."""
    shades = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(shades, (count, 32, 32, 3)), np.arange(count) % classes


CPU = ("--threads", 1, "--device", "cpu", "-q")


def test_given_validation_images_from_import_to_report(fcifar, tmp_path: Path) -> None:
    parts = {"train": numbers(40), "val": numbers(30), "test": numbers(20)}
    arrays = {f"x_{k}": v[0] for k, v in parts.items()} | {f"y_{k}": v[1] for k, v in parts.items()}
    np.savez(tmp_path / "mine.npz", **arrays, extra=np.zeros(3))
    done = fcifar("data", "import", "mine.npz", "-q")
    assert done.status == 0
    assert fits(done.out)
    assert "40 for training, 30 for validation, 20 for testing" in done.out
    assert "without 1 other: extra" in done.out
    assert "fcifar train --dataset mine --set valid=given" in done.out
    for words in (("data", "list"), ("data", "info", "mine")):
        shown = fcifar(*words)
        assert fits(shown.out)
        assert "valid" in shown.out
    assert json.loads(fcifar("data", "info", "mine", "--json").out)["valid_counts"] == [3] * 10
    assert json.loads(fcifar("data", "list", "--json").out)[0]["valid_size"] == 30
    assert fcifar("data", "preview", "mine").status == 0

    train = ("train", "blitz", "--dataset", "mine", "--set", "valid=given", *CPU)
    both = fcifar(*train, "--valid-fraction", 0.1)
    assert both.status == 2
    assert "valid is given, which takes the validation images of the data set" in both.err
    done = fcifar(*train, "--epochs", 1, "--restore-best", "--out", "run")
    assert done.status == 0, done.err
    assert "of 30 images" in done.out
    assert fits(done.out)
    shown = fcifar("runs", "show", "run")
    assert "30 images of the data set's own" in shown.out
    measured = fcifar("eval", "run", "--split", "valid", *CPU, "--json")
    assert json.loads(measured.out)["n"] == 30
    page = fcifar("report", "run", "--html", "page.html", "-q")
    assert page.status == 0
    assert "of 30 images" in (tmp_path / "page.html").read_text()

    # A recipe that holds some out by itself does so no longer.
    settings = json.loads(fcifar("recipes", "show", "dropout-adam", "--json").out)
    assert settings["valid_fraction"] == 0.1
    assert settings["valid"] == "fraction"
    done = fcifar(
        *("train", "dropout-adam", *train[2:]),
        "--epochs",
        1,
        "--batch-size",
        8,
        "--out",
        "other",
        "--json",
    )
    assert done.status == 0, done.err
    assert json.loads(done.out)["valid_n"] == 30


def test_a_test_set_alone_is_measured_on_and_not_trained_on(fcifar, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "digits.npz", **{f"{k}_train": v for k, v in zip("xy", numbers(40), strict=True)}
    )
    images, labels = numbers(50)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "classes.npy", np.array([str(i) for i in range(10)]))
    done = fcifar("data", "import", "fog.npy", "--severity", 3, "-q")
    assert done.status == 0
    assert fits(done.out)
    assert "10 for testing" in done.out
    name = "corrupted-c-fog-3"
    assert f"fcifar eval RUN --dataset {name}" in done.out
    info = fcifar("data", "info", name)
    assert fits(info.out)
    assert "none: a test set alone" in info.out
    assert fcifar("data", "verify", name).status == 0
    assert fcifar("data", "preview", name).status == 0
    for more in ((), ("--replicas", 2)):
        done = fcifar("train", "--dataset", name, *CPU, *more)
        assert done.status == 2
        assert f"{name} is a test set without training images; train on another" in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()

    assert fcifar("data", "import", "digits.npz", "--test-fraction", 0.5, "-q").status == 0
    train = ("train", "blitz", "--dataset", "digits", *CPU, "--epochs", 1, "--out", "run")
    assert fcifar(*train).status == 0
    measured = fcifar("eval", "run", "--dataset", name, *CPU, "--json")
    assert json.loads(measured.out)["n"] == 10
    compared = fcifar("compare", "run", "run", "--dataset", name, "--json", *CPU)
    assert json.loads(compared.out)["n"] == 10
    done = fcifar("eval", "run", "--dataset", name, "--split", "train", *CPU)
    assert done.status == 2
    assert "use --split test" in done.err


def test_what_can_be_fetched(fcifar) -> None:
    shown = fcifar("data", "fetch", "--list")
    assert fits(shown.out)
    assert all(name in shown.out for name in KNOWN)
    assert [k["name"] for k in json.loads(fcifar("data", "fetch", "--list", "--json").out)] == list(
        KNOWN
    )


def test_training_on_a_known_set_fetches_it(fcifar, monkeypatch, tmp_path: Path) -> None:
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    done = fcifar("train", "--dataset", "cifar100")
    assert done.status == 1
    note, error = done.err.splitlines()
    assert "cifar100 is not prepared" in note
    assert "fetching it (169 MB)" in note
    assert "--dataset shapes10" in error
    assert "fcifar data import" in error
    assert not (tmp_path / "data").exists()
