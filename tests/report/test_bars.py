"""Accuracy by class, and histograms of scores."""

import math

import pytest
import torch

from fcifar import random
from fcifar.errors import UsageError
from fcifar.report.figures import bars
from fcifar.report.figures.bars import BINS, MOST_CLASSES, histogram
from fcifar.report.figures.canvas import save


def test_bars_are_as_long_as_the_accuracy_the_best_first(tmp_path):
    figure = bars.per_class(
        {
            "low": {"correct": 25, "total": 100, "accuracy": 0.25},
            "high $": {"correct": 100, "total": 100, "accuracy": 1.0},
            "a class name that is far too long": {"correct": 0, "total": 0, "accuracy": math.nan},
        },
        title="per class",
    )
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [100, 25, 0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["high $", "low", "a class name tha…"]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["100.0 %", "100 of 100"]
    assert "no examples" in texts
    assert texts[-1] == "all 62.5 %"
    assert save(figure, tmp_path / "bars.png").exists()


def test_of_many_classes_both_ends_are_drawn():
    def height(count: int) -> float:
        row = {"correct": 1, "total": 2, "accuracy": 0.5}
        figure = bars.per_class({f"class {i}": row for i in range(count)}, title="many")
        return figure.get_size_inches()[1]

    assert height(MOST_CLASSES) < height(MOST_CLASSES + 1) == height(3000)


def test_no_class_at_all(tmp_path):
    assert save(bars.per_class({}, title="nothing"), tmp_path / "bars.png").exists()


def test_a_histogram_is_what_a_loop_counts():
    values = random.normal(random.key(1), (500,)).double()
    correct = random.bernoulli(random.key(2), 0.6, (500,))
    middles, width, counts = histogram(values, correct)
    assert len(middles) == BINS
    assert counts.sum(1).tolist() == [int(correct.sum()), int((~correct).sum())]
    for middle, right, wrong in zip(middles, *counts.tolist(), strict=True):
        inside = (values - middle).abs() < width / 2
        assert abs(int((inside & correct).sum()) - right) <= 1, "except on the edge"
        assert abs(int((inside & ~correct).sum()) - wrong) <= 1


def test_few_values_have_a_bar_each():
    values = torch.tensor([0.0, 1 / 3, 1 / 3, 1.0]).double()
    correct = torch.tensor([True, True, False, False])
    middles, width, counts = histogram(values, correct)
    assert middles == pytest.approx([0, 1 / 3, 1])
    assert width == pytest.approx(0.8 / 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1]]
    middles, _, counts = histogram(torch.tensor([0.0, 1e-9, 1.0]).double(), correct[:3])
    assert len(middles) == BINS, "bars of near values would be too narrow"
    assert counts.sum() == 3


def test_wrong_is_on_top_of_right():
    figure = bars.scores({"one": torch.zeros(100)}, torch.arange(100) < 75)
    right, wrong = figure.axes[0].patches
    assert (right.get_y(), right.get_height()) == (0, 75)
    assert (wrong.get_y(), wrong.get_height()) == (75, 25)


@pytest.mark.parametrize(
    "values",
    [
        [math.nan] * 3,
        [math.inf, -math.inf, 1.0],
        [1e38, -1e38, 0.0],
        [0.0, 1e-45, 1e-40],
        [5.0, 5.0, 5.0],
        [1e9, 1e9 + 64, 1e9 + 128],
    ],
    ids=["nan", "infinite", "huge", "tiny", "equal", "far from 0"],
)
def test_any_scores_are_drawn(tmp_path, values):
    scores = {f"$a$ {i}": torch.tensor(values) for i in range(4)}
    correct = torch.tensor([True, False, True])
    path = save(bars.scores(scores, correct, title="$b"), tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == [path]


def test_scores_of_another_length_are_refused():
    correct = torch.ones(3).bool()
    with pytest.raises(UsageError, match="at least one score"):
        bars.scores({}, correct)
    with pytest.raises(UsageError, match=r"each of 3 examples, not \[\[2\]\]"):
        bars.scores({"loss": torch.ones(2)}, correct)
