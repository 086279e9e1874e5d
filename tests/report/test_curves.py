"""Learning curves: the lines are the log's, gaps and single points are visible."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcifar.report.figures import curves
from fcifar.report.figures.canvas import COLORS, GREEN, VERMILION, save
from fcifar.report.figures.curves import spread

RECORDS = [
    {"split": "train", "step": 0, "note": "without values"},
    *(
        {"split": "train", "step": i, "epoch": i / 10, "loss": 2.3 / i, "accuracy": 1 - 0.9 / i}
        for i in range(1, 20)
    ),
    {"split": "test", "step": 20, "epoch": 2.0, "loss": 0.5, "accuracy": 0.75},
]


def test_lines_are_what_was_logged():
    axes = curves.of_run(RECORDS).axes
    assert len(axes) == 2
    training, test = axes[1].lines[:2]
    assert list(training.get_xdata()) == [i / 10 for i in range(1, 20)]
    assert list(training.get_ydata()) == pytest.approx([100 - 90 / i for i in range(1, 20)])
    assert list(test.get_ydata()) == [75]
    assert (test.get_marker(), test.get_color()) == ("o", VERMILION)
    texts = [text.get_text() for text in axes[1].texts]
    assert texts == ["test\n75.0 %", "training\n95.3 %"]


def test_a_value_that_is_not_finite_is_a_gap_and_is_marked():
    records = [
        {"split": "valid", "epoch": float(i), "loss": loss}
        for i, loss in enumerate((1.0, None, math.inf, 2.0))
    ]
    (axes,) = curves.of_run(records, fields=["loss"]).axes
    values = list(axes.lines[0].get_ydata())
    assert [math.isfinite(value) for value in values] == [True, False, False, True]
    assert axes.lines[0].get_color() == GREEN
    assert any(text.get_text() == "not finite\nfrom epoch 1" for text in axes.texts)


@pytest.mark.parametrize(
    "records",
    [
        [],
        RECORDS[1:2],
        RECORDS[-1:],
        [{"split": "train", "step": 1, "epoch": 0.1}],
        [{"split": "train", "step": 1, "epoch": 0.1, "loss": math.nan, "accuracy": 0.1}],
        [{"split": "valid", "epoch": 1.0, "loss": None, "accuracy": math.inf}],
        [*RECORDS, {"split": "train", "step": 30, "epoch": 3.0, "loss": math.inf, "accuracy": 0.1}],
    ],
    ids=["none", "one point", "eval alone", "no values", "nan", "null and inf", "diverged"],
)
def test_curves_of_any_log_are_drawn(tmp_path, records):
    path = save(curves.of_run(records, title="costs $5 and $6"), tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == [path]
    save(curves.of_group([records, RECORDS], title="two"), path)
    save(curves.of_runs({"A": records, "B": RECORDS}), path)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=5))
def test_curves_of_any_values_have_finite_axes(points):
    records = [{"split": "train", "epoch": x, "loss": y} for x, y in points]
    (axes,) = curves.of_run(records, fields=["loss"]).axes
    assert all(map(math.isfinite, (*axes.get_xlim(), *axes.get_ylim())))


def test_runs_have_a_colour_each_and_of_many_runs_the_splits_have():
    def colors(count: int) -> set[str]:
        logs = {f"{i}": RECORDS for i in range(count)}
        (axes,) = curves.of_runs(logs, fields=["loss"]).axes
        return {line.get_color() for line in axes.lines}

    assert colors(3) == set(COLORS[:3])
    assert len(colors(len(COLORS) + 1)) == 2


def test_labels_keep_their_distance_and_their_order():
    moved = spread([0.5, 0.51, 0.52, 0.9], 0.1)
    assert moved == sorted(moved)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(moved))
    assert spread([0.1, 0.8], 0.1) == [0.1, 0.8]
