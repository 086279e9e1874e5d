"""Charts of records, as SVG files that follow the light or dark scheme of their reader.

The same values give the same bytes with one version of matplotlib, which the file names.
"""

import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fcifar.report import page
from fcifar.report.figures.canvas import (
    BLUE,
    CSS_VARIABLES,
    INK,
    PAPER,
    SOFT,
    VERMILION,
    label_axes,
    new_figure,
    tidy,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DASHED = (0, (4, 3))
VERSION = re.compile(r'data-matplotlib="(.*?)"')


class Series(NamedTuple):
    """Points with a name in the legend, joined by a line unless the style is dots or hollow."""

    name: str
    points: Sequence[tuple[float, float]]  # positive on a logarithmic axis
    color: str
    style: str = "solid"  # solid, dashed, dots or hollow
    labels: Sequence[str] = ()  # one for each point, to its right


class Panel(NamedTuple):
    """Axes with series."""

    series: Sequence[Series]
    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[float] = ()  # chosen by matplotlib if empty
    log: str = "xy"  # the logarithmic axes
    reference: float | None = None  # the height of a dashed line


class Row(NamedTuple):
    """The values of a row, drawn as dots or as one bar."""

    name: str
    values: Sequence[float]
    color: str = BLUE
    interval: tuple[float, float] | None = None
    note: str = ""  # written after the values


def draw_panels(
    panels: Sequence[Panel], title: str, subtitle: str, *, width: float, height: float
) -> str:
    """Draw panels side by side, ``width`` x ``height`` inches together, with one legend."""
    figure = new_figure(width, height, title, subtitle)
    legend = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel)
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    column = 0.7 + 0.08 * max(map(len, legend))  # inches
    figure.legend(
        legend.values(),
        legend,
        loc="outside lower left",
        ncols=max(1, int((width - 0.3) / column)),
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        borderaxespad=1.0,
    )
    return _to_file(figure, title)


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    tidy(axes, grid="y")
    axes.tick_params(labelsize=9)
    if panel.title:
        axes.set_title(panel.title, loc="left", size=11, color=INK)
    axes.set(xscale="log" if "x" in panel.log else "linear")
    axes.set(yscale="log" if "y" in panel.log else "linear")
    for each in panel.series:
        hollow = each.style == "hollow"
        axes.plot(
            *zip(*each.points, strict=True),
            label=each.name,
            color=each.color,
            linestyle={"solid": "solid", "dashed": DASHED}.get(each.style, "none"),
            linewidth=1.7,
            marker="o",
            markersize=7.0 if hollow else 6.0,
            markerfacecolor="none" if hollow else each.color,
            markeredgecolor=each.color if hollow else PAPER,
            markeredgewidth=1.5 if hollow else 1.0,
        )
        for label, point in zip(each.labels, each.points, strict=False):
            _write_beside(axes, label, point)
    if panel.reference is not None:
        axes.axhline(panel.reference, color=SOFT, linewidth=1, linestyle=DASHED, zorder=1)
    _set_ticks(axes.xaxis, panel.x_ticks)
    _set_ticks(axes.yaxis)
    label_axes(axes, panel.x_label, panel.y_label)


def _set_ticks(axis: "Axis", ticks: Sequence[float] = ()) -> None:
    """Set the ticks, by default 1, 2 and 5 times a power of ten, or round ones in a small range."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if not ticks and axis.get_scale() == "log":
        every = LogLocator(subs=(1, 2, 5)).tick_values(low, high)
        inside = [tick for tick in every if low <= tick <= high]
        ticks = inside if len(inside) > 1 else ()
    round_numbers = MaxNLocator(6, steps=(1, 2, 5, 10))
    axis.set_major_locator(FixedLocator(ticks) if ticks else round_numbers)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,g}")


def draw_rows(
    rows: Sequence[Row],
    title: str,
    subtitle: str,
    x_label: str,
    *,
    bars: bool = False,
    reference: float | None = None,
) -> str:
    """Draw a row for each name: dots and an interval, or with ``bars`` a bar of its first value.

    A dashed line marks ``reference``.
    """
    figure = new_figure(8.0, 1.3 + 0.27 * len(rows), title, subtitle)
    axes = figure.add_subplot()
    tidy(axes, grid="x")
    for i, row in enumerate(rows):
        ends = [*row.values, *(row.interval or ())]
        if bars:
            axes.barh(i, row.values[0], height=0.62, color=row.color)
        else:
            axes.plot(row.values, [i] * len(row.values), "o", color=row.color, markersize=7.0,
                      markeredgecolor=PAPER)  # fmt: skip
        if row.interval:
            axes.plot(row.interval, [i, i], color=VERMILION, alpha=0.3, linewidth=8, zorder=1.5,
                      solid_capstyle="round")  # fmt: skip
        _write_beside(axes, row.note, (max(ends), i))
    if reference is not None:
        axes.axvline(reference, color=SOFT, linewidth=1, linestyle=DASHED, zorder=0.9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
    axes.tick_params(axis="y", labelcolor=INK)
    label_axes(axes, x_label)
    return _to_file(figure, title)


def _write_beside(axes: "Axes", text: str, point: tuple[float, float]) -> None:
    style: dict[str, Any] = {"size": 10, "color": INK, "va": "center_baseline", "parse_math": False}
    axes.annotate(text, point, (8, 0), textcoords="offset points", **style)


# Files -------------------------------------------------------------------------------------------


def _to_file(figure: "Figure", label: str) -> str:
    """Return the figure as an SVG file, with its size in CSS pixels and its own style."""
    import matplotlib

    element = to_svg(figure, label)
    width, height = figure.get_size_inches()
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{96 * width:g}" height="{96 * height:g}" '
        f'viewBox="0 0 {72 * width:g} {72 * height:g}" role="img" '
        f'aria-label="{html.escape(label)}" data-matplotlib="{matplotlib.__version__}">'
    )
    paper = '<rect width="100%" height="100%" rx="5" fill="var(--paper)"/>'
    body = element[element.index(">") + 1 :].strip()
    return f"{head}\n<style>\n{_style()}</style>\n{paper}\n{body}\n"


@functools.cache
def _style() -> str:
    """Return the page's font and its values of the colours; a halo keeps text off lines."""
    css = (Path(page.__file__).parent / "page.css").read_text()
    (font,) = re.findall(r"font: \S+ (system-ui.*?);", css)
    light, dark = (
        " ".join(f"{name}: {value};" for name, value in re.findall(r"(--\w+): (#\w+);", block)
                 if name in CSS_VARIABLES.values())
        for block in re.findall(r":root \{\n(.*?)\}", css, re.DOTALL)[:2]
    )  # fmt: skip
    return (
        f"svg {{ color-scheme: light dark; font-family: {font}; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}\n"
        "text { stroke: var(--paper); stroke-width: 2px; paint-order: stroke; }\n"
    )


def same_file(one: bytes, other: bytes) -> bool:
    """Return whether two SVG files are equal or made by different versions of matplotlib."""
    first, second = (VERSION.search(each.decode()) for each in (one, other))
    return one == other or (bool(first and second) and first[1] != second[1])
