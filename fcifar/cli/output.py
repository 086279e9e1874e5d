"""What a person sees: results on stdout, everything else on stderr."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Without emoji, for ":smile:" may be the name of a file.
stderr = Console(stderr=True, highlight=False, emoji=False)
stdout = Console(highlight=False, emoji=False)


def error(message: str) -> None:
    """One line, however long, on stderr."""
    stderr.print("[bold red]error:[/] ", end="", soft_wrap=True)
    stderr.print(_visible(message), markup=False, soft_wrap=True)


def note(message: str) -> None:
    """A message in one line on stderr."""
    stderr.print(_visible(message), markup=False, soft_wrap=True)


def line(message: str) -> None:
    """A result in one line, however long, on stdout."""
    stdout.print(_visible(message), markup=False, soft_wrap=True)


def document(values: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(values, indent=2, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout; numbers, which start with a digit or a sign, go to the right."""
    rows = [list(row) for row in rows]
    title = title and printable(title)
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i][:1].isdigit() or row[i][:1] in "-+" for row in rows)
        result.add_column(
            column, justify="right" if numeric else "left", header_style="dim", overflow="fold"
        )
    for row in rows:
        result.add_row(*map(printable, row))
    stdout.print(result)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values on stdout, a pair a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(printable(name), printable(str(value)))
    stdout.print(grid)


def printable(text: str) -> str:
    """Text from outside, such as a file's name, that shows as it is and steers no terminal."""
    return escape("\n".join(map(_visible, text.split("\n"))))


def _visible(text: str) -> str:
    """One line without the characters that steer a terminal or that it cannot encode."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def count(number: int, what: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.564`` as ``56.4 %``."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def calibration(report: dict[str, Any]) -> str:
    """Confidence beside accuracy, in words."""
    confidence, ece = percent(report["mean_confidence"]), percent(report["ece"])
    return f"mean confidence {confidence}, expected calibration error {ece}"


def confusions(report: dict[str, Any], count: int = 3) -> str:
    """The most frequent mistakes, in words."""
    classes = list(report["per_class"])
    cells = [
        (number, true, predicted)
        for true, row in zip(classes, report["confusion"], strict=True)
        for predicted, number in zip(classes, row, strict=True)
        if true != predicted and number
    ]
    worst = sorted(cells, key=lambda cell: -cell[0])[:count]
    return ", ".join(f"{true} as {predicted} ({number:,})" for number, true, predicted in worst)


def class_table(per_class: dict[str, dict[str, Any]]) -> None:
    """Accuracy class by class, with counts."""
    table(
        ("class", "accuracy", "correct", "of"),
        [
            (name, percent(c["accuracy"]), f"{c['correct']:,}", f"{c['total']:,}")
            for name, c in per_class.items()
        ],
    )
