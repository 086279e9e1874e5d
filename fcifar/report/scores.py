"""Histograms of the scores of single examples."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures import BLUE, INK, SOFT, VERMILION, save, tidy, titled, with_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
LEVELS = 12  # up to so many different values have a bar each
COLUMNS = 3
WIDTH, LEFT, SIDE, PITCH = 12.0, 0.75, 3.2, 3.85  # inches
TOP, HEIGHT, DOWN = 0.95, 1.85, 2.7  # inches


@with_fonts
def score_histograms(
    scores: Mapping[str, Tensor], correct: Tensor, path: Path, *, title: str
) -> Path:
    """Draw how each score is spread over the examples, the wrong ones on top of the right ones.

    The height of a bar is a number of examples. Scores that have few different values, such as
    error rates of few networks, have a bar for each value.

    Args:
        scores: [N] each, by what is written under them; values that are not finite are counted and
            left out.
        correct: bool [N].
        path: the PNG file, written whole or not at all.
        title: what was evaluated.

    Returns:
        ``path``.
    """
    if not scores or any(values.shape != correct.shape for values in scores.values()):
        raise UsageError(
            f"histograms need at least one score, and one value for each of {len(correct)} "
            f"examples, not {[[*values.shape] for values in scores.values()]}"
        )
    height = TOP + math.ceil(len(scores) / COLUMNS) * DOWN
    right = int(correct.sum())
    counted = f"{len(correct):,} examples: {right:,} right (blue), {len(correct) - right:,} wrong"
    figure = titled(WIDTH, height, title, f"{counted} (orange, on top of the blue)")
    for i, (name, values) in enumerate(scores.items()):
        row, column = divmod(i, COLUMNS)
        below = height - TOP - row * DOWN - HEIGHT
        place = (LEFT + PITCH * column, below, SIDE, HEIGHT)
        axes = figure.add_axes(
            (place[0] / WIDTH, place[1] / height, place[2] / WIDTH, place[3] / height)
        )
        _panel(axes, values.double(), correct)
        axes.set_xlabel(name, color=INK, parse_math=False)
        if column == 0:
            axes.set_ylabel("examples", color=INK)
            axes.yaxis.set_label_coords(-0.17, 0.5)
    return save(figure, path)


def _panel(axes: "Axes", values: Tensor, correct: Tensor) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    tidy(axes)
    finite = values.isfinite()
    left_out = len(values) - int(finite.sum())
    if left_out:
        axes.text(
            *(0.98, 1.02, f"{left_out:,} not finite"),
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            size=9,
            color=SOFT,
        )
    if left_out == len(values):
        axes.set_xticks([])
        axes.set_yticks([])
        return
    places, width, counts = histogram(values[finite], correct[finite])
    right, wrong = counts.tolist()
    axes.bar(places, right, width, color=BLUE, zorder=2)
    axes.bar(places, wrong, width, right, color=VERMILION, zorder=2)
    axes.margins(x=0.03)
    axes.set_ylim(0, 1.08 * int(counts.sum(0).max()))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def histogram(values: Tensor, correct: Tensor) -> tuple[list[float], float, Tensor]:
    """Where bars stand (their middles), how wide they are, and how high.

    Args:
        values: float64 [N], finite, N at least 1.
        correct: bool [N].

    Returns:
        The middles of M bars, their width, and int64 [2, M]: how many of the examples in each are
        right, and how many are wrong.
    """
    different, place = values.unique(return_inverse=True)
    gaps = different.diff()
    if len(different) == 1:
        middles, width = different, 1.0
    elif len(different) <= LEVELS and gaps.min() > gaps.sum() / BINS:
        middles, width = different, 0.8 * gaps.min().item()
    else:
        edges = torch.linspace(different[0], different[-1], BINS + 1, dtype=torch.float64)
        middles, width = (edges[:-1] + edges[1:]) / 2, (edges[1] - edges[0]).item()
        place = torch.bucketize(values, edges[1:-1], right=True)
    counts = [torch.bincount(place[those], minlength=len(middles)) for those in (correct, ~correct)]
    return middles.tolist(), width, torch.stack(counts)
