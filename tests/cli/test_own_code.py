"""A user's own networks, recipes and entries of registries, from the command line."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fcifar import data, models, optim, recipes
from fcifar.data import Split, make_dataset
from fcifar.runs import inference
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from tests.helpers.commands import fits

NETS = """
import functools
import torch
from torch import nn
import fcifar

class Net(nn.Module):
    def __init__(self, num_classes=10, hidden=8, rate=0.1):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, hidden, 5, 4), nn.BatchNorm2d(hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(rate), nn.Linear(hidden, num_classes))
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

def plain(num_classes=10, hidden=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, hidden), nn.Tanh(),
                         nn.Linear(hidden, num_classes))

def as_model(*, num_classes=10, hidden=16):
    return fcifar.models.lenet(hidden=hidden, num_classes=num_classes)

def by_name(kind, num_classes=10, **options):
    return {"net": Net, "plain": plain}[kind](num_classes, **options)

small = functools.partial(Net, hidden=4)
RECIPE = fcifar.recipes.get("blitz").replace(name="mine", model="OWN:plain", model_options={})
NUMBER = 3
def broken(): raise RuntimeError("no such net")
def number(): return 3
"""
PACKAGE = """
import fcifar
from OWN import Net, plain
fcifar.models.register("own-net", Net)
fcifar.optim.register("halved-sgd", lambda rate: fcifar.optim.chain(fcifar.optim.sgd(rate),
    fcifar.optim.scale(0.5)))
fcifar.recipes.register_augment("darken", lambda strength=0.5: lambda key, images:
    (images * strength).to(images.dtype))
fcifar.recipes.register_augment("as_it_is", lambda: lambda key, images: images)
fcifar.recipes.register(fcifar.recipes.get("blitz").replace(name="own-recipe", model="own-net",
    model_options={"hidden": 6}, optimizer="halved-sgd", momentum=0.0, augment=("darken:0.7",)))
