"""What a page consists of, and its HTML.

A page is a title and sections of blocks: tables, figures, facts, commands. ``page.html`` is the
Jinja2 template that has the markup of each. All text is escaped, except ``Markup``.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fcifar
from fcifar.report.figures.canvas import to_svg


class Section(NamedTuple):
    """A part of a page with a heading."""

    anchor: str
    heading: str
    blocks: Sequence[Any]


class Text(NamedTuple):
    """A paragraph."""

    text: str
    is_note: bool = False


class Table(NamedTuple):
    """A table; the first cell of a row is its heading."""

    caption: str
    head: Sequence[Any]  # names of the columns; all empty for a table without a heading
    rows: Sequence[Sequence[Any]]
    is_wide: bool = False  # as wide as the page

    @property
    def numeric(self) -> list[bool]:
        """Whether each column is right-aligned: all its cells begin as numbers do."""
        columns = range(len(self.head))
        return [
            i > 0 and bool(self.rows) and all(is_number(r[i]) for r in self.rows) for i in columns
        ]


class Tiles(NamedTuple):
    """The main figures, large: name, value and remark of each."""

    items: Sequence[tuple[str, str, str]]


class Facts(NamedTuple):
    """Names with a value each."""

    items: Sequence[tuple[str, Any]]


class Commands(NamedTuple):
    """Lines for a shell."""

    lines: Sequence[str]


class Chart(NamedTuple):
    """A figure as an SVG element, with a caption above and a note below."""

    caption: str
    svg: Any  # Markup
    note: str = ""


class Sheet(NamedTuple):
    """A figure of images as pixels, at most as wide as the page."""

    caption: str
    source: str  # a data: address
    size: tuple[int, int]  # width and height


class Images(NamedTuple):
    """Small images with lines of text below each."""

    caption: str
    items: Sequence["Image"]
    note: str = ""


class Image(NamedTuple):
    """One of them."""

    lines: Sequence[str]
    source: str = ""  # a data: address; empty if the image is not available
    alt: str = ""
    size: tuple[int, int] = (0, 0)  # width and height


class Folded(NamedTuple):
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Any]


class Pair(NamedTuple):
    """Blocks side by side, where there is room."""

    blocks: Sequence[Any]


def code(text: object) -> Any:
    """Return text in the typeface of code, for a cell or a fact."""
    from markupsafe import Markup

    return Markup("<code>{}</code>").format(printable(text))


def chart(figure: Any, caption: str, label: str, note: str = "") -> Chart:
    """Return a figure as a block; ``label`` is its text alternative."""
    from markupsafe import Markup

    return Chart(caption, Markup(to_svg(figure, printable(label))), note)


def is_number(cell: object) -> bool:
    """Whether a cell begins as a number does, or is empty."""
    text = str(cell)
    return not text or text[:1].isdigit() or text[:1] in "-+\N{MINUS SIGN}\N{EN DASH}"


def printable(value: object) -> Any:
    """Return a value as text without characters that a browser or an encoder may refuse."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def render(title: str, subtitle: str, head: Iterable[Any], sections: Iterable[Section]) -> str:
    """Return a whole HTML document; it needs no script and loads nothing.

    Args:
        title: what the page is about.
        subtitle: a line below the title.
        head: blocks of the result, before the first section.
        sections: a heading and a link to each.
    """
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    environment.filters["is_number"] = is_number
    environment.filters["kind"] = lambda block: type(block).__name__
    return environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        head=list(head),
        sections=list(sections),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        version=fcifar.__version__,
    )
