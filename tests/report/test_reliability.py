"""The reliability diagram: heights of bars and gaps, and input that has no confidence."""

import math

import pytest
import torch
from matplotlib.figure import Figure

from fcifar.analysis.calibration import Reliability, expected_calibration_error, reliability
from fcifar.errors import UsageError
from fcifar.report.figures import reliability as diagram
from fcifar.report.figures.canvas import save


def draw(confidence: list[float], correct: list[bool], bins: int = 15) -> Figure:
    parts = reliability(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool), bins)
    return diagram.draw(parts, expected_calibration_error(parts), title="$a$ and $b")


@pytest.mark.parametrize("right", [1, 2, 3])
def test_bars_are_the_accuracy_and_gaps_reach_to_the_confidence(right):
    upper, lower = draw([0.5] * 4, [i < right for i in range(4)], bins=1).axes
    bar, gap = upper.patches
    assert bar.get_height() == pytest.approx(right / 4)
    assert gap.get_y() == pytest.approx(right / 4)
    assert gap.get_height() == pytest.approx(0.5 - right / 4)
    assert [each.get_height() for each in lower.patches] == [4]


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        ([], []),
        ([math.nan, math.nan], [False, True]),
        ([0.3, math.nan], [False, True]),
        ([0.0, 1.0], [False, True]),
    ],
    ids=["none", "nan alone", "nan too", "both ends"],
)
@pytest.mark.parametrize("bins", [1, 15, 100])
def test_a_diagram_of_any_input_is_drawn(tmp_path, confidence, correct, bins):
    path = save(draw(confidence, correct, bins), tmp_path / "r.png")
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_unequal_length_are_refused():
    parts = Reliability(torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="each bin"):
        diagram.draw(parts, 0.0)
