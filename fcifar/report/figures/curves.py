"""Learning curves: loss and accuracy over the epochs, of a run, of several, or of a group."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fcifar.report.figures.canvas import (
    BLUE,
    COLORS,
    FAINT,
    GREEN,
    INK,
    PAPER,
    SKY,
    SOFT,
    VERMILION,
    label_axes,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIELDS = ("loss", "accuracy")
_SPLITS = {  # in a metrics log: name and colour of its line
    "train": ("training", BLUE),
    "valid": ("validation", GREEN),
    "test": ("test", VERMILION),
}
_LARGEST = 1e300  # a larger value cannot be drawn, like one that is not finite
_WIDTH, _HEIGHT = 5.4, 3.6  # inches of a panel

Records = Sequence[Mapping[str, Any]]


class Line(NamedTuple):
    """One line of a chart; it has a gap where a value is not finite."""

    name: str
    epochs: Sequence[float]
    values: Sequence[float]
    color: str
    style: str  # "-", "--" or "o" for markers alone
    thin: bool = False


class Entry(NamedTuple):
    """One entry of a legend."""

    name: str
    color: str
    style: str


def of_run(records: Records, *, title: str = "", fields: Sequence[str] = FIELDS) -> "Figure":
    """Draw the curves of one run, with the name and the last value at the end of each line.

    Args:
        records: the metrics log. Losses and accuracies may be missing, None or not finite.
        title: above the chart.
        fields: "loss", "accuracy" or both, a panel each.
    """
    return _chart({field: _lines(records, field) for field in fields}, [], title)


def of_runs(logs: Mapping[str, Records], *, fields: Sequence[str] = FIELDS) -> "Figure":
    """Draw the curves of several runs: a colour each, and a style for each split.

    Args:
        logs: a metrics log by the name of the run. Of more runs than there are colours, the curves
            are coloured by split, as in ``of_group``.
        fields: as in ``of_run``.
    """
    if len(logs) > len(COLORS):
        return of_group(list(logs.values()), fields=fields)
    styles = {"training": "-", "validation": "--", "test": "o"}
    colors = dict(zip(logs, COLORS, strict=False))

    def lines(field: str) -> list[Line]:
        return [
            line._replace(color=colors[run], style="o" if line.style == "o" else styles[line.name])
            for run, records in logs.items()
            for line in _lines(records, field)
            if line.name in styles
        ]

    drawn = {field: lines(field) for field in fields}
    splits = {line.name for field in fields for line in drawn[field]}
    legend = [Entry(run, color, "-") for run, color in colors.items()]
    legend += [Entry(name, SOFT, style) for name, style in styles.items() if name in splits]
    return _chart(drawn, legend, "")


def of_group(
    logs: Sequence[Records], *, title: str = "", fields: Sequence[str] = FIELDS
) -> "Figure":
    """Draw the curves of many runs, a thin line each, coloured by split.

    Args:
        logs: a metrics log for each run.
        title: above the chart.
        fields: as in ``of_run``.
    """
    drawn = {
        field: [
            line._replace(style="o" if line.style == "o" else "-", thin=True)
            for records in logs
            for line in _lines(records, field)
        ]
        for field in fields
    }
    legend = {
        line.name: Entry(line.name, line.color, line.style)
        for lines in drawn.values()
        for line in lines
    }
    return _chart(drawn, list(legend.values()), title, f"{len(logs)} runs" if title else "")


def _lines(records: Records, field: str) -> list[Line]:
    """One line for each split of a metrics log, training first."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        if field in record:
            scale = 100.0 if field == "accuracy" else 1.0
            point = _number(record.get("epoch")), scale * _number(record[field])
            points.setdefault(str(record["split"]), []).append(point)
    found = []
    for split in sorted(points, key=lambda split: split != "train"):
        name, color = _SPLITS.get(split, (split, SKY))
        style = "-" if split == "train" else "o-"
        if sum(math.isfinite(y) for _, y in points[split]) == 1:
            style = "o"
        epochs, values = zip(*points[split], strict=True)
        found.append(Line(name, epochs, values, color, style))
    return found


