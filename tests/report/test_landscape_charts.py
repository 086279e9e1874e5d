"""Charts of the loss between runs: what is drawn, and values that are missing."""

import math
from typing import Any

import numpy as np
import pytest

from fcifar.report.figures import landscape
from fcifar.report.figures.canvas import rendered


def path(*, matched: bool) -> dict[str, Any]:
    curve = {"matched": False, "weights": [0, 0.5, 1], "loss": [1.0, None, 0.5]}
    curve["accuracy"] = [0.5, 0.1, 0.75]
    curves = [curve, curve | {"matched": True, "loss": [1.0, 0.8, 0.5]}][: 1 + matched]
    runs = [{"name": name} for name in "AB"]
    return {"kind": "path", "n": 9, "split": "test", "runs": runs, "curves": curves}


@pytest.mark.parametrize("matched", [False, True])
def test_a_path(matched: bool) -> None:
    figure = landscape.path(path(matched=matched), title="a title")
    loss, accuracy = figure.axes
    *curves, ends = loss.get_lines()
    assert len(curves) == 1 + matched
    first = np.asarray(curves[0].get_ydata())
    assert first[0] == 1
    assert math.isnan(first[1])
    assert list(ends.get_ydata()) == [1, 0.5]
    assert list(accuracy.get_lines()[0].get_ydata()) == [50, 10, 75]
    rendered(figure)


def plane(**values: Any) -> dict[str, Any]:
    places = [(0, 0), (3, 0), (1, 2)]
    runs = [{"name": n, "x": x, "y": y} for n, (x, y) in zip("ABC", places, strict=True)]
    grid = [[0.5 + i + 3 * j for i in range(3)] for j in range(3)]
    return {
        "kind": "plane",
        "n": 9,
        "split": "test",
        "runs": runs,
        "matching": None,
        "x": [-1, 1, 4],
        "y": [-1, 1, 3],
        "loss": grid,
        "accuracy": [[v / 10 for v in row] for row in grid],
    } | values


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loss": [[0.5, None, 1.0], [0.7, 0.8, 0.9], [None, 2.0, 3.0]]},
        {"loss": [[1.0] * 3] * 3, "accuracy": [[0.5] * 3] * 3},
        {"loss": [[0.0] * 3] * 3},
        {"loss": [[None] * 3] * 3},
    ],
)
def test_a_plane(values: dict[str, Any]) -> None:
    figure = landscape.plane(plane(**values), title="a title")
    loss = figure.axes[0]
    marked = [tuple(float(v[0]) for v in line.get_data()) for line in loss.get_lines()]
    assert marked == [(0, 0), (3, 0), (1, 2)]
    assert {"A", "B", "C"} <= {text.get_text() for text in loss.texts}
    rendered(figure)
