"""Charts of the loss between runs: along a line, and on a plane."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcifar.report.figures.canvas import (
    BLUE,
    INK,
    PAPER,
    SOFT,
    VERMILION,
    label_axes,
    new_figure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = 12  # of the loss


def path(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw loss and accuracy along the line from one run to another.

    Curves are of the runs as they are and, if there is one, of the line to the second run with its
    units in the order of the first's. The dotted line joins both ends: the barrier is the largest
    rise above it.

    Args:
        result: from ``runs.landscape.path``.
        title: above the charts.
    """
    figure = new_figure(9.0, 3.7, title, _subtitle(result) if title else "")
    names = [run["name"] for run in result["runs"]]
    for axes, field in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        tidy(axes)
        scale = 100.0 if field == "accuracy" else 1.0
        for curve in result["curves"]:
            color = BLUE if curve["matched"] else VERMILION
            label = f"{names[1]} permuted to match {names[0]}" if curve["matched"] else "as trained"
            values = [math.nan if v is None else scale * v for v in curve[field]]
            axes.plot(curve["weights"], values, "o-", color=color, markersize=4, label=label)
        first = result["curves"][0]
        values = [math.nan if v is None else scale * v for v in first[field]]
        axes.plot([0, 1], [values[0], values[-1]], ":", color=SOFT, linewidth=1.3)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [names[0], "0.25", "0.5", "0.75", names[1]])
        unit = "%" if field == "accuracy" else "nats"
        label_axes(axes, f"weight of {names[1]}", f"{field}, {unit}")
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return figure


def plane(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw loss and accuracy on the plane through three runs, which are marked.

    The loss has levels at equal ratios, because it is far larger between some runs than at them.

    Args:
        result: from ``runs.landscape.plane``.
        title: above the charts.
    """
    import numpy as np
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = new_figure(9.6, 4.3, title, _subtitle(result) if title else "")
    for axes, field in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        scale = 100.0 if field == "accuracy" else 1.0
        values = np.array(
            [[math.nan if v is None else scale * v for v in row] for row in result[field]]
        )
        finite = values[np.isfinite(values)]
        ends = (finite.min(), finite.max()) if len(finite) else (1.0, 1.0)
        if field == "loss":
            low = max(ends[0], 1e-6)
            levels = np.geomspace(low, max(ends[1], 1.001 * low), _LEVELS)
        else:
            levels = np.linspace(ends[0], max(ends[1], ends[0] + 0.01), _LEVELS)
        colors = "viridis_r" if field == "loss" else "viridis"
        drawn = axes.contourf(
            result["x"],
            result["y"],
            np.clip(values, levels[0], levels[-1]),
            levels,
            cmap=colors,
            norm="log" if field == "loss" else "linear",
        )
        bar = figure.colorbar(drawn, ax=axes, ticks=levels[:: _LEVELS // 4 + 1])
        digits = 2 if field == "loss" else 0
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _, d=digits: f"{v:.{d}f}"))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.tick_params(length=0, labelcolor=SOFT)
        bar.outline.set_visible(False)
        bar.set_label(f"{field}, {'%' if field == 'accuracy' else 'nats'}", color=INK)
        for run in result["runs"]:
            axes.plot(run["x"], run["y"], "o", color=PAPER, markeredgecolor=INK, markersize=7)
            axes.annotate(
                run["name"],
                (run["x"], run["y"]),
                (7, 5),
                textcoords="offset points",
                color=PAPER,
                weight="bold",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": INK, "linewidth": 0},
                size=9,
            )
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelcolor=SOFT)
        label_axes(axes, "distance in the space of weights")
    return figure


def _subtitle(result: Mapping[str, Any]) -> str:
    images = f"{result['n']:,} {result['split']} images"
    permuted = result["kind"] == "plane" and result["matching"]
    return f"{images}; units permuted to match A" if permuted else images
