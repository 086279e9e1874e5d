"""Elements of a page, as text. Whatever is not markup already is escaped."""

import html
from collections.abc import Iterable, Sequence

_VOID = {"br", "img", "link", "meta"}  # elements that have no end


class Html(str):
    """Markup. Any other text is escaped where it becomes a part of a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as it shows, with nothing left in it that a browser or an encoder could trip over."""
    if isinstance(value, Html):
        return value
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return Html(html.escape(plain))


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts one after another."""
    return Html(text(between).join(map(text, parts)))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup as it is, everything else escaped.
        attributes: by name, with ``_`` for ``-`` and ``class_`` for ``class``. True stands for the
            name alone; None and False leave the attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        word = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(word)
        elif value is not None and value is not False:
            words.append(f'{word}="{text(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _VOID else f"{start}{join(children)}</{name}>")


def section(name: str, heading: str, *children: object) -> Html:
    """A part of a page, with a heading that a link can go to."""
    return tag("section", tag("h2", heading), *children, id=name)


def scroll(label: str, *children: object) -> Html:
    """A box that scrolls by itself, for what may be wider than the page."""
    return tag("div", *children, class_="scroll", tabindex=0, role="region", aria_label=label)


def table(
    caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], *, wide: bool = False
) -> Html:
    """A table with its caption, in a box that scrolls where it is wider than the page.

    The first cell of a row is its heading. Columns of numbers go to the right.

    Args:
        caption: what the table shows.
        head: names of the columns; none of them where they need none.
        rows: cells, as many as ``head``.
        wide: as wide as the page, however little there is in it.
    """
    cells, columns = [list(map(text, row)) for row in rows], range(len(head))
    numeric = [i > 0 and bool(cells) and all(is_number(row[i]) for row in cells) for i in columns]

    def kind(column: int) -> str | None:
        return "number" if numeric[column] else None

    titles = (tag("th", name, scope="col", class_=kind(i)) for i, name in enumerate(head))
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind(i)) for i, cell in enumerate(row[1:], 1)),
        )
        for row in cells
    )
    return scroll(
        caption,
        tag(
            "table",
            tag("caption", tag("span", caption)),
            tag("thead", tag("tr", *titles)) if any(head) else "",
            tag("tbody", *body),
            class_="wide" if wide else None,
        ),
    )


def is_number(cell: str) -> bool:
    """Whether a cell begins as a number does, or is empty."""
    return not cell or cell[:1].isdigit() or cell[:1] in "-+\N{MINUS SIGN}\N{EN DASH}"


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names with a value each."""
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs),
        class_="facts",
    )


def tiles(figures: Iterable[tuple[object, object, object]]) -> Html:
    """The few figures that matter, large: name, value, and what there is to say about it."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", value, class_=_value(value)), tag("dd", about))
            for name, value, about in figures
        ),
        class_="tiles",
    )


def pair(*parts: object) -> Html:
    """Parts side by side, where there is room."""
    return tag("div", *parts, class_="pair")


def _value(value: object) -> str:
    return "value" if is_number(str(value)) else "value words"


def folded(summary: str, *children: object) -> Html:
    """Something that opens when it is asked for."""
    return tag("details", tag("summary", summary), *children)


def commands(*lines: str) -> Html:
    """Lines for a shell."""
    return tag("pre", tag("code", Html("\n".join(map(text, lines)))), tabindex=0)
