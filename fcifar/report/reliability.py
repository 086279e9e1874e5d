"""The reliability diagram: confidence against accuracy."""

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fcifar.analysis.calibration import Reliability
from fcifar.errors import UsageError
from fcifar.report.figures import BLUE, INK, SOFT, VERMILION, save, tidy, titled, with_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = "#F6C49A"  # pale vermilion, opaque: it lies on the bar where the network is too modest
CAP = "#00304D"  # marks the accuracy, which is above such a gap and below any other
WIDTH, HEIGHT = 6.4, 8.55  # inches
COUNTED = 20  # with more bins than this the histogram's bars are too narrow for numbers


@with_fonts
def reliability_picture(
    reliability: Reliability, ece: float | Tensor, path: Path, *, title: str
) -> Path:
    """Draw accuracy against confidence, bin by bin, with the counts below.

    Args:
        reliability: from ``calibration.reliability``.
        ece: the expected calibration error in [0, 1]; NaN where there are no examples.
        path: the PNG file, written whole or not at all.
        title: what was evaluated.

    Returns:
        ``path``.
    """
    sizes = {tuple(part.shape) for part in reliability}
    if len(sizes) != 1 or reliability.count.ndim != 1 or not len(reliability.count):
        raise UsageError(f"a reliability diagram needs one value for each bin, not {sizes}")
    figure = titled(WIDTH, HEIGHT, title, _summary(reliability, float(ece)))
    left, side = 0.8, 5.3
    upper = figure.add_axes((left / WIDTH, 2.2 / HEIGHT, side / WIDTH, side / HEIGHT))
    lower = figure.add_axes((left / WIDTH, 0.6 / HEIGHT, side / WIDTH, 1.25 / HEIGHT))
    _draw_accuracy(upper, reliability)
    _draw_counts(lower, reliability)
    return save(figure, path)


def _summary(reliability: Reliability, ece: float) -> str:
    count = reliability.count
    total = int(count.sum())
    if not total:
        return "no examples with a confidence"
    confidence, accuracy = (
        (part.nan_to_num(0.0) * count).sum().item() / total
        for part in (reliability.confidence, reliability.accuracy)
    )
    return (
        f"expected calibration error {100 * ece:.2f} %  ({total:,} examples, {len(count)} bins; "
        f"mean confidence {100 * confidence:.1f} %, accuracy {100 * accuracy:.1f} %)"
    )


def _draw_accuracy(axes: "Axes", reliability: Reliability) -> None:
    width = 1 / len(reliability.count)
    filled = [m for m, count in enumerate(reliability.count.tolist()) if count]
    middles = [(m + 0.5) * width for m in filled]
    accuracy = [reliability.accuracy[m].item() for m in filled]
    gaps = [reliability.confidence[m].item() - a for m, a in zip(filled, accuracy, strict=True)]
    tidy(axes)
    axes.set_xlim(0, 1)
    axes.bar(middles, accuracy, 0.92 * width, color=BLUE, label="accuracy (dark edge)", zorder=2)
    axes.bar(
        middles,
        gaps,
        0.92 * width,
        bottom=accuracy,
        color=GAP,
        edgecolor=VERMILION,
        linewidth=1.2,
        label="gap to mean confidence",
        zorder=3,
    )
    halves = 0.46 * width
    axes.hlines(
        accuracy,
        [x - halves for x in middles],
        [x + halves for x in middles],
        color=CAP,
        linewidth=3,
        zorder=5,
    )
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.3, linestyle="--", label="perfect", zorder=4)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy", color=INK)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.995),
        ncols=3,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )


def _draw_counts(axes: "Axes", reliability: Reliability) -> None:
    counts = reliability.count.tolist()
    width = 1 / len(counts)
    tidy(axes)
    axes.set_xlim(0, 1)
    axes.bar([(m + 0.5) * width for m in range(len(counts))], counts, 0.92 * width, color=SOFT)
    if len(counts) <= COUNTED:
        for m, count in enumerate(counts):
            axes.annotate(
                f"{count:,}" if count < 1e5 else f"{count:.0e}",
                ((m + 0.5) * width, count),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                size=7,
                color=INK if count else SOFT,
            )
    axes.set_ylim(0, 1.15 * max(*counts, 1))
    axes.set_xlabel("confidence", color=INK)
    axes.set_ylabel("examples", color=INK)
