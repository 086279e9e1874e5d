"""Every command of README and docs is carried out, on small data."""

import runpy
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.data.readers.cifar import CLASSES
from fcifar.recipes.trials import make_trials
from fcifar.train import loop, lr_find, sweep
from fcifar.train.config import make_config
from tests.helpers import forms
from tests.helpers.commands import Person
from tests.helpers.pages import PAGES, README, Block, after_fcifar, blocks, commands, name_of

RUN = "runs/blitz-cifar10-seed0-20261122-101500"
# What a reader writes for the names in capitals, and for numbers that are made for 50,000 images.
WORDS = {
    "runs/blitz-cifar10-seed0-...": RUN,
    "NAME": Path(RUN).name,
    "GROUP": "group",
    "4000": "40",
}
RUNS = (RUN, "runs/second", "runs/third")
INTERRUPTED = {RUN: "stopped", "group": "stopped-group"}


# What a reader has -------------------------------------------------------------------------------


def drawn(key: random.Key, size: int, classes: int) -> Split:
    """Images of noise; every class is there."""
    images = random.randint(key, (size, 3, 32, 32), 0, 256).to(torch.uint8)
    return Split(images, torch.arange(size) % classes)


def prepare(name: str, classes: Iterable[str], root: Path, images: int = 200) -> data.Dataset:
    classes = tuple(classes)
    train, test = (
        drawn(key, size, len(classes))
        for key, size in zip(random.split(random.key(len(name))), (images, 100), strict=True)
    )
    dataset = make_dataset(name, train, test, classes, "tests")
    data.save(dataset, root)
    return dataset


def pictures(folder: Path, names: Iterable[str], size: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name in names:
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that is spoken of."""
    place = tmp_path_factory.mktemp("place")
    cifar10 = prepare("cifar10", CLASSES, place / "data")
    prepare("cifar100", (f"class {i}" for i in range(100)), place / "data")
    prepare("shapes10", "abcdefghij", place / "data", 40)

    blitz = recipes.get("blitz").replace(epochs=2, batch_size=20, log_every=20)
    for seed, run in enumerate(RUNS):
        loop.train(place / run, make_config(blitz, cifar10, seed=seed), cifar10)
    loop.train(place / "stopped", make_config(blitz, cifar10), cifar10, until=30)
    trials = make_trials(blitz, {}, (0, 1))
    asked = sweep.Sweep(trials, "loop", make_config(blitz, cifar10))
    sweep.train(place / "group", asked, cifar10)
    shutil.copytree(place / "group", place / "stopped-group")
    (place / "stopped-group/summary.json").unlink()

    torch.save(load_file(place / RUN / "final.safetensors"), place / "cifar_net.pth")
    conv3 = recipes.make_model(recipes.get("conv3-aug"), 10).init(random.key(0))
    torch.save(conv3.params, place / "net.pth")

    forms.write_tar(place / "cifar-10-python.tar.gz", forms.official())
    forms.write_zip(place / "my_images.zip", forms.class_folders())
    each = [f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(12)]
    for folder in ("photos", "my_photos"):
        pictures(place / folder, each, (40, 50))
    pictures(place / "folder", ["a.png", "b.jpg"], (32, 32))
    pictures(
        place / "pets", [f"{s}/{e}" for s in ("train", "valid", "test") for e in each], (32, 32)
    )

    rng = np.random.default_rng(4)
    arrays = {}
    for split, size in (("train", 40), ("val", 20), ("test", 20)):  # as MedMNIST has them
        arrays[f"{split}_images"] = rng.integers(0, 256, (size, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(size)[:, None] % 9
    np.savez(place / "pathmnist.npz", **arrays)
    corrupted = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    (place / "CIFAR-10-C").mkdir()
    for name in ("fog", "gaussian_noise"):
        np.save(place / f"CIFAR-10-C/{name}.npy", corrupted)
    np.save(place / "CIFAR-10-C/labels.npy", np.tile(np.arange(20) % 10, 5))
    np.save(place / "cifar10.1_v6_data.npy", corrupted[:20])
    np.save(place / "cifar10.1_v6_labels.npy", np.arange(20, dtype=np.int32) % 10)
    shutil.copy(place / "folder/b.jpg", place / "photo.jpg")

    (place / "my_nets.py").write_text(blocks(README, "python")[-1].text)
    names = runpy.run_path(str(place / "my_nets.py"))
    values = {f"model.{name}": value for name, value in names["Net"]().state_dict().items()}
    torch.save({"state_dict": values, "epoch": 3}, place / "last.ckpt")
    (place / "my_package.py").write_text(
        "from torch import nn\nfrom fcifar import models\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n\n\n"
        'models.register("mine", lambda: models.from_module(net))\n'
    )
    return place


# What is typed -----------------------------------------------------------------------------------


def as_typed(words: list[str]) -> list[str]:
    """A command with names in place of those in capitals."""
    runs = iter(RUNS)
    typed = [next(runs) if word in ("RUN", "RUN...") else WORDS.get(word, word) for word in words]
    if "--resume" in typed:
        typed = [INTERRUPTED.get(word, word) for word in typed]
    return typed


def needs(words: list[str]) -> str:
    """What a command asks for that may not be here."""
    if "torchrun" in words:
        return "several processes: tests/runs/test_torchrun.py"
    if "cuda" in words and not torch.cuda.is_available():
        return "a CUDA device"
    return ""


def compiles(block: str) -> bool:
    """Whether a block is about compiled steps, which take a minute to compile."""
    return "--compile" in block or "speed94" in block


def every_block() -> list:
    """Blocks of sh that call fcifar, the same commands once."""
    found: dict[str, tuple[Path, Block]] = {}
    for page in PAGES:
        for block in blocks(page, "sh"):
            typed = [command.words for command in commands(block)]
            if any(after_fcifar(words) is not None for words in typed):
                found.setdefault(str(typed), (page, block))
    return [
        pytest.param(
            block,
            id=f"{name_of(page)}:{block.line}",
            marks=[pytest.mark.slow] if compiles(block.text) else [],
        )
        for page, block in found.values()
    ]


@pytest.mark.parametrize("block", every_block())
def test_what_a_page_says_can_be_typed(
    block: Block, fcifar, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    for name, recipe in recipes.RECIPES.items():
        if recipe.model == "speednet":  # narrow, and with small batches, as the data are few
            widths = tuple(width // 8 for width in recipe.model_options["widths"])
            options = {**recipe.model_options, "widths": widths}
            quick = recipe.replace(
                model_options=options,
                batch_size=100,
                compile=recipe.compile and compiles(block.text),
            )
            monkeypatch.setitem(recipes.RECIPES, name, quick)
    monkeypatch.setattr(lr_find, "FEWEST_STEPS", 10)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` and the command itself do
    left_out = []
    for line, words in commands(block):
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value.replace("~", str(tmp_path)))
        typed = after_fcifar(words)
        if typed is None:
            continue
        if reason := needs(words):
            left_out.append(f"line {line}: {reason}")
            continue
        monkeypatch.setattr("sys.stdin", Person("y\n"))
        done = fcifar(*as_typed(typed))
        assert done.status == 0, f"line {line}: fcifar {' '.join(as_typed(typed))}\n{done.err}"
    if left_out:
        pytest.skip("; ".join(left_out))