def _chart(
    drawn: Mapping[str, Sequence[Line]], legend: Sequence[Entry], title: str, subtitle: str = ""
) -> "Figure":
    """One panel for each field, side by side; the ends of lines are named without a legend."""
    from matplotlib.lines import Line2D

    height = _HEIGHT + (0.6 if title else 0.0) + 0.25 * math.ceil(len(legend) / 5)
    figure = new_figure(_WIDTH * len(drawn), height, title, subtitle)
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axes, (field, lines) in zip(panels, drawn.items(), strict=True):
        _panel(axes, lines, "{:.3f}" if field == "loss" else "{:.1f} %", bool(legend))
        name = "loss, nats" if field == "loss" else "accuracy, %"
        axes.set_title(name, loc="left", size=10.5, color=INK)
        label_axes(axes, "epoch")
    if legend:
        handles = [Line2D([], [], color=e.color, **_style(e.style)) for e in legend]
        names = [entry.name for entry in legend]
        figure.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=5,
            frameon=False,
            fontsize=9.5,
            labelcolor=INK,
        )
    return figure


def _panel(axes: "Axes", lines: Sequence[Line], form: str, has_legend: bool) -> None:
    tidy(axes)
    for line in lines:
        axes.plot(
            line.epochs,
            line.values,
            color=line.color,
            linewidth=1.0 if line.thin else 1.8,
            alpha=0.7 if line.thin and line.style == "-" else None,
            zorder=3 if line.style == "-" else 4,
            **_style(line.style),
        )
    _mark_gap(axes, lines)
    ends = [end for end in map(_last_finite, lines) if end is not None]
    if not ends:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=INK)
    elif not has_legend:
        _name_ends(axes, ends, form)


def _style(style: str) -> dict[str, Any]:
    marker = {"marker": "o", "markersize": 5.5, "markeredgecolor": PAPER} if "o" in style else {}
    return {"linestyle": style.removeprefix("o") or "none", **marker}


def _mark_gap(axes: "Axes", lines: Sequence[Line]) -> None:
    """Shade the epochs with values that are not finite, so that a diverged run is visible."""
    gaps = [
        x
        for line in lines
        for x, y in zip(line.epochs, line.values, strict=True)
        if math.isfinite(x) and not math.isfinite(y)
    ]
    if gaps:
        start, end = min(gaps), max(gaps)
        axes.axvspan(start, end, facecolor=FAINT, edgecolor=FAINT, alpha=0.6)
        axes.text(
            *((start + end) / 2, 0.97, f"not finite\nfrom epoch {start:.3g}"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            size=9,
            color=INK,
        )


def _last_finite(line: Line) -> tuple[Line, float, float] | None:
    for x, y in zip(reversed(line.epochs), reversed(line.values), strict=True):
        if math.isfinite(x) and math.isfinite(y):
            return line, x, y
    return None


def _name_ends(axes: "Axes", ends: Sequence[tuple[Line, float, float]], form: str) -> None:
    """Write name and last value of each line at the right edge, joined to it by a dotted line."""
    (low, high), right = axes.get_ylim(), axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[2])
    heights = spread([(y - low) / (high - low) for _, _, y in ends], 0.13)
    for (line, x, y), height in zip(ends, heights, strict=True):
        axes.plot([x, right], [y, y], color=line.color, linewidth=0.9, linestyle=":", zorder=2)
        axes.annotate(
            f"{line.name}\n{form.format(y)}",
            (1.02, height),
            xycoords="axes fraction",
            va="center",
            size=9.5,
            linespacing=1.05,
            color=line.color,
            parse_math=False,
        )
    axes.set_xlim(right=right)


def spread(positions: Sequence[float], distance: float) -> list[float]:
    """Move ascending positions as little as it takes to be at least ``distance`` apart."""
    moved = list(positions)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + distance)
    shift = (sum(moved) - sum(positions)) / max(len(moved), 1)
    return [position - shift for position in moved]


def _number(value: object) -> float:
    """``value`` as a number that can be drawn, else NaN."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if abs(number) <= _LARGEST else math.nan
