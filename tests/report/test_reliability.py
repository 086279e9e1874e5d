"""The reliability diagram: bars of the right height, and no crash on what broken networks say."""

import math
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from fcifar.analysis.calibration import Reliability, expected_calibration_error, reliability
from fcifar.errors import ExternalError, UsageError
from fcifar.report import reliability_picture
from fcifar.report.figures import BLUE
from fcifar.report.reliability import GAP


def _draw(confidence: list[float], correct: list[bool], path: Path, bins: int = 15) -> Path:
    parts = reliability(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool), bins)
    return reliability_picture(parts, expected_calibration_error(parts), path, title="$a$ and $b")


def _height(path: Path, color: str) -> int:
    """The most pixels of ``color`` in any column below the legend."""
    rgb = torch.from_numpy(imread(path))[170:, :, :3]
    return int(((rgb - torch.tensor(to_rgb(color))).abs() < 2e-3).all(-1).sum(0).max())


@pytest.mark.parametrize("right", [1, 2, 3])
def test_bars_and_gaps_are_as_high_as_they_should_be(tmp_path, right):
    # One bin: the bar goes up to right / 4, the gap from there to the confidence of 0.5.
    path = _draw([0.5] * 4, [i < right for i in range(4)], tmp_path / "r.png", bins=1)
    full = 5.3 * 160
    assert _height(path, GAP) == pytest.approx(abs(right / 4 - 0.5) * full, abs=8)
    assert _height(path, BLUE) == pytest.approx(min(right / 4, 0.5) * full, abs=8)


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
def test_a_diagram_of_whatever_came_out(tmp_path, confidence, correct, bins):
    path = _draw(confidence, correct, tmp_path / "r.png", bins)
    assert imread(path).shape[:2] == (1368, 1024)
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_unequal_length_are_refused(tmp_path):
    parts = Reliability(torch.zeros(3), torch.zeros(2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="each bin"):
        reliability_picture(parts, 0.0, tmp_path / "r.png", title="")


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    with pytest.raises(ExternalError, match="No space left"):
        _draw([0.5], [True], tmp_path / "r.png")
    assert not list(tmp_path.iterdir())
