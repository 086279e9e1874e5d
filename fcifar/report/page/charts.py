"""Charts as inline SVG, in the colours and the type of the page around them.

Positions are units of the drawing, from its top left corner; the page makes it as wide as there is
room. Colours are the page's variables, so that a chart is right in light and in dark.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fcifar.report.page.html import Html, join, tag

WIDTH, HEIGHT = 460.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 40.0
POINTS = 400  # of a line; the drawing has not room for more
COLORS = 7  # of lines, --c0 to --c6 of the page
ROW, ROW_TOP = 44.0, 8.0  # of a strip chart
_LARGEST = 1e300  # what is farther from 0 has no place; nor has what is not finite


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # a value that is not finite is a gap
    color: int = 0
    style: str = "solid"  # solid, dashed, thin, or dots


class Scale(NamedTuple):
    """Values onto positions."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


class Strip(NamedTuple):
    """A row of a strip chart: the values of several runs."""

    name: str
    values: Sequence[float]
    interval: tuple[float, float] | None = None  # of their mean


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``, both finite and ``low`` the less."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line], *, title: str, x_name: str, y_name: str, unit: str = ""
) -> Html:
    """Lines over a common axis.

    Args:
        lines: drawn in their order, the last on top.
        title: what a reader who cannot see the chart is told.
        x_name: what the horizontal axis counts, from 0.
        y_name: what the vertical axis measures.
        unit: of the values, behind a value in a tooltip.

    Returns:
        The drawing; a sentence where no value is finite.
    """
    finite = [p for line in lines for p in line.points if _has_place(p)]
    if not finite:
        return tag("p", f"{y_name}: no finite value", class_="note")
    xs, ys = zip(*finite, strict=True)
    x = _scale(0.0, max(xs), LEFT, WIDTH - RIGHT, room=0.0)
    y = _scale(min(ys), max(ys), HEIGHT - BOTTOM, TOP, room=0.06)
    parts = [_across(y), _along(x, HEIGHT - BOTTOM)]
    parts += [_draw(line, x, y, unit) for line in lines]
    parts.append(tag("text", x_name, x=WIDTH - RIGHT, y=HEIGHT - 4, class_="axis end"))
    return drawing(parts, WIDTH, HEIGHT, title)


def drawing(parts: Sequence[Html], width: float, height: float, title: str) -> Html:
    """An SVG of a size, with the words for those who cannot see it."""
    return tag(
        "svg",
        tag("title", title),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
    )


def _scale(low: float, high: float, start: float, end: float, room: float) -> Scale:
    """A scale from the least to the greatest value, with some room at both ends."""
    width, largest = high - low, max(abs(low), abs(high))
    if width <= max(1e-9 * largest, 1 / _LARGEST):  # one value: in the middle
        width = largest if largest > 1 / _LARGEST else 1.0
        low, high = low - 0.5 * width * (room > 0), high + 0.5 * width
    return Scale(low - room * width, high + room * width, start, end)


def _across(y: Scale) -> Html:
    lines = []
    for value in ticks(y.low, y.high):
        place = _at(y(value))
        lines.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place, class_="grid"))
        lines.append(tag("text", number(value), x=LEFT - 8, y=place, class_="axis end middle"))
    return join(lines)


def _along(x: Scale, bottom: float) -> Html:
    return join(
        tag("text", number(value), x=_at(x(value)), y=bottom + 18, class_="axis center")
        for value in ticks(x.low, x.high, 6)
    )


