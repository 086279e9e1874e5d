"""Learning curves on a page: loss and accuracy over the epochs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fcifar.report.page.charts import Line, legend, line_chart
from fcifar.report.page.gathering import Run
from fcifar.report.page.html import Html, pair, tag

_COLOR = {"training": 0, "test": 1, "valid": 2, "train": 3}
_IN_WORDS = {"valid": "validation", "train": "training images, evaluated"}
_PANELS = (("loss", "loss, nats", 1.0, ""), ("accuracy", "accuracy, %", 100.0, " %"))
_SEVERAL = 7  # runs with a colour each; more are lines of the same

Records = Sequence[Mapping[str, Any]]
Points = Sequence[tuple[float, float]]


def of_run(run: Run) -> Html:
    """Loss and accuracy of one run: in training, on images held out, and on the test images."""

    def lines(field: str, scale: float) -> list[Line]:
        return [
            Line(_IN_WORDS.get(name, name), points, _COLOR.get(name, 4), _style(name, points))
            for name, points in series(run.records, field, scale).items()
        ]

    def entry(line: Line, unit: str) -> tuple[str, int, str, str]:
        return line.name, line.color, line.style, _last(line.points, unit)

    return _panels(lines, entry)


def of_runs(runs: Sequence[Run]) -> Html:
    """The curves of several runs: a colour each; of many, all alike."""
    if len(runs) > _SEVERAL:
        return of_many([run.records for run in runs])

    def lines(field: str, scale: float) -> list[Line]:
        found = [(i, run, series(run.records, field, scale)) for i, run in enumerate(runs)]
        return [
            Line(f"{run.name}, {_IN_WORDS.get(name, name)}", points, i, _style(name, points, style))
            for name, style in (("training", "solid"), ("valid", "dashed"), ("test", "dots"))
            for i, run, of_run in found
            if (points := of_run.get(name))
        ]

    def entry(line: Line, unit: str) -> tuple[str, int, str, str]:
        return line.name, line.color, line.style, _last(line.points, unit)

    return _panels(lines, entry)


def of_many(logs: Sequence[Records]) -> Html:
    """The curves of many runs: a thin line each, coloured by what was measured."""

    def lines(field: str, scale: float) -> list[Line]:
        return [
            Line(_IN_WORDS.get(name, name), points, _COLOR[name], _style(name, points, style))
            for name, style in (("training", "thin"), ("valid", "thin"), ("test", "dots"))
            for records in logs
            if (points := series(records, field, scale).get(name))
        ]

    def entry(line: Line, _: str) -> tuple[str, int, str, str]:
        return line.name, line.color, line.style, ""

    return _panels(lines, entry)


def series(records: Records, field: str, scale: float) -> dict[str, list[tuple[float, float]]]:
    """By what was measured (training, valid, test): epochs and values, NaN where not finite."""
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if field in record:
            name = "training" if record["split"] == "train" else str(record["split"])
            point = (_number(record.get("epoch")), scale * _number(record[field]))
            found.setdefault(name, []).append(point)
    return found


def _panels(
    lines: Callable[[str, float], list[Line]],
    entry: Callable[[Line, str], tuple[str, int, str, str]],
) -> Html:
    figures = []
    for field, y_name, scale, unit in _PANELS:
        drawn = lines(field, scale)
        title = f"{field} over the epochs"
        chart = line_chart(drawn, title=title, x_name="epoch", y_name=y_name, unit=unit)
        named = list(dict.fromkeys(entry(line, unit) for line in drawn))
        gap = min(
            (x for line in drawn for x, y in line.points if not math.isfinite(y)), default=None
        )
        note = (
            [] if gap is None else [tag("p", f"Not finite from epoch {gap:.3g} on.", class_="note")]
        )
        figures.append(tag("figure", tag("figcaption", y_name), chart, legend(named), *note))
    return pair(*figures)


def _style(name: str, points: Points, style: str = "") -> str:
    if name == "test" or len(points) == 1:
        return "dots"
    return style or ("solid" if name == "training" else "dashed")


def _last(points: Points, unit: str) -> str:
    value = next((y for _, y in reversed(points) if math.isfinite(y)), None)
    if value is None:
        return ""
    return f"{value:.2f}{unit}" if unit else f"{value:.4f}"


def _number(value: object) -> float:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else math.nan
