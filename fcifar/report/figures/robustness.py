"""The chart of accuracy on corrupted images: a panel for each corruption."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fcifar.augment.corruptions import BENCHMARK, EXTRA
from fcifar.report.figures.canvas import COLORS, FAINT, INK, SOFT, label_axes, new_figure, tidy
from fcifar.report.text import count, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
_WIDTH, _HEIGHT = 2.3, 1.85  # inches of a panel
_GROUPS = (BENCHMARK[:3], BENCHMARK[3:7], BENCHMARK[7:11], BENCHMARK[11:], EXTRA)


def draw(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw accuracy by severity, with 0 for the clean images, in a row each for noise, blur,
    weather, digital and additional corruptions.

    A line is a model, the reference dashed; of one model, the mean over severities is beside the
    name. Runs are named by their letters.

    Args:
        result: from ``runs.robustness``.
        title: above the chart.
    """
    runs, reference = result["runs"], result["reference"]
    rows = arranged([*result["severities"]])
    figure = new_figure(
        COLUMNS * _WIDTH + 0.4, len(rows) * _HEIGHT + 0.9, title, _subtitle(result) if title else ""
    )
    axes = None
    for i, row in enumerate(rows):
        for j, name in enumerate(row):
            axes = figure.add_subplot(len(rows), COLUMNS, i * COLUMNS + j + 1)
            _draw_panel(axes, result, name, is_first=j == 0, is_last=i == len(rows) - 1)
    if axes is not None and (len(runs) > 1 or reference is not None):
        handles, names = axes.get_legend_handles_labels()
        figure.legend(
            *(handles, names),
            loc="outside lower center",
            ncols=min(len(names), 8),
            frameon=False,
            labelcolor=INK,
        )
    return figure


def arranged(names: Sequence[str]) -> list[list[str]]:
    """Return corruptions in rows of at most ``COLUMNS``, a kind in each; unknown ones last."""
    known = {name for group in _GROUPS for name in group}
    groups = [[name for name in group if name in names] for group in _GROUPS]
    groups.append([name for name in names if name not in known])
    return [
        group[start : start + COLUMNS]
        for group in groups
        for start in range(0, len(group), COLUMNS)
    ]


def _subtitle(result: Mapping[str, Any]) -> str:
    first = result["runs"][0]
    corruptions = count(len(result["severities"]), "corruption")
    clean = f"{percent(first['accuracy'])} clean, " if first["accuracy"] is not None else ""
    only = "" if len(result["runs"]) == 1 else f"{first['name']}: "
    return (
        f"{only}{clean}{percent(first['mean_accuracy'])} on average over {corruptions}.  Accuracy, "
        "%, against severity; 0: clean images."
    )


def _draw_panel(
    axes: "Axes", result: Mapping[str, Any], name: str, *, is_first: bool, is_last: bool
) -> None:
    tidy(axes)
    runs, reference = result["runs"], result["reference"]
    models = [(run, COLORS[i % len(COLORS)], "-") for i, run in enumerate(runs)]
    models += [(reference, SOFT, "--")] if reference else []
    for run, color, style in models:
        levels, values = [*result["severities"][name]], [*run["corruptions"][name]["accuracy"]]
        if run["accuracy"] is not None:
            levels, values = [0, *levels], [run["accuracy"], *values]
        label = "reference" if run is reference else run["name"]
        points = [100 * value for value in values]
        axes.plot(levels, points, style, color=color, marker="o", markersize=3.5, label=label)
    axes.set(xlim=(-0.3, 5.3), ylim=(0, 102), xticks=range(6), yticks=(0, 25, 50, 75, 100))
    axes.tick_params(labelsize=8, labelleft=is_first)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_title(name.replace("_", " "), loc="left", size=9.5, color=INK, parse_math=False)
    if len(models) == 1:
        mean = f"{100 * runs[0]['corruptions'][name]['mean']:.1f}"
        axes.set_title(mean, loc="right", size=9.5, color=SOFT)
    label_axes(axes, "severity" if is_last else "")
