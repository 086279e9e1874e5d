"""Plots of a run's metric records, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fcifar.report.figures import BLUE, FAINT, INK, VERMILION, cut, save, tidy, titled, with_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The rest of Okabe and Ito's palette, which people of every colour vision can tell apart.
COLORS = {
    "training": BLUE,
    "test": VERMILION,
    "valid": "#009E73",
    "train": "#CC79A7",
}
OTHER = "#56B4E9"
MOST_BARS = 100  # classes


class _Series(NamedTuple):
    """One line of a plot; a value that is not finite is a gap in it."""

    name: str
    epochs: list[float]
    values: list[float]
    dotted: bool  # every value is a measurement of its own and gets a marker


@with_fonts
def learning_curve(records: Sequence[Mapping[str, object]], path: Path, *, title: str) -> Path:
    """Plot loss and accuracy over the epochs, side by side.

    Args:
        records: in the order of a run's metrics log. Those of kind "train" make the line named
            "training", those of kind "eval" a line with markers for each split; other kinds are
            passed over. Losses and accuracies may be missing or not finite.
        path: the PNG file, written whole or not at all.
        title: what run this is.

    Returns:
        ``path``.
    """
    figure = titled(12.0, 4.4, title)
    for place, (field, name, unit) in enumerate(
        (("loss", "loss", ""), ("accuracy", "accuracy, %", " %"))
    ):
        axes = figure.add_axes((0.055 + 0.495 * place, 0.135, 0.335, 0.69))
        scale = 100.0 if unit else 1.0
        _panel(axes, _series(records, field, scale), "{:.1f} %" if unit else "{:.3f}")
        axes.set_title(name, loc="left", size=11, color=INK)
        axes.set_xlabel("epoch", color=INK)
    return save(figure, path)


@with_fonts
def per_class_bars(per_class: Mapping[str, Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """Plot the accuracy of each class as a bar, best first, its value and counts at the right.

    Of more than ``MOST_BARS`` classes, the highest and the lowest.

    Args:
        per_class: for each class name ``correct``, ``total`` and ``accuracy`` (in [0, 1]; NaN for
            a class without examples).
        path: the PNG file, written whole or not at all.
        title: what was evaluated.

    Returns:
        ``path``.
    """
    ranked = sorted(per_class.items(), key=lambda item: -_finite_or(item[1]["accuracy"], -1.0))
    subtitle = ""
    if len(ranked) > MOST_BARS:
        half = MOST_BARS // 2
        subtitle = f"the {half} highest and the {half} lowest of {len(ranked):,} classes"
        ranked = ranked[:half] + ranked[-half:]
    n = len(ranked)
    height = 1.35 + 0.34 * max(n, 2) + (0.3 if subtitle else 0)
    figure = titled(8.0, height, title, subtitle)
    axes = figure.add_axes((0.2, 0.6 / height, 0.56, 1 - (1.45 if subtitle else 1.15) / height))
    percent = [100 * _finite_or(row["accuracy"], 0.0) for _, row in ranked]
    axes.barh(range(n), percent, height=0.72, color=COLORS["training"])
    for place, (_, row) in enumerate(ranked):
        value, counts = "", "no examples"
        if row["total"]:
            value = f"{percent[place]:.1f} %"
            counts = f"{int(row['correct']):,} of {int(row['total']):,}"
        for right, text in ((114, value), (138, counts)):
            axes.text(right, place, text, ha="right", va="center", size=9, color=INK)
    tidy(axes)
    if subtitle:
        axes.axhline(n / 2 - 0.5, color=INK, linewidth=1.0, linestyle=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_yticks(range(n), [cut(name, 17) for name, _ in ranked], parse_math=False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("accuracy, %", color=INK)
    _mark_overall(axes, per_class)
    return save(figure, path)


def _mark_overall(axes: "Axes", per_class: Mapping[str, Mapping[str, Any]]) -> None:
    total = sum(row["total"] for row in per_class.values())
    if not total:
        return
    overall = 100 * sum(row["correct"] for row in per_class.values()) / total
    axes.axvline(overall, color=COLORS["test"], linewidth=1.2, linestyle="--", zorder=3)
    axes.text(
        overall,
        1.0,
        f"all {overall:.1f} %",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        size=9,
        color=COLORS["test"],
    )


# The learning curve ------------------------------------------------------------------------------


def _series(records: Sequence[Mapping[str, object]], field: str, scale: float) -> list[_Series]:
    """The lines of one panel: training first, then the splits in order of appearance."""
    lines: dict[str, _Series] = {}
    for record in records:
        if field not in record:
            continue
        measured = record["split"] != "train"
        name = str(record["split"]) if measured else "training"
        line = lines.setdefault(name, _Series(name, [], [], measured))
        line.epochs.append(_number(record.get("epoch")))
        line.values.append(scale * _number(record[field]))
    return sorted(lines.values(), key=lambda line: line.dotted)


def _panel(axes: "Axes", lines: Sequence[_Series], form: str) -> None:
    tidy(axes)
    for line in lines:
        alone = sum(map(math.isfinite, line.values)) == 1
        axes.plot(
            line.epochs,
            line.values,
            color=_color(line),
            linewidth=1.8,
            marker="o" if line.dotted or alone else None,
            markersize=8 if alone else 5,
            markeredgecolor="white",
            zorder=4 if line.dotted else 3,
        )
    _mark_first_gap(axes, lines)
    ends = [end for end in map(_last_finite, lines) if end is not None]
    if ends:
        _name_ends(axes, ends, form)
    else:
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=INK)


def _mark_first_gap(axes: "Axes", lines: Sequence[_Series]) -> None:
    """Shade where values are not finite: a run that diverged should look it."""
    gaps = [
        x
        for line in lines
        for x, y in zip(line.epochs, line.values, strict=True)
        if math.isfinite(x) and not math.isfinite(y)
    ]
    if not gaps:
        return
    start, end = min(gaps), max(gaps)
    axes.axvspan(start, end, facecolor=FAINT, edgecolor=FAINT, alpha=0.6)
    axes.text(
        (start + end) / 2,
        0.97,
        f"not finite\nfrom epoch {start:.3g}",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="top",
        size=9,
        color=INK,
    )


def _last_finite(line: _Series) -> tuple[_Series, float, float] | None:
    for x, y in zip(reversed(line.epochs), reversed(line.values), strict=True):
        if math.isfinite(x) and math.isfinite(y):
            return line, x, y
    return None


def _name_ends(axes: "Axes", ends: Sequence[tuple[_Series, float, float]], form: str) -> None:
    """Write name and last value of each line at the right edge, led there by a dotted line."""
    bottom, top = axes.get_ylim()
    right = axes.get_xlim()[1]
    ends = sorted(ends, key=lambda end: end[2])
    wanted = [(y - bottom) / (top - bottom) for _, _, y in ends]
    for (line, x, y), place in zip(ends, _spread(wanted, 0.075), strict=True):
        color = _color(line)
        axes.plot([x, right], [y, y], color=color, linewidth=0.9, linestyle=":", zorder=2)
        axes.text(
            1.02,
            place,
            f"{line.name} {form.format(y)}",
            transform=axes.transAxes,
            va="center",
            size=10,
            weight="bold" if line.dotted else "normal",
            color=color,
            parse_math=False,
        )
    axes.set_xlim(right=right)


def _spread(wanted: Sequence[float], distance: float) -> list[float]:
    """Places near the ``wanted`` ones (ascending), at least ``distance`` apart, about centred."""
    places = list(wanted)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + distance)
    shift = (sum(places) - sum(wanted)) / max(len(places), 1)
    return [place - shift for place in places]


def _color(line: _Series) -> str:
    return COLORS.get(line.name, OTHER)


def _number(value: object) -> float:
    """``value`` as a number, NaN where it is none or not finite."""
    number = float(value) if isinstance(value, (int, float)) else math.nan
    return number if math.isfinite(number) else math.nan


def _finite_or(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise
