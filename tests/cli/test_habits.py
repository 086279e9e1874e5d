"""What a person expects of a command line: completion, colours, a guess at what was meant."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fcifar import cli, recipes
from fcifar.cli import completion
from fcifar.errors import did_you_mean

START = "import sys; sys.argv[0] = 'fcifar'; from fcifar.cli import main; "


def run(code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    quiet = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "FCIFAR_RUNS")
    kept = {name: value for name, value in os.environ.items() if name not in quiet}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", START + code, *words],
        env={**kept, "COLUMNS": "80", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# Home ---------------------------------------------------------------------------------------------


OTHER_WAYS = [pytest.param(way, marks=pytest.mark.slow) for way in ("argument", "variable")]


@pytest.mark.parametrize("way", ["option", *OTHER_WAYS])
def test_a_tilde_is_the_home_folder(tmp_path: Path, way: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    words = ("data", "import", str(tmp_path / "a.npz"), "--name=set", "--json")
    images, labels = np.zeros((4, 3, 32, 32), np.uint8), np.arange(4) % 2
    np.savez(
        home / "a.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    if way == "argument":
        done = run("main()", *words[:2], "~/a.npz", *words[3:], "--data-dir", "~/d", HOME=str(home))
    else:
        shutil.copy(home / "a.npz", tmp_path)
        option = ["--data-dir=~/d"] if way == "option" else []
        variables = {"FCIFAR_DATA": "~/d"} if way == "variable" else {}
        done = run("main()", *words, *option, HOME=str(home), **variables)
    assert done.returncode == 0, done.stderr
    assert (home / "d/set.safetensors").exists()
    (home / "runs/mine").mkdir(parents=True)
    (home / "runs/mine/manifest.json").write_text("{}")
    if way == "variable":
        done = run("main()", "runs", "list", "--json", HOME=str(home), FCIFAR_RUNS="~/runs")
    else:
        done = run("main()", "runs", "list", "--json", "--runs-dir=~/runs", HOME=str(home))
    assert "mine" in done.stdout
    assert not list(Path().glob("~*"))


def test_a_tilde_elsewhere_stays() -> None:
    words = ("--out=a~b", "--set", "x=~/y", "a~", "~no-such-user/x", "--name=~no-such-user")
    assert [cli._expand_home(word) for word in words] == list(words)
    assert cli._expand_home("--out=~/x") == "--out=" + os.path.expanduser("~/x")


# Completion ---------------------------------------------------------------------------------------


def test_the_names_of_recipes_are_known_without_torch() -> None:
    assert set(completion.RECIPES) == set(recipes.RECIPES)
    assert completion.recipes("speed94") == ["speed94", "speed94-gpu"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("fcifar train blitz1", ["blitz10"]),
        ("fcifar recipes show conv", ["conv3-aug"]),
        ("fcifar train --dataset mine", ["mine"]),
        ("fcifar eval run --dataset ci", ["cifar10", "cifar100", "cifar100-coarse"]),
        ("fcifar data info s", ["shapes10"]),
        ("fcifar data fetch fa", ["fashion-mnist"]),
        ("fcifar runs show a", ["a-run"]),
        ("fcifar runs rm b", ["b-run"]),
        ("fcifar runs sh", ["show"]),
        ("fcifar train --weight-d", ["--weight-decay"]),
    ],
)
def test_a_tab_offers_names_at_once(tmp_path: Path, words: str, offered: list[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.safetensors").touch()
    for name in ("a-run", "b-run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    code = """
try:
    main()
finally:
    heavy = {"torch", "numpy", "torchvision", "matplotlib", "safetensors.torch"}
    print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = run(
        code,
        _FCIFAR_COMPLETE="complete_bash",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split()) - 1),
        FCIFAR_DATA=str(tmp_path / "data"),
        FCIFAR_RUNS=str(tmp_path / "runs"),
    )
    assert done.stdout.split() == offered
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell: str) -> None:
    done = run("main()", _FCIFAR_COMPLETE=f"source_{shell}")
    assert done.returncode == 0
    assert "_FCIFAR_COMPLETE" in done.stdout


