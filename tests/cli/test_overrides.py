"""What the command line changes of a recipe: --set, --tta, and the recipe's own options."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fcifar import data, recipes
from fcifar.cli.overrides import make_sweep, with_changes
from fcifar.data import Split, make_dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.recipes.recipe import option_flags, option_name
from fcifar.train.config import RunConfig

FLAGS = {field.name: option_flags(field) for field in dataclasses.fields(Recipe)}
TRAIN = ("train", "--dataset", "tiny", "--epochs", 2, "--batch-size", 5, "--threads", 1)
SPEED = recipes.get("speed94")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("epochs=3", 3),
        ("learning_rate=1e-2", 0.01),
        ("learning_rate=1", 1),
        ("compile=false", False),
        ("alternating_flip=false", False),
        ("precision=fp32", "fp32"),
        ("tta=mirror", "mirror"),
        ("mean=0.5,0.4,0.3", (0.5, 0.4, 0.3)),
        ("mean=[0.5, 0.4, 0.3]", (0.5, 0.4, 0.3)),
        ("augment=random_flip,random_crop:4", ("random_flip", "random_crop:4")),
        ("augment=random_flip", ("random_flip",)),
        ('augment=["cutout:8"]', ("cutout:8",)),
        ("augment=rand_augment:2,9", ("rand_augment:2,9",)),
        (
            "augment=random_flip,rand_augment:2,9,random_crop:4,mixup:0.2",
            ("random_flip", "rand_augment:2,9", "random_crop:4", "mixup:0.2"),
        ),
        ('augment=["rand_augment:2,9", "cutout:8"]', ("rand_augment:2,9", "cutout:8")),
        ("augment=none", ()),
        ("augment=", ()),
        ("augment=[]", ()),
        ("resolutions=24:0.5,32", ("24:0.5", "32")),
        ("resolutions=16:0.1,24:0.5,32", ("16:0.1", "24:0.5", "32")),
        ("resolutions=32", ("32",)),
        ("resolutions=none", ()),
        ("milestones=0.5,0.75", (0.5, 0.75)),
        ("milestones=0.5", (0.5,)),
        ("milestones=[0.25]", (0.25,)),
        ("milestones=none", ()),
        ('group_learning_rates={"vector": 0.1}', {"vector": 0.1}),
        ("summary=a=b", "a=b"),
    ],
)
def test_a_field_is_set(change: str, value: Any) -> None:
    changed = with_changes(SPEED, [change])
    name = change.partition("=")[0]
    assert getattr(changed, name) == value
    assert changed == SPEED.replace(**{name: value})


def test_a_field_has_the_name_of_its_option_too() -> None:
    assert with_changes(SPEED, ["lr=1e-2"]) == SPEED.replace(learning_rate=0.01)


def test_a_field_that_an_option_sets_too_is_refused() -> None:
    for change in ("lr=0.1", "learning_rate=0.1"):
        with pytest.raises(UsageError, match="and --lr both set learning_rate; give one of them"):
            with_changes(SPEED, [change], overrides={"learning_rate": 0.2})


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ("widths=8,16,16", {"widths": (8, 16, 16)}),
        ("widths=[8,16]", {"widths": (8, 16)}),
        ("depth=3", {"depth": 3}),
        ("act=silu", {"act": "silu"}),
        ("whiten=false", {"whiten": False}),
        ("logit_scale=0.5", {"logit_scale": 0.5}),
    ],
)
def test_an_option_of_the_network_is_set(change: str, options: dict[str, Any]) -> None:
    changed = with_changes(SPEED, [change])
    expected = {**SPEED.model_options, **options}
    assert changed.model_options == expected
    assert changed == SPEED.replace(model_options=expected)
    assert with_changes(changed, []) is changed


def test_changes_go_together_and_the_last_counts() -> None:
    """Whatever of them alone would be refused."""
    blitz = recipes.get("blitz")
    changed = with_changes(blitz, ["optimizer=adam", "momentum=0", "epochs=3", "epochs=4"])
    assert changed == blitz.replace(optimizer="adam", momentum=0, epochs=4)
    assert with_changes(blitz, ["hidden=32", "dropout=0.5"]).model_options == {
        "hidden": 32,
        "dropout": 0.5,
    }


def test_another_network_comes_without_the_options_of_the_one_before() -> None:
    blitz = recipes.get("blitz")
    changed = with_changes(blitz, ["model=speednet", "widths=8,8", "depth=3"])
    assert changed.model == "speednet"
    assert changed.model_options == {"widths": (8, 8), "depth": 3}
    assert with_changes(blitz, ["model=lenet"]) == blitz
    with pytest.raises(UsageError, match="--set 'widths' is neither a setting of recipes nor"):
        with_changes(SPEED, ["model=resnet18", "widths=8,8"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["epochs"], "--set is 'epochs'; it must be NAME=VALUE"),
        ([""], "--set is ''; it must be NAME=VALUE"),
        (["=3"], "--set '' is neither a setting of recipes nor an option of the model"),
        (["epoch=3"], "--set 'epoch' is neither .* model 'speednet'; fcifar recipes show speed94"),
        (["width=3"], "--set 'width' is neither a setting of recipes nor"),
        (["name=x"], "--set 'name' is neither"),
        (["model_options={}"], "--set 'model_options' is neither"),
        (["epochs=many"], "epochs is 'many'; it must be a whole number from 1 up"),
        (["epochs=1,2"], r"epochs is \[1, 2\]; it must be a whole number"),
        (["epochs=NaN"], "epochs is nan; it must be a whole number"),
        (["epochs="], "epochs is ''; it must be a whole number"),
        (["epochs=" + "9" * 5000], "epochs is '999"),
        (["epochs=" + "[" * 100_000], "epochs is '"),
        (["learning_rate=-1"], "learning_rate is -1; it must be 0, or a number"),
        (["mean=0.5"], "mean is 0.5; it must be three numbers"),
        (["mean=0.5,0.5,x"], r"mean is \(0.5, 0.5, 'x'\); it must be three numbers"),
        (["augment=flop"], "augment is 'flop'; it must be one of random_flip"),
        (["augment=random_flip,9"], "augment is '9'; it must be one of random_flip"),
        (
            ["augment=cutout:8,9"],
            "has 2 numbers, and cutout takes 1; give cutout:SIZE",
        ),
        (["augment=[3]"], r"augment is \(3,\); it must be names"),
        (["resolutions=24,32"], "the parts must rise and end with 1"),
        (["resolutions=8"], "a size must lie between 16 and 64"),
        (["widths=8,x"], "widths is 'x'; it must be a whole number"),
        (["widths=64"], "widths is 64; it must be a list of one to three widths"),
        (["num_classes=3"], "do not fit the model speednet, which takes widths"),
        (["model=foo"], "model is 'foo'; it must be one of lenet"),
        (["model=foo", "widths=8"], "--set 'widths' is neither a setting of recipes nor"),
        (["model=[1]", "widths=8"], "--set 'widths' is neither a setting of recipes nor"),
        (["tta=flip"], "tta is 'flip'; it must be one of none, mirror, translate"),
    ],
)
def test_what_cannot_be_set_is_named(changes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        with_changes(SPEED, changes)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


def test_an_axis_of_a_sweep_has_augmentations_with_several_numbers() -> None:
    config = RunConfig(recipe=SPEED, dataset="none", dataset_digest="0")
    grid = ['augment=none,rand_augment:2,9,["random_flip", "rand_augment:1,3"]']
    made = make_sweep(config, replicas=None, grid=grid, method="loop")
    assert [trial.recipe.augment for trial in made.trials] == [
        (),
        ("rand_augment:2,9",),
        ("random_flip", "rand_augment:1,3"),
    ]


# The commands -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _small_data(tmp_path: Path, make_batch) -> None:
    parts = (Split(*make_batch(size, seed=size)) for size in (42, 23))
    data.save(make_dataset("tiny", *parts, tuple("abcdefghij"), "tests"), tmp_path / "data")


SMALL = ("--set", "widths=8,12,16", "--set", "learning_rate=0.05")


def settings(run: Path) -> tuple[Recipe, dict[str, Any]]:
    about = json.loads((run / "manifest.json").read_text())
    return recipes.from_dict(about["recipe"]), about


def test_train_takes_them_and_eval_measures_with_views(fcifar, tmp_path: Path) -> None:
    words = ("train", "speed94", *TRAIN[1:], *SMALL, "--no-compile", "--precision", "fp32")
    done = fcifar(*words, "--tta", "mirror", "--device", "cpu", "--out", "run", "--json")
    assert done.status == 0, done.err
    report = json.loads(done.out)
    recipe, about = settings(tmp_path / "run")
    assert recipe.model_options["widths"] == (8, 12, 16)
    assert (recipe.learning_rate, recipe.tta) == (0.05, "mirror")
    assert about["compile"] is False
    assert about["runtime"]["precision"] == "fp32"

    evaluate = ("eval", "run", "--json", "--threads", 1, "--device", "cpu", "--precision", "fp32")
    plain = json.loads(fcifar(*evaluate).out)
    assert not [name for name in plain if name.startswith("tta")]
    assert plain["accuracy"] == report["test_accuracy"]
    seen = json.loads(fcifar(*evaluate, "--tta", "mirror").out)
    for name in ("tta", "tta_accuracy", "tta_loss", "tta_interval95"):
        assert seen[name] == report[name]
    assert {name: seen[name] for name in plain} == plain
    shown = fcifar("eval", "run", "--tta", "mirror").out
    assert "with --tta mirror" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*TRAIN, "--set", "epochs"), "--set is 'epochs'; it must be NAME=VALUE"),
        ((*TRAIN, "--set", "widths=8"), "nor an option of the model 'lenet'"),
        ((*TRAIN, "--set", "hidden=-1"), "do not fit the model lenet: --set hidden is -1"),
        ((*TRAIN, "--tta", "flip"), "tta is 'flip'; it must be one of none, mirror, translate"),
        (("train", "--resume", "data", "--set", "epochs=9"), "and --set would change them"),
        (("train", "--resume", "data", "--tta", "none"), "and --tta would change them"),
        (("eval", "data", "--tta", "flip"), "--tta is 'flip'; it must be none or mirror or"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(fcifar, words, message) -> None:
    done = fcifar(*words)
    assert done.status == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", 0), "--batch-size is 0; it must be a whole number"),
        (("--batch-size", 100), "--batch-size is 100, but tiny has 42 training images"),
        (("--set", "batch_size=0"), "--set batch_size is 0; it must be a whole number"),
        (("--set", "lr=x"), "--set lr is 'x'; it must be 0, or a number"),
        (("--sweep", "batch_size=2,0"), "--sweep batch_size is 0; it must be a whole number"),
        (("--lr", "nan"), "--lr is nan; it must be 0, or a number"),
        (("--dropout", 2), "the model lenet: --dropout is 2.0; it must lie in [0, 1)"),
        (("--set", "hidden=x"), "the model lenet: --set hidden is 'x'; it must be a whole"),
        (("--stratify",), "give --valid-fraction, such as 0.2, or --set valid=given"),
        (("--optimizer", "adam"), "--momentum needs the optimizer sgd or muon, not adam; leave it"),
        (("--warmup-steps", 99), "--warmup-steps is 99, but the run has only"),
        (
            ("--warmup-steps", 1, "--set", "warmup_fraction=0.1"),
            "--warmup-steps and --set warmup_fraction both set the warm-up",
        ),
        (("--set", "lr=1", "--lr", 2), "--set 'lr=1' and --lr both set learning_rate"),
    ],
)
def test_messages_name_what_was_typed(fcifar, words, message: str) -> None:
    given = ("train", "--dataset", "tiny", "--threads", 1, "--device", "cpu")
    done = fcifar(*given, *words)
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert message in done.err


def test_messages_about_a_state_dict_name_what_was_typed(fcifar) -> None:
    Path("net.pth").touch()
    for words, message in (
        (("--model", "foo"), "--model is 'foo'; it must be one of lenet"),
        (("--model", "lenet", "--set", "mean=3"), "--set mean is 3; it must be three numbers"),
    ):
        assert message in fcifar("eval", "net.pth", *words).err


@pytest.mark.parametrize(
    ("words", "compiled", "precision"),
    [
        ((), True, "bf16"),
        (("--no-compile",), False, "bf16"),
        (("--compile", "--precision", "fp32"), True, "fp32"),
        (("--set", "compile=false", "--set", "precision=fp32"), False, "fp32"),
    ],
)
def test_what_a_recipe_wishes_holds_where_nobody_says_otherwise(
    fcifar,
    monkeypatch,
    tmp_path: Path,
    words,
    compiled: bool,
    precision: str,
) -> None:
    from fcifar.train import loop, runtime

    asked: list[Any] = []

    def train(run, config, dataset, **options):
        asked.append((config.compile, config.runtime.precision))
        return loop.Interrupted(2, 0)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(runtime, "_has_bf16", lambda: True)
    fcifar("train", "speed94", *TRAIN[1:], "--device", "cpu", "--out", "run", *words)
    fcifar(*TRAIN, "--device", "cpu", "--out", "blitz")
    assert asked == [(compiled, precision), (False, "fp32")]


def test_every_field_says_what_it_is_and_every_option_is_shown(fcifar) -> None:
    texts = {"name", "summary", "source", "notes", "expected"}
    for field in dataclasses.fields(Recipe):
        assert field.name in texts or field.metadata["about"].endswith("."), field.name
    shown = fcifar("train", "--help").out
    for flags in FLAGS.values():
        for flag in "/".join(flags).split("/"):
            assert flag in shown
    assert (option_name("learning_rate"), option_name("drop_last")) == ("lr", "drop_last")
    assert option_name("mean") == "mean"


def test_the_fields_are_known_without_torch() -> None:
    program = "import sys; from fcifar.recipes import Recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
