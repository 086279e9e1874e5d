"""Charts of a group of runs: the spread over seeds, the points of a sweep, and a soup."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcifar.report.figures.canvas import (
    BLUE,
    FAINT,
    INK,
    SOFT,
    VERMILION,
    label_axes,
    new_figure,
    shorten,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 20  # points of a chart of the spread, values on a side of a grid; tables have all
_NAME = 30  # characters of a point's name


def accuracies(summary: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw the test accuracy of each run, a row for each point of a sweep, and its mean's interval.

    Args:
        summary: of a group, as in its ``summary.json``.
        title: above the chart.
    """
    points = [point for point in summary["cells"] if point["runs"]][:LARGEST]
    figure = new_figure(5.4, 0.9 + 0.4 * len(points), title)
    _draw_accuracies(figure.add_subplot(), points, summary)
    return figure


def spread(summary: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw the accuracies of each point beside the standard deviations that explain them.

    The bars are the standard deviation seen, and the one that errors independent from image to
    image would give. See ``ensembles.split_variance``.

    Args:
        summary: of a group in which a point has at least two runs.
        title: above the charts.
    """
    points = [point for point in summary["cells"] if point["together"]][:LARGEST]
    subtitle = "Dots are models; the bar is the 95 % interval of their mean." if title else ""
    height = 1.6 + 0.5 * len(points)
    figure = new_figure(11.0, height, title and f"{title}: test accuracy over seeds", subtitle)
    dots, bars = figure.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_accuracies(dots, points, summary)
    tidy(bars, grid="x")
    for row, point in enumerate(points):
        together = point["together"]
        values = 100 * together["std_accuracy"], 100 * together["std_independent"]
        for offset, value, color, name in (
            (-0.18, values[0], BLUE, "seen"),
            (0.18, values[1], SOFT, "independent errors"),
        ):
            bars.barh(row + offset, value, height=0.3, color=color)
            bars.text(value, row + offset, f" {value:.2f} {name}", va="center", size=9, color=INK)
    bars.set(ylim=(len(points) - 0.4, -0.6), yticks=[])
    bars.set_xlim(0, 1.7 * max(bars.get_xlim()[1], 1e-9))
    label_axes(bars, "standard deviation, points")
    return figure


def _draw_accuracies(
    axes: "Axes", points: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    tidy(axes, grid="x")
    members = {member["name"]: member for member in summary["members"]}
    for row, point in enumerate(points):
        values = [100 * members[name]["test_accuracy"] for name in point["runs"]]
        axes.plot(values, [row] * len(values), "o", color=BLUE, alpha=0.6, markersize=6)
        figures = point["test_accuracy"]
        if figures and None not in (figures["low"], figures["high"]):
            # The interval of few runs may reach beyond the possible values.
            ends = 100 * max(figures["low"], 0.0), 100 * min(figures["high"], 1.0)
            axes.plot(ends, [row + 0.27] * 2, color=VERMILION, linewidth=3)
    names = [shorten(point["name"] or "all seeds", _NAME) for point in points]
    axes.set_yticks(range(len(points)), names, parse_math=False)
    axes.set_ylim(len(points) - 0.4, -0.6)
    label_axes(axes, "test accuracy, %")


def points(summary: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw the accuracy of each point of a sweep over one value (a line) or two (a heat map).

    The accuracy is that on validation images, or on the test images if none are held out.

    Args:
        summary: of a group with one or two swept values.
        title: above the chart.
    """
    names, cells = summary["swept"], summary["cells"]
    split = "validation" if any(cell["valid_accuracy"] for cell in cells) else "test"
    heading = title and f"{title}: {' by '.join(names)}"
    subtitle = f"mean accuracy on {split} images, %" if title else ""
    values = [list(dict.fromkeys(str(c["changes"][n]) for c in cells))[:LARGEST] for n in names]
    found = {tuple(str(cell["changes"][name]) for name in names): _figures(cell) for cell in cells}
    if len(names) == 1:
        figure = new_figure(max(5.4, 0.8 * len(values[0])), 3.6, heading, subtitle)
        _draw_line(figure.add_subplot(), names[0], values[0], found)
    else:
        size = max(5.0, 1.8 + 0.8 * len(values[1])), 1.8 + 0.45 * len(values[0])
        figure = new_figure(*size, heading, subtitle)
        _draw_heat_map(figure.add_subplot(), names, values, found)
    return figure


def _figures(cell: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return cell["valid_accuracy"] or cell["test_accuracy"]


def _draw_line(
    axes: "Axes", name: str, values: Sequence[str], found: Mapping[tuple[str, ...], Any]
) -> None:
    tidy(axes)
    for i, value in enumerate(values):
        figures = found[(value,)]
        if figures is None:
            axes.text(
                i, 0.5, "failed", transform=axes.get_xaxis_transform(), ha="center", color=INK
            )
            continue
        low, mean, high = (100 * figures[key] for key in ("least", "mean", "most"))
        axes.plot([i, i], [low, high], color=BLUE, linewidth=2, alpha=0.6)
        axes.plot(i, mean, "o", color=BLUE, markersize=8)
        axes.annotate(
            f"{mean:.2f}",
            (i, mean),
            (8, 0),
            textcoords="offset points",
            va="center",
            size=9,
            color=INK,
        )
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xticks(range(len(values)), values, parse_math=False)
    label_axes(axes, name)


def _draw_heat_map(
    axes: "Axes",
    names: Sequence[str],
    values: Sequence[Sequence[str]],
    found: Mapping[tuple[str, ...], Any],
) -> None:
    from matplotlib.patches import Rectangle

    rows, columns = values
    means = [figures["mean"] for figures in found.values() if figures]
    low, high = min(means, default=0.0), max(means, default=1.0)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            figures = found.get((row, column))
            mean = figures["mean"] if figures else math.nan
            color, alpha, text = FAINT, 1.0, "failed"
            if math.isfinite(mean):
                color, text = BLUE, f"{100 * mean:.2f}"
                alpha = 0.08 + 0.42 * (mean - low) / max(high - low, 1e-9)
            box = Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, color=color, alpha=alpha, linewidth=0)
            axes.add_patch(box)
            axes.text(j, i, text, ha="center", va="center", size=10, color=INK)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), facecolor="none")
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    label_axes(axes, names[1], names[0])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=SOFT)


