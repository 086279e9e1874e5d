"""fcifar predict and fcifar compare: a table of 80 columns, one document, one line for an error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ONE = ("--threads", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, pictures, and the data set they were made from."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((42, 23))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, CLASSES, "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=5, epochs=2)
    for seed in (0, 1):
        config = make_config(recipe, tiny, seed=seed, runtime=Runtime(threads=1))
        loop.train(place / f"run{seed}", config, tiny)
    (place / "pictures/more").mkdir(parents=True)
    for row, name in enumerate(("1.png", "2.jpg", "more/3 [red].png")):
        image = Image.fromarray(test.images[row].permute(1, 2, 0).numpy())
        image.resize((32 + row, 32)).save(place / "pictures" / name)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


def test_predict(fcifar, tmp_path: Path) -> None:
    done = fcifar("predict", "run0", "pictures", "--json", "--quiet", *ONE)
    assert done.status == 0
    assert done.err == ""
    found = json.loads(done.out)
    names = ["pictures/1.png", "pictures/2.jpg", "pictures/more/3 [red].png"]
    assert [row["path"] for row in found] == names
    for row in found:
        likely = [guess["probability"] for guess in row["predictions"]]
        assert len(likely) == 5
        assert likely == sorted(likely, reverse=True)
        assert 0 < sum(likely) < 1
        assert {guess["class"] for guess in row["predictions"]} <= set(CLASSES)

    shown = fcifar("predict", "run0/final.safetensors", *names, *ONE)
    assert shown.status == 0
    assert fits(shown.out)
    assert shown.err == "reading images\n"
    head, first, *_ = shown.out.splitlines()
    assert head.split() == ["image", "first", "second", "third", "fourth", "fifth"]
    assert first.split() == [names[0], *(g["class"] for g in found[0]["predictions"])]
    assert "[red].png" in shown.out, "a name is no markup"


def test_predict_names_what_it_leaves_out(fcifar, tmp_path: Path) -> None:
    for name in ("a.cr2", "b.cr2", "notes.txt", "Thumbs.db", ".hidden.png"):
        (tmp_path / "pictures" / name).write_bytes(b"x")
    (tmp_path / "pictures/2.jpg").rename(tmp_path / "pictures/2.jfif")
    done = fcifar("predict", "run0", "pictures", "--json", "--quiet", *ONE)
    assert done.err == "not read: 2 .cr2\n"
    assert len(json.loads(done.out)) == 3


def test_predict_lists_all_that_cannot_be_read(fcifar, tmp_path: Path) -> None:
    for name in ("x.png", "y.png"):
        (tmp_path / "pictures" / name).write_bytes(b"text")
    words = ("predict", "run0", "pictures", "--json", "--quiet", *ONE)
    done = fcifar(*words)
    assert done.status == 2
    *listed, error = done.err.splitlines()
    assert [line.split()[0] for line in listed] == ["pictures/x.png", "pictures/y.png"]
    assert "2 of 5 images cannot be read" in error
    done = fcifar(*words, "--skip-unreadable")
    assert done.status == 0
    assert done.err.startswith("skipped 2 images that cannot be read:\n  pictures/x.png is no")
    assert len(json.loads(done.out)) == 3


def test_predict_sees_what_training_and_evaluation_see(fcifar, tmp_path: Path) -> None:
    """Photographs that are turned, and glyphs whose shape is in their alpha."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            halves = Image.new("RGB", (32, 32), (20 * number, 0, 0))
            halves.paste((255, 255, 20 * number), (0, 0, 32, 16))
            halves.save(folder / "0.jpg", exif=exif)
            glyph = Image.new("RGBA", (32, 32))
            glyph.paste((0, 0, 0, 255), (3 * number, 0, 3 * number + 5, 32))
            glyph.save(folder / "1.png")
    assert fcifar("data", "import", "set", "--name", "set").status == 0
    scores = ("--per-example", "scores.npz", "--dataset", "set", "--quiet", *ONE)
    assert fcifar("eval", "run0", *scores).status == 0
    with np.load(tmp_path / "scores.npz") as file:
        expected = [CLASSES[i] for i in file["prediction"]]
    found = json.loads(fcifar("predict", "run0", "set/test", "--json", "--quiet", *ONE).out)
    assert [row["predictions"][0]["class"] for row in found] == expected


