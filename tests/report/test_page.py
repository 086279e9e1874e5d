"""The parts of a page: nothing unescaped, round axes, commands that say all of a recipe."""

import itertools
import math
import shlex
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcifar import recipes
from fcifar.cli.overrides import with_changes
from fcifar.errors import UsageError
from fcifar.report.page import charts, commands, curves, html, matrix, settings
from fcifar.train.config import RunConfig
from fcifar.train.runtime import Runtime

numbers = st.floats(-1e30, 1e30, allow_nan=False)


class Read(HTMLParser):
    """What a parser finds: text, and elements with their attributes."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.words, self.elements = "", []
        self.feed(markup)
        self.close()

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, attrs))


@given(st.text(), st.text())
def test_text_from_outside_stays_text(words: str, attribute: str) -> None:
    def plain(text: str) -> str:
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

    read = Read(html.tag("p", words, title=attribute, data_x="y"))
    assert read.words == plain(words)
    assert read.elements == [("p", [("title", plain(attribute)), ("data-x", "y")])]


def test_a_name_that_is_no_text_of_an_encoding_can_be_written() -> None:
    html.tag("p", "run\udcff").encode()


def test_markup_is_not_escaped_twice_and_nothing_is_left_out() -> None:
    inner = html.tag("b", "a & b")
    assert html.tag("p", inner, None, 3) == "<p><b>a &amp; b</b>None3</p>"
    assert html.tag("img", src="data:,", hidden=True, alt="", width=None) == (
        '<img src="data:," hidden alt="">'
    )


def test_columns_of_numbers_go_to_the_right() -> None:
    table = html.table("A caption", ("", "share", "name"), [("1", "2 %", "x"), ("3", "-", "4")])
    assert '<th scope="col" class="number">share</th>' in table
    assert '<td class="number">-</td>' in table
    assert table.count("number") == 3  # neither the headings of rows nor the last column


@given(numbers, numbers, st.integers(1, 10))
def test_ticks_are_round_inside_and_about_as_many_as_asked(a: float, b: float, count: int) -> None:
    low, high = sorted((a, b))
    if high - low <= 1e-6 * max(abs(low), abs(high)) or high - low < 1e-200:
        return
    found = charts.ticks(low, high, count)
    room = 1e-6 * (high - low)
    assert all(low - room <= value <= high + room for value in found)
    assert len(found) <= count + 1
    assert len(found) >= count / 2.6 - 1
    steps = {round((y - x) / (high - low), 6) for x, y in itertools.pairwise(found)}
    assert len(steps) <= 2  # one, but for rounding


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=5), st.floats())
def test_a_chart_of_whatever_came_out_is_drawn_inside_its_frame(points, extra) -> None:
    lines = [
        charts.Line("a", points),
        charts.Line("b", [(1.0, extra)], 1, "dots"),
    ]
    found = charts.line_chart(lines, title="t", x_name="epoch", y_name="loss")
    assert "nan" not in found
    assert "inf" not in found.replace("info", "")


def test_a_line_breaks_where_a_value_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 2.0), (4.0, 1.0)]
    drawn = charts.line_chart([charts.Line("a", points)], title="t", x_name="x", y_name="y")
    (path,) = (dict(attrs)["d"] for tag, attrs in Read(drawn).elements if tag == "path")
    assert path.count("M") == 2
    assert path.count("L") == 2


def test_a_long_line_keeps_its_ends() -> None:
    points = [(float(i), float(i)) for i in range(10_001)]
    found = charts.thinned(points)
    assert len(found) == charts.POINTS
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert found == sorted(set(found))
    assert charts.thinned(points[:5]) == points[:5]


def test_a_curve_has_what_the_log_has() -> None:
    records = [
        {"split": "train", "epoch": 1.0, "loss": 2.0},
        {"split": "valid", "epoch": 1.0, "loss": None},
        {"split": "train", "epoch": 2.0, "loss": 1.0},
        {"split": "train", "epoch": 2.0, "accuracy": 0.5},
    ]
    found = curves.series(records, "loss", 10.0)
    assert found["training"] == [(1.0, 20.0), (2.0, 10.0)]
    assert math.isnan(found["valid"][0][1])
    assert set(found) == {"training", "valid"}


def test_the_strongest_wrong_cell_shows_and_the_diagonal_is_its_share() -> None:
    found = matrix.strengths(torch.tensor([[90, 10, 0], [1, 99, 0], [0, 0, 0]]))
    assert found.diagonal().tolist() == [0.9, 0.99, 0.0]
    assert found[0, 1] == pytest.approx(0.8)
    assert 0 < found[1, 0] < found[0, 1]
    assert found[0, 2] == found[2, 0] == 0


@pytest.mark.parametrize("size", [1, 2, 10, 25, 40, 100])
def test_a_matrix_of_any_size(size: int) -> None:
    counts = (torch.eye(size, dtype=torch.int64) * 5 + 1).tolist()
    drawn = Read(matrix.confusion_matrix(counts, [f"a long name {i}" for i in range(size)], "t"))
    cells = [attrs for tag, attrs in drawn.elements if tag == "rect"]
    assert len(cells) == size**2 + 1
    assert matrix.worst(counts, [str(i) for i in range(size)], 2)[:1] == ["0 as 1 (1)"][: size - 1]


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
    command = commands.train_command(made(recipe))
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
    assert commands.train_command(made(recipes.Recipe(name="mine"))) is None


def test_a_typed_command_is_that_of_training_alone() -> None:
    assert commands.typed_command(["/x/fcifar", "train", "a b"]) == "fcifar train 'a b'"
    for argv in (["pytest", "-q"], ["fcifar"], [], None, "fcifar train", [1, "train"]):
        assert commands.typed_command(argv) is None


def test_settings_read_as_a_person_writes_them() -> None:
    values = (True, False, (), ("a", "b"), 0.001, 1e-05, 3, "", {"linear": 0.1}, 2.0)
    found = [settings.shown(value) for value in values]
    assert found == ["yes", "no", "none", "a, b", "0.001", "1e-05", "3", "none", "linear 0.1", "2"]
