"""Figures of a group of runs: their curves, their spread, and the grid of a sweep."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcifar.report.figures import (
    BLUE,
    INK,
    SOFT,
    VERMILION,
    cut,
    ink_on,
    save,
    tidy,
    titled,
    with_fonts,
)
from fcifar.train import metrics_log, run_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN = "#009E73"
_LARGEST_GRID = 20  # values on a side of a picture; the table has all


def draw(path: Path) -> list[Path]:
    """Fill ``plots/`` of a finished group.

    ``curves.png`` always; ``spread.png`` where a cell has two networks or more; ``sweep.png`` where
    one or two values are swept.

    Returns:
        What was drawn.
    """
    summary, folder = run_dir.read_report(path, run_dir.SUMMARY), path / run_dir.PLOTS
    title = f"{summary['recipe']} on {summary['dataset']}"
    drawn = [curves(path, summary, folder / "curves.png", title=title)]
    cells = [cell for cell in summary["cells"] if cell["together"]]
    if cells:
        drawn.append(spread(cells, folder / "spread.png", title=title))
    if 1 <= len(summary["swept"]) <= 2:
        drawn.append(grid(summary, folder / "sweep.png", title=title))
    return drawn


@with_fonts
def curves(path: Path, summary: Mapping[str, Any], file: Path, *, title: str) -> Path:
    """Loss and accuracy of every run over the epochs, a thin line each."""
    logs = [
        metrics_log.read(path / member["name"])
        for member in summary["members"]
        if (path / member["name"] / run_dir.MANIFEST).exists()
    ]
    figure = titled(11.0, 4.4, title, f"{len(logs)} runs")
    for place, (field, scale) in enumerate((("loss", 1.0), ("accuracy", 100.0))):
        axes = figure.add_axes((0.065 + 0.5 * place, 0.14, 0.42, 0.64))
        tidy(axes)
        for records in logs:
            for split, color in (("train", BLUE), ("valid", GREEN)):
                _line(axes, records, split, field, scale, color)
            _ends(axes, records, field, scale)
        axes.set_title("loss" if scale == 1 else "accuracy, %", loc="left", size=11, color=INK)
        axes.set_xlabel("epoch", color=INK)
    _legend(figure, logs)
    return save(figure, file)


def _line(
    axes: "Axes",
    records: Sequence[Mapping[str, Any]],
    split: str,
    field: str,
    scale: float,
    color: str,
) -> None:
    points = [
        (record["epoch"], math.nan if record[field] is None else scale * record[field])
        for record in records
        if record["split"] == split
    ]
    if points:
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.0, alpha=0.7, marker=marker)


def _ends(axes: "Axes", records: Sequence[Mapping[str, Any]], field: str, scale: float) -> None:
    for record in records:
        if record["split"] == "test" and record[field] is not None:
            axes.plot(
                record["epoch"],
                scale * record[field],
                "o",
                color=VERMILION,
                markersize=5,
                markeredgecolor="white",
                zorder=4,
            )


def _legend(figure: Any, logs: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    splits = {record["split"] for records in logs for record in records}
    names = [("training", BLUE)]
    names += [("validation", GREEN)] if "valid" in splits else []
    names += [("test", VERMILION)] if "test" in splits else []
    for i, (name, color) in enumerate(names):
        figure.text(0.985 - 0.09 * i, 0.93, name, color=color, size=10, ha="right", va="center")


@with_fonts
def spread(cells: Sequence[Mapping[str, Any]], file: Path, *, title: str) -> Path:
    """The test accuracy of each network, a row for each cell, beside where its spread comes from.

    The bars are standard deviations: the one seen, and the one that errors independent from image
    to image would give. See ``variance.split_variance``.
    """
    cells = cells[:_LARGEST_GRID]
    tall = 1.75 + 0.42 * len(cells)
    figure = titled(
        11.0,
        tall,
        f"{title}: test accuracy over seeds",
        "dots are models, the bar is the 95 % interval of their mean",
    )
    low, high = 0.62 / tall, (tall - 1.0) / tall
    left = 0.03 + 0.0085 * max(len(cut(_label(cell), 30)) for cell in cells)
    dots = figure.add_axes((left, low, 0.58 - left, high - low))
    bars = figure.add_axes((0.64, low, 0.33, high - low))
    for row, cell in enumerate(cells):
        together = cell["together"]
        values = [100 * value for value in together["accuracies"]]
        dots.plot(values, [row] * len(values), "o", color=BLUE, alpha=0.55, markersize=6)
        start, end = (100 * value for value in together["interval95"])
        dots.plot([start, end], [row + 0.27] * 2, color=VERMILION, linewidth=3)
        seen, alone = 100 * together["std_accuracy"], 100 * together["std_independent"]
        bars.barh(row - 0.18, seen, height=0.3, color=BLUE)
        bars.barh(row + 0.18, alone, height=0.3, color=SOFT)
        for place, value, name in ((-0.18, seen, "seen"), (0.18, alone, "independent errors")):
            bars.text(value, row + place, f" {value:.2f} {name}", va="center", size=9, color=INK)
    for axes in (dots, bars):
        tidy(axes)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(len(cells) - 0.4, -0.6)
    dots.set_yticks(range(len(cells)), [cut(_label(c), 30) for c in cells], parse_math=False)
    bars.set_yticks([])
    bars.set_xlim(0, 1.7 * max(bars.get_xlim()[1], 1e-9))
    dots.set_xlabel("test accuracy, %", color=INK)
    bars.set_xlabel("standard deviation, points", color=INK)
    return save(figure, file)


def _label(cell: Mapping[str, Any]) -> str:
    return cell["name"] or "all seeds"


@with_fonts
def grid(summary: Mapping[str, Any], file: Path, *, title: str) -> Path:
    """The accuracy of each point of a sweep: a line over one value, a heat map over two.

    On validation images where there are any, else on the test images, which then should choose
    nothing.
    """
    split = "validation" if _has_valid(summary) else "test"
    names = summary["swept"]
    axes_of = [list(dict.fromkeys(str(c["changes"][n]) for c in summary["cells"])) for n in names]
    axes_of = [values[:_LARGEST_GRID] for values in axes_of]
    found = {
        tuple(str(cell["changes"][name]) for name in names): _accuracy(cell)
        for cell in summary["cells"]
    }
    subtitle = f"mean accuracy on {split} images, %"
    if len(names) == 1:
        figure = titled(7.5, 4.6, f"{title}: {names[0]}", subtitle)
        axes = figure.add_axes((0.1, 0.14, 0.86, 0.66))
        tidy(axes)
        for i, value in enumerate(axes_of[0]):
            for cell in summary["cells"]:
                if str(cell["changes"][names[0]]) == value:
                    _whisker(axes, i, cell)
        axes.set_xlim(-0.5, len(axes_of[0]) - 0.5)
        axes.set_xticks(range(len(axes_of[0])), axes_of[0], parse_math=False)
        axes.set_xlabel(names[0], color=INK, parse_math=False)
        return save(figure, file)
    return _heat_map(found, names, axes_of, file, f"{title}: {' by '.join(names)}", subtitle)


def _whisker(axes: "Axes", place: int, cell: Mapping[str, Any]) -> None:
    figures = cell["valid_accuracy"] or cell["test_accuracy"]
    if figures is None:
        axes.text(place, 0.5, "failed", transform=axes.get_xaxis_transform(), ha="center")
        return
    low, high = 100 * figures["least"], 100 * figures["most"]
    axes.plot([place, place], [low, high], color=BLUE, linewidth=2, alpha=0.6)
    axes.plot(place, 100 * figures["mean"], "o", color=BLUE, markersize=8)
    axes.annotate(
        f"{100 * figures['mean']:.2f}",
        (place, 100 * figures["mean"]),
        (8, 0),
        textcoords="offset points",
        va="center",
        size=9,
        color=INK,
    )


def _heat_map(
    found: Mapping[tuple[str, ...], float],
    names: Sequence[str],
    values: Sequence[Sequence[str]],
    file: Path,
    title: str,
    subtitle: str,
) -> Path:
    from matplotlib import colormaps

    rows, columns = values
    wide, tall = max(5.5, 1.8 + 0.95 * len(columns)), 1.9 + 0.55 * len(rows)
    figure = titled(wide, tall, title, subtitle)
    axes = figure.add_axes((1.3 / wide, 0.85 / tall, 1 - 1.5 / wide, 1 - 1.75 / tall))
    known = [value for value in found.values() if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    colors = colormaps["viridis"]
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            value = found.get((row, column), math.nan)
            face, ink, text = (0.85, 0.85, 0.85), INK, "failed"
            if math.isfinite(value):
                face = colors((value - low) / max(high - low, 1e-9))[:3]
                ink, text = ink_on(face), f"{100 * value:.2f}"
            axes.fill_between([j - 0.48, j + 0.48], i - 0.46, i + 0.46, color=face)
            axes.text(j, i, text, ha="center", va="center", size=10, color=ink)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_xlabel(names[1], color=INK, parse_math=False)
    axes.set_ylabel(names[0], color=INK, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return save(figure, file)


def _has_valid(summary: Mapping[str, Any]) -> bool:
    return any(cell["valid_accuracy"] for cell in summary["cells"])


def _accuracy(cell: Mapping[str, Any]) -> float:
    figures = cell["valid_accuracy"] or cell["test_accuracy"]
    return figures["mean"] if figures else math.nan
