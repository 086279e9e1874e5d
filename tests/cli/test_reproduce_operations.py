"""fcifar reproduce --against and --trace: what is printed, and the exit codes."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fcifar import cli, data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.train.runtime import Runtime
from tests.helpers.training import train


def drawn(seed: int, count: int) -> Split:
    key = random.key(seed)
    images = random.randint(key, (count, 3, 32, 32), 0, 256).to(torch.uint8)
    return Split(images, random.randint(key, (count,), 0, 10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and a run of nine steps with it."""
    folder = tmp_path_factory.mktemp("made")
    dataset = make_dataset("tiny", drawn(1, 42), drawn(2, 23), tuple("abcdefghij"), "tests")
    data.save(dataset, folder / "data")
    recipe = recipes.get("blitz").replace(batch_size=5, epochs=1)
    train(folder / "run", recipe, Runtime(threads=1), dataset)
    return folder


@pytest.fixture
def fcifar(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """Exit status, stdout and stderr of a command, beside the run, 80 columns wide."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCIFAR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fcifar", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


def test_other_arithmetic(fcifar) -> None:
    status, out, err = fcifar("reproduce", "run", "--against", "precision=bf16")
    assert status == 1
    assert "Traceback" not in err
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert lines[0] == ["verdict", "not identical, from step 1 on"]
    assert lines[1] == ["sides", "cpu, 1 thread, fp32, eager"]
    assert out.count("aten.") >= 2
    assert "from here on the two call different operations" in out
    assert "after step 1:" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    status, out, err = fcifar("reproduce", "run", "--against", "precision=bf16", "--json", "-q")
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert found["step"] == 1
    assert found["other_operation"]["line"].startswith("fcifar/step.py:"), "the conversion"


def test_a_run_against_itself_and_by_a_file(fcifar) -> None:
    status, out, _ = fcifar("reproduce", "run", "--against", "same", "--until", 2)
    assert status == 0
    assert out.split("\n")[0].split(maxsplit=1) == ["verdict", "identical: 2 steps"]
    status, out, _ = fcifar("reproduce", "run", "--trace", "t.safetensors", "--step", 4)
    assert status == 0
    assert "t.safetensors" in out
    assert out.split("\n")[0].split(maxsplit=1) == ["step", "4, cpu, 1 thread, fp32, eager"]
    status, out, _ = fcifar("reproduce", "run", "--against", "t.safetensors")
    assert status == 0
    assert out.split("\n")[0].split(maxsplit=1) == ["verdict", "identical: step 4"]


WRONG = [
    (("--against", "threads=1"), "which the run was trained with"),
    (("--against", "nothing"), "it must be the .safetensors file"),
    (("--against", "same", "--step", 99), "the run has steps 1 to 9"),
    (("--against", "missing.safetensors"), "there is no file"),
    (("--against", "same", "--trace", "t.safetensors"), "give one of them"),
    (("--against", "same", "--values", 3), "--values is for --trace"),
    (("--against", "t.safetensors", "--step", 3), "has the step"),
    (("--against", "same", "--step", 3, "--until", 4), "--until is for a search"),
    (("--against", "same", "--out", "new"), "without --out"),
    (("--trace", "t.txt"), "must end in .safetensors"),
    (("--trace", "run/final.safetensors"), "exists already"),
    (("--step", 3), "are for --against or --trace"),
]


def test_wrong_requests_are_one_line(fcifar) -> None:
    for words, message in WRONG:
        status, out, err = fcifar("reproduce", "run", *words)
        assert status in (1, 2), words
        assert out == ""
        last = err.splitlines()[-1]
        assert last.startswith("error:")
        assert message in last


def test_the_next_command_of_a_difference(fcifar, monkeypatch: pytest.MonkeyPatch) -> None:
    from fcifar.train import loop

    train = loop.train

    def other(path: Path, config, *arguments, **options):
        recipe = config.recipe.replace(learning_rate=0.01)
        return train(path, config.replace(recipe=recipe), *arguments, **options)

    monkeypatch.setattr(loop, "train", other)
    status, out, _ = fcifar("reproduce", "run")
    assert status == 1
    assert "fcifar reproduce run --trace FILE --step 1" in " ".join(out.split())
