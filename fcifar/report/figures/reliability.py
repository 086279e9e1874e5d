"""The reliability diagram: accuracy against confidence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from fcifar.analysis.calibration import Reliability
from fcifar.errors import UsageError
from fcifar.report.figures.canvas import BLUE, INK, SOFT, VERMILION, label_axes, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COUNTED = 20  # with more bins the bars are too narrow for numbers


def draw(bins: Reliability, ece: float | Tensor, *, title: str = "") -> "Figure":
    """Draw accuracy against confidence, bin by bin, and the number of examples below.

    Args:
        bins: from ``calibration.reliability``.
        ece: the expected calibration error in [0, 1]; NaN without examples.
        title: above the diagram.
    """
    sizes = {tuple(part.shape) for part in bins}
    if len(sizes) != 1 or bins.count.ndim != 1 or not len(bins.count):
        raise UsageError(f"a reliability diagram needs one value for each bin, not {sizes}")
    figure = new_figure(5.6, 5.4 + 0.6 * bool(title), title, title and _summary(bins, float(ece)))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
    _draw_accuracy(upper, bins)
    _draw_counts(lower, bins)
    return figure


def before_and_after(
    both: Sequence[Reliability],
    eces: Sequence[float | Tensor],
    temperature: float,
    *,
    title: str,
) -> "Figure":
    """Draw the diagrams of a model without and with a temperature side by side.

    Args:
        both: from ``calibration.reliability`` with the same bins, without and with it.
        eces: the expected calibration errors of both, in [0, 1].
        temperature: what the logits were divided by.
        title: above the diagrams.
    """
    first, second = (f"{100 * float(ece):.2f} %" for ece in eces)
    caption = f"temperature {temperature:.3f}: expected calibration error {first} before, "
    figure = new_figure(11.2, 6.0, title, f"{caption}{second} after")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3.6, 1))
    for column, bins in enumerate(both):
        _draw_accuracy(grid[0][column], bins)
        _draw_counts(grid[1][column], bins)
    most = max(int(bins.count.max()) for bins in both)
    grid[1][0].set_ylim(0, 1.2 * max(most, 1))
    label_axes(grid[0][1], y="accuracy with the temperature")
    return figure


def _summary(bins: Reliability, ece: float) -> str:
    total = int(bins.count.sum())
    if not total:
        return "no examples with a confidence"
    confidence, accuracy = (
        (part.nan_to_num(0.0) * bins.count).sum().item() / total
        for part in (bins.confidence, bins.accuracy)
    )
    return (
        f"expected calibration error {100 * ece:.2f} %  ({total:,} examples, {len(bins.count)} "
        f"bins; mean confidence {100 * confidence:.1f} %, accuracy {100 * accuracy:.1f} %)"
    )


def _draw_accuracy(axes: "Axes", bins: Reliability) -> None:
    width = 1 / len(bins.count)
    filled = [m for m, count in enumerate(bins.count.tolist()) if count]
    middles = [(m + 0.5) * width for m in filled]
    accuracy = [bins.accuracy[m].item() for m in filled]
    gaps = [bins.confidence[m].item() - a for m, a in zip(filled, accuracy, strict=True)]
    tidy(axes)
    axes.bar(middles, accuracy, 0.92 * width, color=BLUE, alpha=0.8, label="accuracy", zorder=2)
    axes.bar(
        middles,
        gaps,
        0.92 * width,
        bottom=accuracy,
        color=VERMILION,
        alpha=0.45,
        label="gap to mean confidence",
        zorder=3,
    )
    # The accuracy again: where the model is underconfident, the gap covers the end of its bar.
    ends = [(x - 0.46 * width, x + 0.46 * width) for x in middles]
    starts, stops = zip(*ends, strict=True) if ends else ((), ())
    axes.hlines(accuracy, starts, stops, color=INK, linewidth=2, zorder=5)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1.3, linestyle="--", label="perfect", zorder=4)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    label_axes(axes, y="accuracy")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.995),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _draw_counts(axes: "Axes", bins: Reliability) -> None:
    counts = bins.count.tolist()
    width = 1 / len(counts)
    tidy(axes)
    bars = axes.bar(
        [(m + 0.5) * width for m in range(len(counts))], counts, 0.92 * width, color=SOFT
    )
    if len(counts) <= _COUNTED:
        texts = [f"{count:,}" if count < 1e5 else f"{count:.0e}" for count in counts]
        axes.bar_label(bars, texts, size=6.5, color=INK, padding=1)
    axes.set_ylim(0, 1.2 * max(*counts, 1))
    label_axes(axes, "confidence", "examples")
