"""The README has a newcomer's commands, which continuous integration takes, and every recipe."""

import re
from pathlib import Path

import pytest

from fcifar.recipes.classics import CLASSICS
from fcifar.recipes.speed import SPEED
from fcifar.recipes.tutorials import TUTORIALS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("word", ["fcifar train", "pytest"])
def test_a_newcomers_commands_are_one_line_each(word: str) -> None:
    assert len(re.findall(rf"^python3 -m venv .*{word}.*$", README, re.MULTILINE)) == 1
    assert "^python3 -m venv .*$1" in (ROOT / ".ci/run").read_text()


def test_every_recipe_is_in_the_results() -> None:
    for recipe in TUTORIALS:
        assert f"fcifar train {recipe.name} --compile" in README, recipe.name
    for recipe in (*SPEED, *CLASSICS):
        assert re.search(rf"`(fcifar train )?{recipe.name}`", README), recipe.name
