"""The README's code runs, and its commands are the ones that continuous integration takes."""

import re
from pathlib import Path

import pytest
import torch

from fcifar.recipes.speed import SPEED
from fcifar.recipes.tutorials import TUTORIALS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_research_code_runs() -> None:
    parts, step, each, own = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(step, names)
    assert names["metrics"].count == 4
    assert names["state"].step == 2
    exec(each, names)
    assert names["gradients"]["fc3.weight"].shape == (4, 10, 84)
    state, metrics = names["step"](names["state"], names["batch"])
    assert (state.step, metrics.count) == (3, 4)
    exec(parts, names)
    state, _ = names["step"](names["state"], names["batch"])
    assert state.step == 1
    assert len(own.splitlines()) < 20
    exec(own, names)
    logits, _ = names["model"].apply(names["variables"], torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("word", ["fcifar train", "pytest"])
def test_a_newcomers_commands_are_one_line_each(word: str) -> None:
    assert len(re.findall(rf"^python3 -m venv .*{word}.*$", README, re.MULTILINE)) == 1
    assert "^python3 -m venv .*$1" in (ROOT / ".ci/run").read_text()


def test_every_recipe_is_in_the_results() -> None:
    for recipe in TUTORIALS:
        assert f"fcifar train {recipe.name} --compile" in README, recipe.name
    for recipe in SPEED:
        assert re.search(rf"`(fcifar train )?{recipe.name}`", README), recipe.name
