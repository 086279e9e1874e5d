"""The chart of a search for the learning rate: loss against rate."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcifar.report.figures.canvas import BLUE, INK, SOFT, VERMILION, label_axes, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw the loss of each rate with its standard error, and mark the suggestion.

    Rates whose loss is not finite are crosses at the upper edge. Losses far above that of the
    smallest rate are outside, so that the others can be told apart.

    Args:
        result: from ``train.lr_find.find``, with ``recipe_rate``.
        title: above the chart.
    """
    found = [each for each in result["rates"] if each["loss"] is not None]
    lost = [each["rate"] for each in result["rates"] if each["loss"] is None]
    subtitle = f"mean training loss of the last {result['averaged_steps']:,} of {result['steps']:,}"
    figure = new_figure(6.4, 3.9, title, f"{subtitle} steps at a constant rate" if title else "")
    axes = figure.add_subplot()
    tidy(axes)
    axes.set_xscale("log")
    rates, losses, errors = (
        [each[name] for each in found] for name in ("rate", "loss", "standard_error")
    )
    axes.errorbar(rates, losses, errors, fmt="o-", color=BLUE, markersize=5.5, linewidth=1.8)
    low = min(losses)
    high = low + 1.15 * max(losses[0] - low, 0.05 * abs(low), 1e-9)
    axes.set_ylim(low - 0.12 * (high - low), high)
    inside = axes.get_xaxis_transform()
    if lost:
        axes.plot(lost, [0.97] * len(lost), "x", color=SOFT, transform=inside, clip_on=False)
        axes.text(lost[0], 0.9, "diverged", transform=inside, ha="center", size=9, color=INK)
    for name, color, style in (("suggestion", VERMILION, "-"), ("recipe_rate", SOFT, ":")):
        axes.axvline(result[name], color=color, linewidth=1.2, linestyle=style, zorder=1)
    chosen, recipe = (f"{result[name]:g}" for name in ("suggestion", "recipe_rate"))
    axes.set_title(
        f"suggested: {chosen} (line); the recipe's: {recipe} (dotted)",
        loc="left",
        size=9.5,
        color=INK,
    )
    label_axes(axes, "learning rate", "loss, nats")
    return figure
