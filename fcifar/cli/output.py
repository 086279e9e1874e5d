"""Text for a terminal: results on stdout, everything else on stderr."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal as size
from rich.markup import escape
from rich.table import Table

from fcifar.report.text import accuracy, confusions, count, number, percent, seconds

__all__ = [
    "accuracy",
    "class_table",
    "confusions",
    "count",
    "document",
    "error",
    "escape_unencodable",
    "facts",
    "line",
    "note",
    "number",
    "percent",
    "printable",
    "result",
    "seconds",
    "silence",
    "size",
    "stderr",
    "stdout",
    "table",
]

_CLASSES, _EXTREMES = 40, 10  # most classes of a table; classes at each end of a longer one

# Without emoji, because ":smile:" may be the name of a file. FORCE_COLOR makes rich write colours
# to a file; it must not make it write moving bars, too.
_live = None if sys.stderr is not None and sys.stderr.isatty() else False
stderr = Console(stderr=True, highlight=False, emoji=False, force_interactive=_live)
stdout = Console(highlight=False, emoji=False)


def escape_unencodable() -> None:
    """Let help, bars and warnings escape what the streams' encoding lacks, as ``\\u732b``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence() -> None:
    """Print nothing, as on ranks other than 0."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    stdout.quiet = stderr.quiet = True


def error(message: str) -> None:
    """Write an error in one line on stderr."""
    stderr.print("[bold red]error:[/] ", end="", soft_wrap=True)
    stderr.print(_visible(message, stderr), markup=False, soft_wrap=True)


def note(message: str) -> None:
    """Write a message in one line on stderr."""
    stderr.print(_visible(message, stderr), markup=False, soft_wrap=True)


def line(message: str) -> None:
    """Write a result in one line on stdout."""
    stdout.print(_visible(message, stdout), markup=False, soft_wrap=True)


def document(values: Any) -> None:
    """Write one JSON document on stdout."""
    print(json.dumps(values, indent=2, default=str))


def result(values: Any, show: Callable[[Any], object], as_json: bool) -> None:
    """Write ``values`` on stdout, as a JSON document or by ``show``."""
    (document if as_json else show)(values)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Write a table on stdout, with columns of numbers aligned to the right."""
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
    _print(result)


def facts(pairs: Iterable[tuple[str, Any]]) -> None:
    """Write names and values on stdout, one pair per line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(printable(name), printable(str(value)))
    _print(grid)


def _print(table: Table) -> None:
    """Write a table; rich pads its lines, which a file or a pipe does not need."""
    if stdout.is_terminal:
        stdout.print(table)
        return
    with stdout.capture() as captured:
        stdout.print(table)
    for text in captured.get().splitlines():
        stdout.file.write(text.rstrip() + "\n")


def printable(text: str) -> str:
    """Return text from outside, such as a file's name, without markup and control characters."""
    return escape("\n".join(_visible(line, stdout) for line in text.split("\n")))


def _visible(text: str, console: Console) -> str:
    """Return one line without control characters.

    Characters that the encoding lacks are escaped here, before a table measures its columns.
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean.encode(console.encoding, "backslashreplace").decode(console.encoding)


def class_table(per_class: dict[str, dict[str, Any]]) -> None:
    """Write accuracy and counts by class; of many classes, the lowest and the highest ones."""
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
