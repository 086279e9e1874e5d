"""The examples in docstrings give what they say."""

import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest
import torch

import fcifar
from tests.test_architecture import IMPURE

CORE = {
    *("analysis", "augment", "averaging", "grads", "losses", "metrics"),
    *("models", "optim", "parallel", "privacy", "random", "recipes", "step_transforms"),
    *("schedules", "step", "tree"),
}


def examples() -> Iterator[doctest.DocTest]:
    """Those of every pure module, which know ``torch`` and ``fcifar`` and nothing else."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(fcifar.__path__, "fcifar."):
        if found.name.split(".")[1] in IMPURE | {"__main__"}:
            continue
        module = importlib.import_module(found.name)
        names = {"torch": torch, "fcifar": fcifar}
        for test in finder.find(module, globs=names):
            if test.examples:
                yield test


EXAMPLES = {test.name.removeprefix("fcifar."): test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name: str) -> None:
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=said.append)
    assert not result.failed, "".join(said)


def test_each_part_of_the_core_has_an_example() -> None:
    assert {name.partition(".")[0] for name in EXAMPLES} >= CORE


def test_the_examples_need_no_other_import() -> None:
    """What they call is there after ``import fcifar``, without the import of a module."""
    used = {
        name
        for test in EXAMPLES.values()
        for example in test.examples
        for name in re.findall(r"\bfcifar\.(\w+)", example.source)
    }
    assert used <= set(fcifar.__all__)
