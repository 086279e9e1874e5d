"""What a person sees: results on stdout, everything else on stderr."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_CLASSES, _EXTREMES = 40, 10  # classes of a table; and of each end of it, where there are more

# Without emoji, for ":smile:" may be the name of a file. rich respects NO_COLOR and FORCE_COLOR;
# the latter is of colours, and shall not bring a moving bar into a file.
_live = None if sys.stderr is not None and sys.stderr.isatty() else False
stderr = Console(stderr=True, highlight=False, emoji=False, force_interactive=_live)
stdout = Console(highlight=False, emoji=False)


def escape_unencodable() -> None:
    """Have the standard streams write what their encoding lacks as an escape, such as ``\\u732b``.

    For what comes by other ways than the functions here: help, bars, warnings.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence() -> None:
    """Print nothing, as on ranks other than 0."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    stdout.quiet = stderr.quiet = True


def speak() -> None:
    """Print to stderr again."""
    stderr.quiet = False


def error(message: str) -> None:
    """One line, however long, on stderr."""
    stderr.print("[bold red]error:[/] ", end="", soft_wrap=True)
    stderr.print(_visible(message, stderr), markup=False, soft_wrap=True)


def note(message: str) -> None:
    """A message in one line on stderr."""
    stderr.print(_visible(message, stderr), markup=False, soft_wrap=True)


def line(message: str) -> None:
    """A result in one line, however long, on stdout."""
    stdout.print(_visible(message, stdout), markup=False, soft_wrap=True)


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
    """Text from outside, such as a file's name, that shows on stdout and steers no terminal."""
    return escape("\n".join(_visible(line, stdout) for line in text.split("\n")))


def _visible(text: str, console: Console) -> str:
    """One line without the characters that steer a terminal.

    Those that its encoding lacks are escapes already here, for a table counts its columns.
    """
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown.encode(console.encoding, "backslashreplace").decode(console.encoding)


def count(number: int, what: str, several: str = "") -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def size(count: int) -> str:
    """Bytes as ``2.5 MB``."""
    for unit, bytes_ in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_:
            return f"{count / bytes_:.1f} {unit}"
    return f"{count} B"


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.564`` as ``56.4 %``."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None) -> str:
    """``0.6934``, or a dash for what JSON cannot hold."""
    return "-" if value is None else f"{value:.4f}"


def calibration(report: dict[str, Any]) -> str:
    """Confidence beside accuracy, in words."""
    confidence, ece = percent(report["mean_confidence"]), percent(report["ece"])
    return f"mean confidence {confidence}, expected calibration error {ece}"


def confusions(report: dict[str, Any], count: int = 3) -> str:
    """The most frequent mistakes, in words."""
    classes = list(report["per_class"])
    cells = [cell for cell in _cells(report) if cell[0] != cell[1]]
    worst = sorted(cells, key=lambda cell: -cell[2])[:count]
    return ", ".join(f"{classes[i]} as {classes[j]} ({number:,})" for i, j, number in worst)


def _cells(report: dict[str, Any]) -> list[list[int]]:
    """True class, predicted class and count, where that is not 0."""
    if "confusion_cells" in report:
        return report["confusion_cells"]
    matrix = report["confusion"]
    return [
        [i, j, number] for i, row in enumerate(matrix) for j, number in enumerate(row) if number
    ]


def class_table(per_class: dict[str, dict[str, Any]]) -> None:
    """Accuracy class by class, with counts; of many classes, the lowest and the highest."""
    rows = [
        (name, percent(c["accuracy"]), f"{c['correct']:,}", f"{c['total']:,}")
        for name, c in per_class.items()
    ]
    if len(rows) <= _CLASSES:
        table(("class", "accuracy", "correct", "of"), rows)
        return
    seen = [(c["accuracy"], row) for c, row in zip(per_class.values(), rows, strict=True)]
    ranked = sorted((pair for pair in seen if pair[0] is not None), key=lambda pair: pair[0])
    for title, part in (("lowest", ranked[:_EXTREMES]), ("highest", ranked[-_EXTREMES:][::-1])):
        table((title, "accuracy", "correct", "of"), [row for _, row in part])
        stdout.print()
    line(f"... of {len(rows):,} classes; --json and report.json have all")