def _draw(line: Line, x: Scale, y: Scale, unit: str) -> Html:
    color = f"c{line.color % COLORS}"
    runs = _unbroken(line.points)
    if line.style == "dots" or (len(runs) == 1 and len(runs[0]) == 1):
        return join(
            tag(
                "circle",
                tag("title", f"{line.name}: {b:.4g}{unit} at {a:.4g}"),
                cx=_at(x(a)),
                cy=_at(y(b)),
                r=4,
                class_=f"dot {color}",
            )
            for run in runs
            for a, b in run
        )
    path = " ".join(
        "M" + "L".join(f"{_at(x(a))} {_at(y(b))}" for a, b in thinned(run)) for run in runs
    )
    return tag("path", tag("title", line.name), d=path, class_=f"line {line.style} {color}")


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` of the points, evenly, with the first and the last."""
    if len(points) <= POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def _unbroken(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The pieces of a line between values that are not finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if _has_place(point):
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _has_place(point: tuple[float, float]) -> bool:
    return all(abs(value) <= _LARGEST for value in point)


def strip_chart(strips: Sequence[Strip], *, title: str, x_name: str) -> Html:
    """A row for each strip: a dot for each value, and a bar for the interval of their mean."""
    ends = [end for strip in strips if strip.interval for end in strip.interval]
    values = [*ends, *(value for strip in strips for value in strip.values)]
    if not values:
        return tag("p", "no run finished", class_="note")
    x = _scale(min(values), max(values), 12.0, WIDTH - 12.0, room=0.04)
    bottom = ROW_TOP + ROW * len(strips)
    parts = []
    for value in ticks(x.low, x.high, 6):
        place = _at(x(value))
        parts.append(tag("line", x1=place, x2=place, y1=ROW_TOP, y2=bottom, class_="grid"))
    parts.append(_along(x, bottom))
    parts.append(tag("text", x_name, x=WIDTH - 12, y=bottom + 35, class_="axis end"))
    for row, strip in enumerate(strips):
        top = ROW_TOP + ROW * row
        parts.append(tag("text", strip.name, x=12, y=top + 14, class_="label"))
        if strip.interval:
            low, high = map(x, strip.interval)
            parts.append(
                tag(
                    "rect",
                    x=_at(low),
                    y=top + 23,
                    width=_at(max(high - low, 1)),
                    height=12,
                    rx=6,
                    class_="interval c1",
                )
            )
        parts += [
            tag("circle", tag("title", f"{v:.2f}"), cx=_at(x(v)), cy=top + 29, r=4, class_="dot c0")
            for v in strip.values
        ]
    return drawing(parts, WIDTH, bottom + 40, title)


def bar_chart(bars: Sequence[tuple[float, float, str]], *, title: str, x_name: str) -> Html:
    """Bars over [0, 1], beside the diagonal where they are as high as they are far.

    Args:
        bars: the mean place and the height of each, in [0, 1], and what there is to say of it.
        title: what a reader who cannot see the chart is told.
        x_name: what is along.
    """
    x = Scale(0.0, 100.0, LEFT, WIDTH - RIGHT)
    y = Scale(0.0, 100.0, HEIGHT - BOTTOM, TOP)
    width = (x(100) - x(0)) / max(len(bars), 1)
    parts = [_across(y), _along(x, HEIGHT - BOTTOM)]
    parts.append(tag("line", x1=x(0), y1=y(0), x2=x(100), y2=y(100), class_="line dashed diagonal"))
    for i, (place, height, about) in enumerate(bars):
        if math.isfinite(height):
            parts.append(
                tag(
                    "rect",
                    tag("title", about),
                    x=_at(x(0) + (i + 0.08) * width),
                    y=_at(y(100 * height)),
                    width=_at(0.84 * width),
                    height=_at(y(0) - y(100 * height)),
                    class_="bar c0",
                )
            )
            parts.append(
                tag(
                    "circle", cx=_at(x(100 * place)), cy=_at(y(100 * place)), r=2.5, class_="dot c1"
                )
            )
    parts.append(tag("text", x_name, x=WIDTH - RIGHT, y=HEIGHT - 4, class_="axis end"))
    return drawing(parts, WIDTH, HEIGHT, title)


def legend(entries: Sequence[tuple[str, int, str, str]]) -> Html:
    """Names of lines with their colours: name, colour, style, and what there is to say of it."""

    def entry(name: str, color: int, style: str, about: str) -> Html:
        swatch = tag("span", class_=f"swatch {style} c{color % COLORS}", aria_hidden="true")
        return tag("li", swatch, tag("span", name), tag("span", about, class_="soft"))

    return tag("ul", *(entry(*each) for each in entries), class_="legend")


def number(value: float) -> str:
    """A tick's number, short."""
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _at(place: float) -> str:
    """A position to a tenth of a unit."""
    return f"{place:.1f}".removesuffix(".0")