def soup(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw accuracy and loss of a soup after each addition, beside those of each model alone.

    Args:
        result: from ``runs.soup.make``.
        title: above the charts.
    """
    ingredients = result["ingredients"]
    split = "validation" if result["split"] == "valid" else "test"
    subtitle = f"{result['n']:,} {split} images; an open dot is a model that was left out"
    figure = new_figure(9.0, 3.6, title, subtitle if title else "")
    names = [each["name"] for each in ingredients]
    kept = [i for i, each in enumerate(ingredients) if each["kept"]]
    for axes, field in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        tidy(axes)
        scale = 100.0 if field == "accuracy" else 1.0
        alone, along = (
            [math.nan if v is None else scale * v for v in values]
            for values in (
                [each[field] for each in ingredients],
                [each["soup"][field] for each in ingredients],
            )
        )
        axes.plot(range(len(names)), alone, "o", color=SOFT, label="alone")
        axes.plot(kept, [along[i] for i in kept], "-", color=BLUE)
        for i, value in enumerate(along):
            fill = BLUE if i in kept else "none"
            label = "soup with it" if not i else None
            axes.plot(i, value, "o", color=BLUE, markerfacecolor=fill, markersize=8, label=label)
        axes.set_xticks(range(len(names)), names, parse_math=False)
        label_axes(axes, "model", f"{field}, {'%' if field == 'accuracy' else 'nats'}")
    figure.axes[0].legend(frameon=False, labelcolor=INK)
    return figure
