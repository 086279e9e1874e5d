"""Pages: escaped text, columns of numbers, and commands that give every setting of a recipe."""

import shlex
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from fcifar import recipes
from fcifar.cli.overrides import with_changes
from fcifar.errors import UsageError
from fcifar.report import text
from fcifar.report.page import settings
from fcifar.report.page.blocks import (
    Commands,
    Facts,
    Folded,
    Image,
    Images,
    Pair,
    Section,
    Table,
    Text,
    Tiles,
    code,
    render,
)
from fcifar.train.config import RunConfig
from fcifar.train.runtime import Runtime


class Read(HTMLParser):
    """A page as a parser sees it: text, and elements with their attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.words, self.elements = [], []
        self.feed(markup)
        self.close()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, attrs))


@hypothesis(deadline=None)
@given(st.text(min_size=1))
def test_text_from_outside_stays_text(words: str) -> None:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    blocks = [
        Text(words),
        Table(words, ("", words), [(words, code(words))]),
        Tiles([(words, words, words)]),
        Facts([(words, words)]),
        Commands([words]),
        Images(words, [Image([words], "data:,", words)], words),
        Folded(words, [Pair([Text(words)])]),
    ]
    page = render(words, words, [], [Section("a", words, blocks)])
    plain = render("w", "w", [], [Section("a", "w", [])])
    page.encode()
    read = Read(page)
    assert sum(piece == shown for piece in read.words) >= 20 - 6 * (not words.strip())
    known = {tag for tag, _ in Read(plain).elements} | {
        *("p", "table", "caption", "thead", "tbody", "tr", "th", "td", "code", "dl", "dt", "dd"),
        *("div", "pre", "figure", "figcaption", "ol", "li", "img", "details", "summary", "span"),
    }
    assert {tag for tag, _ in read.elements} <= known
    attributes = dict(next(attrs for tag, attrs in read.elements if tag == "img"))
    assert attributes == {"src": "data:,", "alt": shown, "width": "0", "height": "0"}


def test_a_name_that_no_encoding_has_can_be_written() -> None:
    render("run\udcff", "", [], []).encode()


def test_columns_of_numbers_are_right_aligned() -> None:
    table = Table("A caption", ("", "share", "name"), [("1", "2 %", "x"), ("3", "-", "4")])
    assert table.numeric == [False, True, False]
    page = render("", "", [table], [])
    assert '<th scope="col" class="number">share</th>' in page
    assert '<td class="number">-</td>' in page
    assert page.count('class="number"') == 3


def test_the_most_frequent_confusions_in_words() -> None:
    report = {"per_class": {"cat": {}, "dog": {}}, "confusion": [[5, 2], [1200, 5]]}
    assert text.confusions(report) == "dog as cat (1,200), cat as dog (2)"
    assert text.confusions(report, 1) == "dog as cat (1,200)"
    cells = {"per_class": report["per_class"], "confusion_cells": [[0, 0, 5], [0, 1, 2]]}
    assert text.confusions(cells) == "cat as dog (2)"


def test_the_spread_of_replicas_in_one_sentence() -> None:
    together = {"min_accuracy": 0.5, "max_accuracy": 0.52, "std_accuracy": 0.01, "n": 10_000}
    assert text.spread({**together, "std_independent": 0.004, "std_distribution": 0.009}) == (
        "50.00 to 52.00 %, standard deviation 1.00 points; independent errors on 10,000 images "
        "alone give 0.40, so 0.90 is real difference between the models"
    )
    assert "so no real difference between the models shows" in text.spread(
        {**together, "std_independent": 0.02, "std_distribution": -0.01}
    )


CHANGES = [
    (),
    ("epochs=3", "learning_rate=1e-4", "augment=random_flip,random_crop:4"),
    ("augment=none", "log_every=0", "compile=true", "mean=0.1,0.2,0.3"),
    ("model=conv3", "dropout=0.25", "valid_fraction=0.1", "restore_best=true"),
    ("optimizer=adamw", "momentum=0", "weight_decay=0.01", "schedule=cosine"),
]


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("changes", CHANGES, ids=[",".join(c) or "nothing" for c in CHANGES])
def test_the_command_of_a_run_says_all_of_its_recipe(name: str, changes: tuple) -> None:
    base = recipes.get(name)
    try:
        recipe = with_changes(base, changes)
    except UsageError:
        pytest.skip("the recipe cannot be changed so")
    command = settings.train_command(made(recipe))
    assert command is not None
    words = shlex.split(command)
    assert words[:5] == ["fcifar", "train", name, "--dataset", "a set"]
    texts = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert with_changes(base, texts) == recipe
    for flag in ("--seed 7", "--threads 3", "--precision bf16", "--fast", "--compile"):
        assert flag in command


def made(recipe: recipes.Recipe) -> RunConfig:
    return RunConfig(
        recipe=recipe,
        seed=7,
        runtime=Runtime(threads=3, precision="bf16", deterministic=False),
        compile=True,
        dataset="a set",
        dataset_digest="0" * 64,
    )


def test_a_recipe_of_ones_own_has_no_command() -> None:
    assert settings.train_command(made(recipes.Recipe(name="mine"))) is None


def test_a_typed_command_is_that_of_training_alone() -> None:
    assert settings.typed_command(["/x/fcifar", "train", "a b"]) == "fcifar train 'a b'"
    for argv in (["pytest", "-q"], ["fcifar"], [], None, "fcifar train", [1, "train"]):
        assert settings.typed_command(argv) is None


def test_settings_read_as_a_person_writes_them() -> None:
    values = (True, False, (), ("a", "b"), 0.001, 1e-05, 3, "", {"linear": 0.1}, 2.0)
    found = [text.shown(value) for value in values]
    assert found == ["yes", "no", "none", "a, b", "0.001", "1e-05", "3", "none", "linear 0.1", "2"]
