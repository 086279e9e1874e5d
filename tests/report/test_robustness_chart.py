"""The chart of accuracy on corrupted images: a row for each kind, a line for each model."""

from fcifar.augment.corruptions import BENCHMARK, CORRUPTIONS
from fcifar.report.figures import robustness


def result(*names: str, runs: int = 1, clean: float | None = 0.9) -> dict:
    found = [
        {
            "name": "ABCDEFGHI"[i],
            "accuracy": clean,
            "mean_accuracy": 0.7,
            "corruptions": {name: {"accuracy": [0.8, 0.6], "mean": 0.7} for name in names},
        }
        for i in range(runs)
    ]
    severities = {name: [2, 5] for name in names}
    return {"runs": found, "reference": None, "severities": severities}


def test_each_kind_has_a_row() -> None:
    assert [len(row) for row in robustness.arranged(BENCHMARK)] == [3, 4, 4, 4]
    assert [len(row) for row in robustness.arranged([*CORRUPTIONS])] == [3, 4, 4, 4, 4]
    assert robustness.arranged(["smoke", "fog", "shot_noise"]) == [
        ["shot_noise"],
        ["fog"],
        ["smoke"],
    ]


def test_a_line_begins_at_the_clean_images() -> None:
    figure = robustness.draw(result("fog", "snow"), title="x")
    axes, _ = figure.axes
    (line,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert line.get_xydata().tolist() == [[0, 90], [2, 80], [5, 60]]
    assert axes.get_title(loc="left") == "snow"
    assert axes.get_title(loc="right") == "70.0"
    (axes,) = robustness.draw(result("fog", clean=None)).axes
    assert [list(x.get_xdata()) for x in axes.lines if x.get_marker() == "o"] == [[2, 5]]


def test_several_runs_have_a_legend() -> None:
    found = result("fog", runs=3)
    found["reference"] = {**found["runs"].pop(), "name": "C"}
    figure = robustness.draw(found)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["A", "B", "reference"]
    assert not robustness.draw(result("fog")).legends