"""
TRAIN = ("--dataset", "tiny", "--epochs", 1, "--batch-size", 6, "--threads", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_data(tmp_path: Path, make_batch) -> None:
    parts = (Split(*make_batch(size, seed=size)) for size in (42, 23))
    data.save(make_dataset("tiny", *parts, tuple("abcdefghij"), "tests"), tmp_path / "data")


@pytest.fixture
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a module in the current folder, another one for each test."""
    name = re.sub(r"\W", "_", f"own_{request.node.name}")
    (tmp_path / f"{name}.py").write_text(NETS.replace("OWN", name))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def package(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that registers entries when it is imported, and their end."""
    name = f"package_of_{own}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(PACKAGE.replace("OWN", own))
    registries: list[dict[str, Any]] = [models.MODELS, optim.OPTIMIZERS, optim.REGISTERED]
    registries += [recipes.AUGMENTS, recipes.RECIPES]
    before = [dict(registry) for registry in registries]
    monkeypatch.setenv("FCIFAR_IMPORT", name)
    yield name
    sys.modules.pop(name, None)
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize(
    ("factory", "words", "options"),
    [
        ("Net", ("--hidden", 5, "--set", "rate=0.3"), {"hidden": 5, "rate": 0.3}),
        ("plain", ("--set", "hidden=3"), {"hidden": 3}),
        ("as_model", (), {}),
        ("small", (), {}),
    ],
)
def test_a_network_of_ones_own_trains_and_is_read_again(
    fcifar, own: str, tmp_path: Path, factory: str, words: tuple, options: dict[str, Any]
) -> None:
    name = f"{own}:{factory}"
    done = fcifar("train", *TRAIN, "--model", name, *words, "--out", "run", "--json")
    assert done.status == 0, done.err
    about = json.loads((tmp_path / "run/manifest.json").read_text())
    assert (about["recipe"]["model"], about["recipe"]["model_options"]) == (name, options)
    assert about["environment"]["model_code"].startswith(name)
    evaluated = json.loads(fcifar("eval", "run", "--json", "--threads", 1).out)
    assert evaluated["accuracy"] == json.loads(done.out)["test_accuracy"]
    assert fcifar("verify", "run").status == 0
    assert str(tmp_path) not in sys.path


def test_all_that_reads_a_run_of_it_works(fcifar, own: str, tmp_path: Path) -> None:
    words = ("train", *TRAIN, "--model", f"{own}:Net")
    assert fcifar(*words, "--out", "a").status == 0
    assert fcifar(*words, "--seed", 1, "--out", "b").status == 0
    assert fcifar("compare", "a", "b").status == 0
    assert fcifar("reproduce", "a").status == 0
    image = tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    assert fcifar("predict", "a", image).status == 0
    assert fcifar(*words, "--replicas", 2, "--out", "group").status == 0
    assert fcifar("verify", "group").status == 0
    resumed = fcifar("train", "--resume", "a", "--model", "lenet")
    assert resumed.status == 2
    assert "model would change" in resumed.err

    changed = tmp_path / f"{own}.py"
    changed.write_text(changed.read_text() + "\n# another line\n")
    assert "model_code" in fcifar("reproduce", "a").err

    (tmp_path / f"{own}.py").unlink()
    sys.modules.pop(own)
    for command in (
        ("eval", "a"),
        ("predict", "a", image),
        ("reproduce", "a"),
        ("compare", "a", "b"),
        ("train", "--resume", "a"),
        ("eval", "a/final.safetensors"),
        ("eval", "group"),
    ):
        done = fcifar(*command)
        assert done.status == 2, command
        assert done.err.startswith(f"error: the model '{own}:Net' cannot be imported (No module")
        assert done.err.endswith(f"install its package, or run fcifar in the folder of {own}\n")


@pytest.fixture
def saved(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that trains a network of that module and saves its state_dict, wrapped."""
    monkeypatch.syspath_prepend(tmp_path)
    channels = {"mean": (0.3,) * 3, "std": (0.2,) * 3}

    def save(factory: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The run's report, and the words for a command that reads ``net.pth``."""
        recipe = recipes.get("blitz").replace(
            model=f"{own}:{factory}", model_options=options, epochs=1, batch_size=21, **channels
        )
        tiny = data.load("tiny", tmp_path / "data")
        config = make_config(recipe, tiny, runtime=Runtime(threads=1))
        report = loop.train(tmp_path / "run", config, tiny)
        params, buffers = inference.load(tmp_path / "run").variables
        values = {f"module.{name}": value for name, value in {**params, **buffers}.items()}
        torch.save({"state_dict": values, "epoch": 3}, tmp_path / "net.pth")
        words = {**options, "mean": "0.3,0.3,0.3", "std": "0.2,0.2,0.2"}
        return report, ["--model", recipe.model, *(f"--set={k}={v}" for k, v in words.items())]

    return save


@pytest.mark.parametrize(
    ("factory", "options"),
    [("as_model", {"hidden": 9}), ("by_name", {"kind": "net", "hidden": 5})],
)
def test_a_state_dict_of_a_function_of_ones_own(
    fcifar, saved, factory: str, options: dict[str, Any]
) -> None:
    """Also of one that needs its options."""
    report, words = saved(factory, options)
    found = fcifar("eval", "net.pth", *words, "--dataset", "tiny", "--json", "--threads", 1)
    assert json.loads(found.out)["loss"] == report["test_loss"], found.err
    without = [word for word in words if "hidden" not in word]
    wrong = fcifar("eval", "net.pth", *without, "--dataset", "tiny")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert f"{options['hidden']}" in wrong.err


def test_a_state_dict_of_a_network_of_ones_own_is_read_everywhere(
    fcifar, saved, tmp_path: Path
) -> None:
    report, words = saved("Net", {"hidden": 5})
    of_tiny = (*words, "--dataset", "tiny", "--threads", 1)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    found = json.loads(fcifar("eval", "net.pth", *of_tiny, "--json").out)
    assert found["loss"] == report["test_loss"]
    assert found["params_digest"] == report["params_digest"]
    predicted = fcifar("predict", "net.pth", "image.png", *of_tiny, "--json").out
    assert predicted == fcifar("predict", "run", "image.png", "--json", "--threads", 1).out
    compared = json.loads(fcifar("compare", "run", "net.pth", *of_tiny, "--json").out)
    assert {run["params_digest"] for run in compared["runs"]} == {report["params_digest"]}
    assert fcifar("export", "net.pth", "--to", "x.safetensors", *of_tiny).status == 0
    again = fcifar("eval", "x.safetensors", "--dataset", "tiny", "--json", "--threads", 1)
    assert json.loads(again.out)["loss"] == report["test_loss"]
    otherwise = fcifar("eval", "net.pth", *words[:3], "--dataset", "tiny", "--json")
    assert json.loads(otherwise.out)["loss"] != report["test_loss"], "mean and std count"
    mistakes = (
        (words[:2], "conv.0.weight is [5, 3, 5, 5], not [8, 3, 5, 5]"),
        ((*words, "--set", "learning_rate=3"), "--set 'learning_rate' changes nothing of a"),
        ((*words, "--set", "hidden=none"), "hidden"),
    )
    evaluate, *others = (
        ("eval", "net.pth"),
        ("predict", "net.pth", "image.png"),
        ("compare", "run", "net.pth"),
        ("export", "net.pth", "--to", "x.pth"),
    )
    tried = [(evaluate, each) for each in mistakes] + [(each, mistakes[0]) for each in others]
    for command, (wrong, message) in tried:
        done = fcifar(*command, *wrong, "--dataset", "tiny")
        assert (done.status, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert message in done.err
        assert not (tmp_path / "x.pth").exists()


def test_a_recipe_of_ones_own(fcifar, own: str, tmp_path: Path) -> None:
    done = fcifar("train", f"{own}:RECIPE", *TRAIN, "--out", "run", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["recipe"] == "mine"
    shown = fcifar("recipes", "show", f"{own}:RECIPE", "--json").out
    assert json.loads(shown)["model"] == f"{own}:plain"
    refused = fcifar("train", f"{own}:NUMBER", *TRAIN)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "is 3; it must be a Recipe" in refused.err


def test_a_model_of_the_registry_comes_without_the_options_of_the_recipes(
    fcifar, tmp_path: Path
) -> None:
    assert fcifar("train", *TRAIN, "--model", "conv3", "--dropout", 0.1, "--out", "run").status == 0
    recipe = json.loads((tmp_path / "run/manifest.json").read_text())["recipe"]
    assert (recipe["model"], recipe["model_options"]) == ("conv3", {"dropout": 0.1})
    assert fcifar("train", *TRAIN, "--model", "lenet", "--out", "same").status == 0
    recipe = json.loads((tmp_path / "same/manifest.json").read_text())["recipe"]
    assert recipe["model_options"] == {"hidden": 84}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "OWN:Net", "--set", "width=3"), "nor an option of the model 'OWN:Net'"),
        (("--model", "OWN:Net", "--dropout", 0.1), "do not fit the model OWN:Net, which takes hi"),
        (("--model", "OWN:Net", "--set", "rate=7"), "OWN:Net: the module cannot be made: dropout"),
        (("--model", "OWN:Net", "--dp-clip", 1), "OWN:Net has batch norm; take lenet or conv3"),
        (("--model", "OWN:Nett"), "cannot be imported: there is no Nett in OWN"),
        (("--model", "OWN:NUMBER"), "is 3; it must be a class of nn.Module, or a function"),
        (("--model", "OWN:nn.Linear"), "the module cannot be made: Linear.__init__() missing"),
        (("--model", "OWN:broken"), "the model OWN:broken cannot be used: no such net"),
        (("--model", "OWN:number"), "it gives 3; a model's factory must give a fcifar.Model or"),
        (("--model", "OWN:"), "it must be MODULE:NAME, such as my_nets:Net"),
        (("--model", "../OWN:Net"), "it must be MODULE:NAME, such as my_nets:Net"),
        (("--model", "nowhere_at_all:Net"), "cannot be imported (No module named"),
        (("--model", "os:system"), "os is a part of Python; name a module of yours"),
        (("--model", "OWN:fcifar.models.lenet"), "it must be a class of nn.Module, or a function"),
        (("--model", "torch.hub:load"), "does not say that it returns one"),
        (("--model", "lenett"), "it must be one of lenet, conv3, speednet, resnet18, resnet20, "),
    ],
)
def test_mistakes_are_one_line(fcifar, own: str, words: tuple, message: str) -> None:
    done = fcifar("train", *TRAIN, *(str(word).replace("OWN", own) for word in words))
    assert done.status == 2
    assert message.replace("OWN", own) in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nowhere_at_all", "No module"),
        ("1 / 0", "division by zero"),
        ("raise SystemExit", ""),
    ],
)
def test_a_module_that_fails_is_one_line(
    fcifar, own: str, tmp_path: Path, monkeypatch, code: str, message: str
) -> None:
    (tmp_path / f"{own}.py").write_text(code)
    done = fcifar("train", *TRAIN, "--model", f"{own}:Net")
    assert done.status == 2
    assert f"cannot be imported ({message}" in done.err
    assert done.err.count("\n") == 1
    monkeypatch.setenv("FCIFAR_IMPORT", own)
    done = fcifar("recipes")
    assert done.status == 2
    assert f"$FCIFAR_IMPORT has '{own}', which cannot be imported ({message}" in done.err
    assert done.err.count("\n") == 1


