"""The README's code runs, and its commands are the ones that continuous integration takes."""

import re
from pathlib import Path

import pytest

from fcifar.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_research_code_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert names["metrics"].count == 4
    assert names["state"].step == 2


@pytest.mark.parametrize("word", ["fcifar train", "pytest"])
def test_a_newcomers_commands_are_one_line_each(word: str) -> None:
    assert len(re.findall(rf"^python3 -m venv .*{word}.*$", README, re.MULTILINE)) == 1
    assert "^python3 -m venv .*$1" in (ROOT / ".ci/run").read_text()


def test_every_recipe_is_in_the_results() -> None:
    for name in RECIPES:
        assert f"fcifar train {name} --compile" in README, name