def test_a_name_that_cannot_be_printed_is_shown_all_the_same(fcifar, tmp_path: Path) -> None:
    strange = tmp_path / "odd\n\x1b[31m.png"
    (tmp_path / "pictures/1.png").rename(strange)
    shown = fcifar("predict", "run0", strange.name, *ONE)
    assert shown.status == 0
    assert "odd\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31m.png" in shown.out
    (document,) = json.loads(fcifar("predict", "run0", strange.name, "--json", *ONE).out)
    assert document["path"] == strange.name


def test_predict_draws_a_grid(fcifar, tmp_path: Path) -> None:
    done = fcifar("predict", "run0", "pictures", "--grid", "out/grid.png", *ONE)
    assert done.status == 0
    assert "drawn  out/grid.png" in done.out
    with Image.open(tmp_path / "out/grid.png") as sheet:
        assert sheet.width > sheet.height
    document = fcifar("predict", "run0", "pictures", "--grid", "again.png", "--json", *ONE)
    assert len(json.loads(document.out)) == 3
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out/grid.png").read_bytes()


def test_predict_takes_its_runtime(fcifar) -> None:
    exact = fcifar("predict", "run0", "pictures/1.png", "--json", "--deterministic", *ONE).out
    rough = fcifar("predict", "run0", "pictures/1.png", "--json", "--precision", "bf16", *ONE).out
    a, b = (json.loads(text)[0]["predictions"][0]["probability"] for text in (exact, rough))
    assert a != b
    assert a == pytest.approx(b, rel=0.05)


def test_compare(fcifar) -> None:
    done = fcifar("compare", "run0", "run1", "--json", "--split", "train", *ONE)
    assert done.status == 0
    found = json.loads(done.out)
    assert (found["dataset"], found["split"], found["n"]) == ("tiny", "train", 42)
    assert [row["run"] for row in found["runs"]] == ["run0", "run1"]
    assert [row["seed"] for row in found["runs"]] == [0, 1]
    evaluated = json.loads(fcifar("eval", "run1", "--split", "train", "--json", *ONE).out)
    assert found["runs"][1]["accuracy"] == evaluated["accuracy"]
    assert found["runs"][1]["loss"] == evaluated["loss"]
    assert set(found["comparisons"][0]) == {
        *("first", "second", "difference", "interval95", "only_first", "only_second"),
        *("p_value", "statement"),
    }

    shown = fcifar("compare", "run0", "run1/final.safetensors", "--dataset", "tiny", *ONE)
    assert shown.status == 0
    assert fits(shown.out)
    assert "23 test images of tiny" in shown.out
    assert "B  run1/final.safetensors" in shown.out
    assert any(words in shown.out for words in ("no difference shown", "is better"))


def test_a_mistake_is_one_line_and_exit_code_2(fcifar, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for words, message in (
        (("predict", "run0", "nope.png"), "nope.png does not exist"),
        (("predict", "run0", "notes.txt"), "notes.txt is not an image file"),
        (("predict", "run0", "empty"), "there is no image in empty"),
        (("predict", "nowhere", "pictures"), "there is no nowhere"),
        (("predict", "run0"), "Missing argument"),
        (("predict", "run0", "pictures", "--grid", "empty"), "is a directory"),
        (("predict", "run0", "pictures", "--grid", ""), "is a directory"),
        (("predict", "run0", "pictures", "--device", "tpu"), "must be auto, cpu"),
        (("predict", "run0", *["pictures"] * 134, "--grid", "g.png"), "up to 400 images, not"),
        (("compare", "run0"), "run0 alone cannot be compared"),
        (("compare", "run0", "nowhere"), "there is no nowhere"),
        (("compare", "run0", "run1", "--split", "all"), "--split is 'all'"),
        (("compare", "run0", "run1", "--dataset", "shapes9"), "there is no data set 'shapes9'"),
    ):
        done = fcifar(*words)
        assert done.status == 2, words
        assert done.out == ""
        assert message in done.err
        assert done.err.count("\n") == 1
        assert "Traceback" in fcifar(*words, "--debug").err
    assert not (tmp_path / "g.png").exists()


def test_a_grid_that_cannot_be_written_is_exit_code_1(fcifar, tmp_path: Path) -> None:
    done = fcifar("predict", "run0", "pictures", "--grid", "run0/manifest.json/g.png", *ONE)
    assert done.status == 1
    assert "cannot write run0/manifest.json/g.png" in done.err
    assert done.out == ""


def test_help_fits(fcifar) -> None:
    for command in ("predict", "compare"):
        shown = fcifar(command, "--help")
        assert shown.status == 0
        assert fits(shown.out)