# Colours ------------------------------------------------------------------------------------------

MISTAKE = ("train", "--epochs", "many")  # which is seen before torch is imported
COLOR = "\x1b[1;31m"


def test_there_are_no_colours_in_a_pipe_unless_they_are_asked_for() -> None:
    assert "\x1b" not in run("main()", *MISTAKE).stderr
    assert run("main()", *MISTAKE, FORCE_COLOR="1").stderr.startswith(COLOR)


def test_no_color_is_respected() -> None:
    for words in (MISTAKE, ("--help",)):
        done = run("main()", *words, FORCE_COLOR="1", NO_COLOR="1")
        codes = {
            c
            for text in (done.stdout + done.stderr).split("\x1b[")[1:]
            for c in text.split("m")[0].split(";")
        }
        assert codes <= {"", "0", "1", "2", "3", "4"}, "bold and dim alone"


def test_a_forced_colour_brings_no_moving_bar_into_a_file(tmp_path: Path) -> None:
    code = """
from fcifar.cli import progress
with progress.counting(quiet=False) as count:
    count("decoding", 1, 2)
"""
    done = run(code, FORCE_COLOR="1")
    assert done.stderr == "decoding\n"


# What was meant -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("train", "blits"), "blitz"),
        (("train", "Speed94"), "speed94"),
        (("recipes", "show", "conv3aug"), "conv3-aug"),
        (("train", "--dataset", "shapes"), "shapes10"),
        (("train", "--dataset", "cifar-100"), "cifar100"),
        (("data", "info", "shape10"), "shapes10"),
        (("data", "fetch", "fashionmnist"), "fashion-mnist"),
        (("train", "--optimizer", "adamm"), "adam"),
        (("train", "--schedule", "cosin"), "cosine"),
        (("train", "--augment", "random_flp"), "random_flip"),
        (("train", "--set", "model=lenet5"), "lenet"),
        (("train", "--set", "labelsmoothing=0.1"), "label_smoothing"),
        (("train", "--set", "hiden=3"), "hidden"),
        (("train", "--epoch", "3"), "--epochs"),
        (("data", "import", "x", "--resize", "crops"), "crop"),
        (("trian",), "train"),
        (("data", "fetsch"), "fetch"),
    ],
)
def test_a_wrong_name_is_answered_with_the_one_that_was_meant(
    fcifar, words: tuple[str, ...], meant: str
) -> None:
    done = fcifar(*words)
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert f"id you mean '{meant}'?" in done.err


def test_nothing_is_guessed_where_nothing_is_close() -> None:
    assert did_you_mean("zzz", ["blitz"]) == ""
    assert did_you_mean(3, ["blitz"]) == ""
    assert did_you_mean("b" * 10**6, ["blitz"]) == ""
    assert did_you_mean("BLITZ", ["blitz", "speed94"]) == "; did you mean 'blitz'?"


# Help ---------------------------------------------------------------------------------------------


def commands(group, above: tuple[str, ...] = ()):
    yield above
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*above, name))


def test_every_command_has_help_that_fits_and_an_example(fcifar) -> None:
    import typer.main

    found = list(commands(typer.main.get_command(cli.app)))
    assert ("data", "fetch") in found
    assert ("runs", "rm") in found
    for words in found:
        shown = fcifar(*words, "--help")
        assert shown.status == 0
        assert all(len(line) <= 80 for line in shown.out.splitlines()), words
        assert "…" not in shown.out, f"an option of {words} is cut short"
    for words in (
        ("train",),
        ("eval",),
        ("predict",),
        ("data", "fetch"),
        ("data", "import"),
        ("runs", "rm"),
    ):
        assert f" fcifar {' '.join(words)} " in fcifar(*words, "--help").out.replace("\n", " ")
    top = fcifar("--help").out
    for variable in ("FCIFAR_DATA", "FCIFAR_RUNS", "NO_COLOR"):
        assert variable in top
    assert "$FCIFAR_RUNS" in fcifar("train", "--help").out
