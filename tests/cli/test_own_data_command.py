"""fcifar data with somebody's own pictures, and with the sets that can be fetched."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fcifar.data.known import KNOWN
from tests.commands import fits


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
        (("--seed", 1), "--seed chooses what --test-fraction holds out; give that too"),
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
