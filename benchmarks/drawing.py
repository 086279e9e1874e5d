"""Plots of measurements as SVG files: small, the same bytes each time, right in light and dark.

A viewer that knows which of the two its reader prefers shows the plot so.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fcifar.report.page.charts import Scale, ticks
from fcifar.report.page.html import Html, join, tag

LEFT, TOP, BOTTOM, RIGHT = 56.0, 64.0, 44.0, 14.0
ROW = 26.0  # the height of a row of a plot of rows
LETTER = 6.4  # the width of one
COLORS = 7
STYLE = """
svg { color-scheme: light dark; font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  --paper: #fff; --ink: #1f2429; --soft: #5c6670; --faint: #e4e7ea;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b4569a; --c4: #b07700; --c5: #3f9bd6;
  --c6: #6b7480; }
@media (prefers-color-scheme: dark) { svg { --paper: #14171a; --ink: #e3e7ea; --soft: #9aa5af;
  --faint: #2c3238; --c0: #4ba6e3; --c1: #f28a3f; --c2: #2fc195; --c3: #d98cc0; --c4: #e0a93a;
  --c5: #9ad0f5; --c6: #9aa5af; } }
.paper { fill: var(--paper); }
text { fill: var(--ink); stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.soft { fill: var(--soft); }
.title { font-weight: 600; font-size: 14px; }
.end { text-anchor: end; } .center { text-anchor: middle; } .middle { dominant-baseline: central; }
.grid { stroke: var(--faint); } .one { stroke: var(--soft); stroke-dasharray: 4 4; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.dashed { stroke-dasharray: 6 4; }
.dot { fill: var(--c); stroke: var(--paper); stroke-width: 1.5; }
.hollow { fill: var(--paper); stroke: var(--c); stroke-width: 2; }
.bar { fill: var(--c); fill-opacity: .8; } .range { fill: var(--c); fill-opacity: .28; }
"""
STYLE += "".join(f".c{i} {{ --c: var(--c{i}); }} " for i in range(COLORS))


class Line(NamedTuple):
    """Points of a plot, joined unless it is a cloud of dots."""

    name: str
    points: Sequence[tuple[float, float]]  # positive on an axis that is logarithmic
    color: int
    style: str = "solid"  # solid, dashed, dots or hollow
    labels: Sequence[str] = ()  # one for each point, written beside it


class Panel(NamedTuple):
    """Axes, with lines in them."""

    lines: Sequence[Line]
    title: str
    x_name: str
    y_name: str
    x_ticks: Sequence[float] = ()  # none for the powers of the axis
    log: str = "xy"  # which axes are logarithmic
    mark: float | None = None  # a height to compare with
    width: float = 430.0


class Row(NamedTuple):
    """A row of a plot: the values of a thing, as dots or as one bar from 0."""

    name: str
    values: Sequence[float]
    color: int = 0
    interval: tuple[float, float] | None = None
    about: str = ""  # written at its end


def plot(panels: Sequence[Panel], title: str, about: str, height: float = 330.0) -> str:
    """Panels side by side, with one legend for all.

    Args:
        panels: one or more.
        title: of the whole.
        about: where the figures come from.
        height: of the picture.
    """
    gap = 20.0
    widths = [panel.width for panel in panels]
    parts, left = [], 0.0
    for panel in panels:
        parts.append(_panel(panel, left, height))
        left += panel.width + gap
    lines = [line for panel in panels for line in panel.lines]
    named = {line.name: line for line in reversed(lines)}
    shown = [named[name] for name in dict.fromkeys(line.name for line in lines)]
    width = sum(widths) + gap * (len(panels) - 1)
    key, below = _legend(shown, width, height)
    return _file([*parts, key], width, below, title, about)


def rows(
    found: Sequence[Row], title: str, about: str, x_name: str, *, bars: bool = False,
    mark: float | None = None,
) -> str:  # fmt: skip
    """A row for each thing: dots with the interval of their mean, or a bar from 0.

    Args:
        found: one or more rows.
        title: of the whole.
        about: where the figures come from.
        x_name: what is measured.
        bars: draw the first value of each row as a bar.
        mark: a value to compare with.
    """
    width, start = 760.0, 28 + LETTER * max(len(row.name) for row in found)
    values = [v for row in found for v in (*row.values, *(row.interval or ()))]
    low, high = (0.0, max(values)) if bars else (min(values), max(values))
    room = 0.05 * ((high - low) or 1.0)
    x = Scale(low if bars else low - room, high + room, start, width - (90 if bars else RIGHT))
    bottom = TOP + ROW * len(found)
    parts = [
        join(
            [
                tag("line", x1=_at(x(v)), x2=_at(x(v)), y1=TOP, y2=_at(bottom), class_="grid"),
                _text(_short(v), x(v), bottom + 16, "soft center"),
            ]
        )
        for v in ticks(x.low, x.high, 6)
    ]
    if mark is not None:
        place = _at(x(mark))
        parts.append(tag("line", x1=place, x2=place, y1=TOP, y2=_at(bottom), class_="one"))
    parts += [_row(row, x, TOP + ROW * (i + 0.5), bars) for i, row in enumerate(found)]
    parts.append(_text(x_name, width - RIGHT, bottom + 34, "soft end"))
    return _file(parts, width, bottom + 44, title, about)


def _row(row: Row, x: Scale, y: float, bars: bool) -> Html:
    parts = [_text(row.name, x.start - 14, y, "end middle")]
    end = x(max(row.values))
    if bars:
        parts.append(
            tag("rect", x=_at(x(0)), y=_at(y - 8), width=_at(x(row.values[0]) - x(0)), height=16,
                rx=2, class_=f"bar c{row.color}")
        )  # fmt: skip
    else:
        if row.interval:
            low, high = map(x, row.interval)
            end = max(end, high)
            parts.append(
                tag("rect", x=_at(low), y=_at(y - 5), width=_at(high - low), height=10, rx=5,
                    class_="range c1")
            )  # fmt: skip
        parts += [
            tag("circle", cx=_at(x(v)), cy=_at(y), r=4.5, class_=f"dot c{row.color}")
            for v in row.values
        ]
    return join([*parts, _text(row.about, end + 10, y, "middle")] if row.about else parts)


def _panel(panel: Panel, left: float, height: float) -> Html:
    points = [point for line in panel.lines for point in line.points]
    xs, ys = zip(*points, strict=True)
    bottom = height - BOTTOM
    x = _axis([*xs, *panel.x_ticks], "x" in panel.log, left + LEFT, left + panel.width - RIGHT)
    heights = [*ys, *([] if panel.mark is None else [panel.mark])]
    y = _axis(heights, "y" in panel.log, bottom, TOP + 24)
    parts = [_text(panel.title, left + LEFT, TOP + 2, "title")] if panel.title else []
    parts.append(_text(panel.y_name, left + LEFT, TOP + (18 if panel.title else 8), "soft"))
    for value in _powers(y) if "y" in panel.log else ticks(y.low, y.high):
        place = _place(y, value, "y" in panel.log)
        ends = {"x1": _at(left + LEFT), "x2": _at(left + panel.width - RIGHT)}
        parts.append(tag("line", **ends, y1=_at(place), y2=_at(place), class_="grid"))
        parts.append(_text(_short(value), left + LEFT - 8, place, "soft end middle"))
    if panel.mark is not None:
        place = _at(_place(y, panel.mark, "y" in panel.log))
        ends = {"x1": _at(left + LEFT), "x2": _at(left + panel.width - RIGHT)}
        parts.append(tag("line", **ends, y1=place, y2=place, class_="one"))
    along = panel.x_ticks or (_powers(x) if "x" in panel.log else ticks(x.low, x.high))
    for value in along:
        parts.append(
            _text(_short(value), _place(x, value, "x" in panel.log), bottom + 17, "soft center")
        )
    parts.append(_text(panel.x_name, left + panel.width - RIGHT, bottom + 35, "soft end"))
    for line in panel.lines:
        places = [
            (_place(x, a, "x" in panel.log), _place(y, b, "y" in panel.log)) for a, b in line.points
        ]
        parts.append(_drawn(line, places))
        for label, (a, b) in zip(line.labels, places, strict=False):
            fits = a + 9 + LETTER * len(label) < left + panel.width
            parts.append(
                _text(label, a + 9 if fits else a - 9, b, "middle" if fits else "middle end")
            )
    return join(parts)


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> Html:
    color = f"c{line.color % COLORS}"
    dot = f"{'hollow' if line.style == 'hollow' else 'dot'} {color}"
    dots = [tag("circle", cx=_at(a), cy=_at(b), r=4, class_=dot) for a, b in places]
    if line.style in ("dots", "hollow"):
        return join(dots)
    path = "M" + "L".join(f"{_at(a)} {_at(b)}" for a, b in places)
    return join([tag("path", d=path, class_=f"line {line.style} {color}"), *dots])


def _legend(lines: Sequence[Line], width: float, top: float) -> tuple[Html, float]:
    """Names of lines in rows, and how far down they go."""
    parts, x, y = [], LEFT, top + 22
    for line in lines:
        wide = 34 + LETTER * len(line.name) + 16
        if x + wide > width and x > LEFT:
            x, y = LEFT, y + 20
        parts.append(_drawn(line._replace(labels=()), [(x, y), (x + 22, y)]))
        parts.append(_text(line.name, x + 34, y, "middle"))
        x += wide
    return join(parts), y + 18


def _file(parts: Sequence[Html], width: float, height: float, title: str, about: str) -> str:
    words = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width:g} {height:g}"}
    size = {"width": f"{width:g}", "height": f"{height:g}"}
    svg = tag(
        "svg",
        tag("title", title),
        tag("style", Html(STYLE)),
        tag("rect", width="100%", height="100%", rx=6, class_="paper"),
        _text(title, 14, 24, "title"),
        _text(about, 14, 42, "soft"),
        *parts,
        **words,
        **size,
        role="img",
        aria_label=title,
    )
    return f"{svg}\n".replace("><", ">\n<")


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> Scale:
    found = [math.log10(v) for v in values] if log else list(values)
    low, high = min(found), max(found)
    room = 0.05 * ((high - low) or 1.0)
    return Scale(low - room, high + room, start, end)


def _place(scale: Scale, value: float, log: bool) -> float:
    return scale(math.log10(value) if log else value)


def _powers(scale: Scale) -> list[float]:
    """1, 2 and 5 times the powers of ten; the powers alone where that is many; else round ones."""
    powers = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [m * 10.0**p for p in powers for m in steps]
        inside = [v for v in found if scale.low <= math.log10(v) <= scale.high]
        if len(inside) <= 9:
            break
    return inside if len(inside) > 1 else ticks(10**scale.low, 10**scale.high)


def _text(words: str, x: float, y: float, kind: str) -> Html:
    return tag("text", words, x=_at(x), y=_at(y), class_=kind)


def _short(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")
