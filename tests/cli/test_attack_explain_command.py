"""fcifar eval --attack, and --explain of eval and predict: what is printed, written and refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from PIL import Image

from fcifar import data, random, recipes, tensor_files
from fcifar.data import Split, make_dataset
from fcifar.report import draw
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

HERE = ("--threads", 1, "--device", "cpu")
METHODS = ["gradient", "smooth_grad", "integrated_gradients", "grad_cam"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has learned, its data set, and two image files."""
    place = tmp_path_factory.mktemp("place")
    patterns = random.uniform(random.key(9), (10, 3, 4, 4)).repeat_interleave(8, 2)
    patterns = patterns.repeat_interleave(8, 3)

    def images(seed: int, count: int) -> Split:
        labels = torch.arange(count) % 10
        noise = 0.8 * (random.uniform(random.key(seed), (count, 3, 32, 32)) - 0.5)
        return Split(((patterns[labels] + noise).clamp(0, 1) * 255).byte(), labels)

    train, test = images(1, 80), images(2, 30)
    test = test._replace(labels=(test.labels + (torch.arange(30) >= 26)) % 10)  # four mistakes
    tiny = make_dataset("tiny", train, test, tuple("abcdefghij"), "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=8, epochs=12, learning_rate=0.02)
    loop.train(place / "run", make_config(recipe, tiny, runtime=Runtime(threads=1)), tiny)
    for i in range(2):
        pixels = test.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"photo{i}.png")
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(draw, "evaluation", lambda *_, **__: None)  # tests/cli/test_cli.py has it


def test_accuracy_falls_with_eps_to_zero(fcifar, tmp_path: Path) -> None:
    eps = (0.004, 0.02, 0.1, 0.3)
    words = [word for e in eps for word in ("--attack", f"pgd:{e},5")]
    words += ["--attack", "fgsm:0.1", "--attack", "pgd:4,5,l2", "--restarts", 2, *HERE]
    done = fcifar("eval", "run", *words, "--out", "out", "--json", "--quiet")
    assert (done.status, done.err) == (0, "")
    result = json.loads(done.out)
    assert result == json.loads((tmp_path / "out/report.json").read_text())
    attacks = result["attacks"]
    assert (attacks["n"], attacks["of"], attacks["chosen"]) == (30, 30, "all")
    assert attacks["clean"]["accuracy"] == result["accuracy"] > 0.8
    found = [each["accuracy"] for each in attacks["found"]]
    assert [result["accuracy"], *found[:4]] == sorted(
        [result["accuracy"], *found[:4]], reverse=True
    )
    assert found[3] == 0
    assert [each["largest_distance"] for each in attacks["found"][:4]] == pytest.approx(
        eps, rel=1e-3
    )
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "adversarial.png",
        "attacks.png",
    }
    assert imread(tmp_path / "out/attacks.png").shape[2] == 4
    assert fcifar("eval", "run", "--attack", "fgsm:0.1", "--out", "out", *HERE).status == 0
    assert not (tmp_path / "out/attacks.png").exists(), "one attack makes no curve"


def test_a_person_sees_accuracy_under_attack_beside_without(fcifar) -> None:
    words = ("--attack", "fgsm:8/255", "--attack", "pgd:0.5,2,l2", "--attack-images", 12, *HERE)
    shown = fcifar("eval", "run", *words)
    assert shown.status == 0
    assert shown.err == "evaluating\nattacking by fgsm:8/255\nattacking by pgd:0.5,2,l2\n"
    assert fits(shown.out)
    assert "\x1b" not in shown.out
    assert "Under attack, 12 images of 30, drawn at random, by seed 0" in shown.out
    for words in ("none", "8.00/255", "mean distance", "class  "):
        assert words in shown.out


def test_mistakes_are_explained(fcifar, tmp_path: Path) -> None:
    words = ("eval", "run", "--explain", "all", "--out", "out", *HERE)
    shown = fcifar(*words)
    assert shown.status == 0
    assert fits(shown.out)
    assert "drawn  out/explained.png" in shown.out
    result = json.loads(fcifar(*words, "--json", "--quiet").out)
    assert 4 <= len(result["explained"]) <= 8
    for each in result["explained"]:
        assert each["label"] != each["class"]
        difference = each["logit"] - each["black_logit"]
        assert each["integrated_gradients_sum"] == pytest.approx(difference, rel=0.02)
    assert imread(tmp_path / "out/explained.png").shape[2] == 3
    tensors, _ = tensor_files.read(tmp_path / "out/attributions.safetensors")
    assert set(tensors) == {"images", "predicted", *METHODS}
    assert tensors["grad_cam"].shape == (len(result["explained"]), 32, 32)


def test_predictions_are_explained(fcifar, tmp_path: Path) -> None:
    words = ("predict", "run", "photo0.png", "photo1.png", *HERE)
    more = ("--explain", "grad_cam,gradient", "--out", "out")
    shown = fcifar(*words, *more)
    assert shown.status == 0
    assert fits(shown.out)
    assert "drawn  out/explained.png" in shown.out
    tensors, _ = tensor_files.read(tmp_path / "out/attributions.safetensors")
    assert set(tensors) == {"images", "predicted", "gradient", "grad_cam"}
    found = json.loads(fcifar(*words, *more, "--json").out)
    plain = json.loads(fcifar(*words, "--json").out)
    for each, before in zip(found, plain, strict=True):
        explained = each.pop("explained")
        assert each == before
        assert explained["class"] == before["predictions"][0]["class"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "run", "--attack", "fgsm:8"), "such as 8/255"),
        (("eval", "run", "--attack", "deepfool:1"), "it must be fgsm:EPS or pgd:EPS,STEPS"),
        (("eval", "run", "--restarts", 3), "--restarts is of --attack, which is not given"),
        (("eval", "run", "--explain", "all"), "needs a folder for it; give --out DIR"),
        (
            ("eval", "run", "--explain", "gradcam", "--out", "o"),
            "separated by commas; did you mean 'grad_cam'?",
        ),
        (("predict", "run", "photo0.png", "--explain", "all"), "give --out DIR"),
        (("predict", "run", "photo0.png", "--out", "o"), "--out is a folder for --explain"),
    ],
)
def test_what_cannot_be_done_is_one_line(fcifar, words, message: str) -> None:
    done = fcifar(*words, *HERE, "--quiet")
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1


def test_help_fits(fcifar) -> None:
    for command in ("eval", "predict"):
        shown = fcifar(command, "--help").out
        assert "--explain" in shown
        assert fits(shown)
