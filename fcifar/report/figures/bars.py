"""Bar charts: the accuracy of each class, and histograms of per-example scores."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures.canvas import (
    BLUE,
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

MOST_CLASSES = 100
BINS = 40
_LEVELS = 12  # a score with at most this many distinct values has a bar for each
_COLUMNS = 3


def per_class(classes: Mapping[str, Mapping[str, Any]], *, title: str = "") -> "Figure":
    """Draw the accuracy of each class as a bar, highest first, with its value and its counts.

    Of more than ``MOST_CLASSES`` classes, the highest and the lowest.

    Args:
        classes: for each name ``correct``, ``total`` and ``accuracy`` in [0, 1] (NaN or None for a
            class without examples).
        title: above the bars.
    """

    def accuracy(row: Mapping[str, Any]) -> float:
        return row["accuracy"] if row["total"] else -1.0

    ranked = sorted(classes.items(), key=lambda item: -accuracy(item[1]))
    subtitle = ""
    if cut := len(ranked) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        subtitle = f"the {half} highest and the {half} lowest of {len(ranked):,} classes"
        ranked = ranked[:half] + ranked[-half:]
    n = len(ranked)
    figure = new_figure(8.0, 1.4 + 0.3 * max(n, 2) + 0.25 * cut, title, subtitle)
    axes = figure.add_subplot()
    tidy(axes, grid="x")
    heights = [100 * max(accuracy(row), 0.0) for _, row in ranked]
    axes.barh(range(n), heights, height=0.72, color=BLUE)
    for i, (_, row) in enumerate(ranked):
        value = f"{heights[i]:.1f} %" if row["total"] else ""
        counts = f"{int(row['correct']):,} of {int(row['total']):,}"
        for offset, text in ((50, value), (145, counts if row["total"] else "no examples")):
            axes.annotate(
                text,
                (1, i),
                (offset, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="center",
                size=9,
                color=INK,
            )
    axes.set(xlim=(0, 100), ylim=(n - 0.4, -0.6))
    axes.set_yticks(range(n), [shorten(name, 17) for name, _ in ranked], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK)
    label_axes(axes, "accuracy, %")
    if cut:
        axes.axhline(n / 2 - 0.5, color=INK, linewidth=1.0, linestyle=":")
    if total := sum(row["total"] for row in classes.values()):
        overall = 100 * sum(row["correct"] for row in classes.values()) / total
        axes.axvline(overall, color=VERMILION, linewidth=1.2, linestyle="--", zorder=3)
        axes.text(
            *(overall, 1.0, f"all {overall:.1f} %"),
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            size=9,
            color=VERMILION,
        )
    return figure


def scores(values: Mapping[str, Tensor], correct: Tensor, *, title: str = "") -> "Figure":
    """Draw a histogram of each score, with the wrong predictions on top of the right ones.

    Scores with few distinct values, such as error rates of few models, have a bar for each value.

    Args:
        values: [N] for each score, by the label of its axis. Values that are not finite are counted
            and left out.
        correct: bool [N].
        title: above the histograms.
    """
    if not values or any(each.shape != correct.shape for each in values.values()):
        raise UsageError(
            f"histograms need at least one score, and one value for each of {len(correct)} "
            f"examples, not {[[*each.shape] for each in values.values()]}"
        )
    rows, right = math.ceil(len(values) / _COLUMNS), int(correct.sum())
    counted = f"{len(correct):,} examples: {right:,} right (blue), {len(correct) - right:,} wrong"
    figure = new_figure(12.0, 0.9 + 2.5 * rows, title, f"{counted} (orange, on top of the blue)")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes, (name, each) in zip(panels, values.items(), strict=False):
        _histogram(axes, each.double(), correct)
        label_axes(axes, name, "examples" if axes.get_subplotspec().is_first_col() else "")
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    return figure


def _histogram(axes: "Axes", values: Tensor, correct: Tensor) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    tidy(axes)
    finite = values.isfinite()
    if not finite.all():
        text = f"{len(values) - int(finite.sum()):,} not finite"
        axes.set_title(text, loc="right", size=9, color=SOFT)
    if not finite.any():
        axes.set(xticks=[], yticks=[])
        return
    middles, width, counts = histogram(values[finite], correct[finite])
    right, wrong = counts.tolist()
    axes.bar(middles, right, width, color=BLUE, zorder=2)
    axes.bar(middles, wrong, width, right, color=VERMILION, zorder=2)
    axes.margins(x=0.03)
    axes.set_ylim(0, 1.08 * int(counts.sum(0).max()))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def histogram(values: Tensor, correct: Tensor) -> tuple[list[float], float, Tensor]:
    """Return the middles of M bars, their width, and their heights.

    Args:
        values: float64 [N], finite, N at least 1.
        correct: bool [N].

    Returns:
        M middles, the width, and int64 [2, M]: the numbers of right and of wrong examples.
    """
    distinct, index = values.unique(return_inverse=True)
    gaps = distinct.diff()
    if len(distinct) == 1:
        middles, width = distinct, 1.0
    elif len(distinct) <= _LEVELS and gaps.min() > gaps.sum() / BINS:
        middles, width = distinct, 0.8 * gaps.min().item()
    else:
        edges = torch.linspace(distinct[0], distinct[-1], BINS + 1, dtype=torch.float64)
        middles, width = (edges[:-1] + edges[1:]) / 2, (edges[1] - edges[0]).item()
        index = torch.bucketize(values, edges[1:-1], right=True)
    counts = [torch.bincount(index[rows], minlength=len(middles)) for rows in (correct, ~correct)]
    return middles.tolist(), width, torch.stack(counts)