@pytest.fixture
def plugin(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A distribution that declares the module ``own`` as a plugin."""
    about = tmp_path / f"dist_{own}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{own}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[fcifar.plugins]\nmine = {own}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield own
    sys.modules.pop(own, None)


def test_an_installed_plugin_adds_its_entries(fcifar, plugin: str, tmp_path: Path) -> None:
    register = "from fcifar import optim\noptim.register('plugin-sgd', optim.sgd)\n"
    (tmp_path / f"{plugin}.py").write_text(register)
    done = fcifar("recipes", "parts")
    assert done.status == 0, done.err
    assert "plugin-sgd" in done.out


def test_a_plugin_that_fails_is_one_line(fcifar, plugin: str, tmp_path: Path) -> None:
    (tmp_path / f"{plugin}.py").write_text("1 / 0")
    done = fcifar("recipes")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert f"the package dist-{plugin} has the plugin '{plugin}', which cannot be" in done.err
    assert "division by zero" in done.err
    assert fcifar("recipes", "--help").status == 0


LATE = """
import torch
from torch import nn
import fcifar
CALLS = []

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(3072), nn.Linear(3072, num_classes)
    def forward(self, x):
        CALLS.append(1)
        MISTAKE
        return self.fc(self.norm(x.flatten(1)))

def late(images):
    raise LookupError("no more")
fcifar.recipes.register_augment("OWN", lambda: lambda key, images: late(images))
"""


@pytest.mark.parametrize(
    ("mistake", "words", "message"),
    [
        ("if len(CALLS) > 20: raise RuntimeError('two\\nlines')", (), "RuntimeError: two lines"),
        ("if len(CALLS) > 20: {}['width']", (), "KeyError: 'width'"),
        ("", ("--augment", "OWN", "--compile"), "LookupError: no more"),
        ("", ("--augment", "OWN"), "LookupError: no more"),
        ("", ("--batch-size", 41), "batches of 41 of 42 images leave one image alone"),
        ("", ("--batch-size", 1), "give another --batch-size"),
        ("x = x.sum(1) @ torch.linalg.inv(x[0, 0].float())", ("--precision", "bf16"), "precision"),
    ],
)
def test_no_traceback_reaches_a_user(
    fcifar, own: str, tmp_path: Path, monkeypatch, mistake: str, words: tuple, message: str
) -> None:
    """What goes wrong after the model was made: one line, with the line of their code."""
    (tmp_path / f"{own}.py").write_text(LATE.replace("MISTAKE", mistake).replace("OWN", own))
    monkeypatch.setenv("FCIFAR_IMPORT", own)
    given = (str(word).replace("OWN", own) for word in words)
    train = ("train", *TRAIN, "--epochs", 9, "--model", f"{own}:Net", *given, "--quiet")
    done = fcifar(*train)
    assert (done.status, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("error: ")
    assert message in done.err
    assert f"{own}.py, line " in done.err
    assert "Traceback" in fcifar(*train, "--debug").err
    recipes.AUGMENTS.pop(own, None)


def test_a_mistake_of_ours_is_one_line_too(fcifar, monkeypatch) -> None:
    monkeypatch.setattr(recipes, "names", None, raising=False)
    monkeypatch.setattr(recipes, "RECIPES", 3)
    done = fcifar("recipes")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert re.match(r"error: fcifar stopped with \w+Error: .* line \d+\); add --debug", done.err)


# Registries ---------------------------------------------------------------------------------------


def test_the_entries_of_a_package_are_listed_and_train(
    fcifar, package: str, tmp_path: Path, monkeypatch
) -> None:
    assert "own-recipe" in fcifar("recipes").out
    listed = json.loads(fcifar("recipes", "parts", "--json").out)
    assert listed["models"]["own-net"] == ["hidden", "rate"]
    assert "halved-sgd" in listed["optimizers"]
    assert {"darken", "as_it_is"} <= set(listed["augmentations"])
    shown = fcifar("recipes", "parts").out
    assert fits(shown)
    for name in ("own-net", "halved-sgd", "darken", "random_flip", "cosine"):
        assert name in shown
    done = fcifar("train", "own-recipe", *TRAIN, "--out", "run")
    assert done.status == 0, done.err
    words = ("--optimizer", "halved-sgd", "--momentum", 0, "--set", "weight_decay=0.1")
    words += ("--model", "own-net", "--augment", "as_it_is,darken")
    done = fcifar("train", *TRAIN, *words, "--out", "other")
    assert done.status == 0, done.err
    assert fcifar("eval", "run").status == 0
    for words, message in (
        (("--augment", "as_it_is:3"), "has a strength, and as_it_is takes none"),
        (("--optimizer", "halved-sgd"), "needs the optimizer sgd or muon, not halved-sgd"),
        (("--set", "model=own-net", "--set", "width=3"), "nor an option of the model 'own-net'"),
    ):
        refused = fcifar("train", *TRAIN, *words)
        assert refused.status == 2
        assert message in refused.err

    monkeypatch.delenv("FCIFAR_IMPORT")
    for registry in (models.MODELS, optim.REGISTERED, recipes.RECIPES):
        for name in ("own-net", "halved-sgd", "own-recipe"):
            registry.pop(name, None)
    refused = fcifar("eval", "run")
    assert refused.status == 2
    assert "model is 'own-net'; it must be one of" in refused.err
    assert "$FCIFAR_IMPORT" in refused.err


def test_names_are_words_and_taken_once(package: str, fcifar) -> None:
    fcifar("recipes")
    for register in (models.register, optim.register, recipes.register_augment):
        for name in ("", "a:b", "a b", "-a", "3", "é", 3, "a,b"):
            with pytest.raises(ValueError, match=r"the name of an? \w+ is .* it must be letters"):
                register(name, lambda: None)
        with pytest.raises(ValueError, match="it must be a function"):
            register("fine", 3)
    for register, name in (
        (models.register, "lenet"),
        (models.register, "own-net"),
        (optim.register, "sgd"),
        (optim.register, "halved-sgd"),
        (recipes.register_augment, "cutout"),
    ):
        with pytest.raises(ValueError, match=f"is called {name} already; choose another name"):
            register(name, lambda: None)
    with pytest.raises(ValueError, match="a recipe is called blitz already"):
        recipes.register(recipes.get("blitz"))
    with pytest.raises(ValueError, match="it must be a Recipe"):
        recipes.register("blitz")
