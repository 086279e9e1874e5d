"""A whole HTML document: head, style, parts. It needs no script, and asks for nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fcifar
from fcifar.report.page.html import Html, section, tag

STYLE = Path(__file__).with_name("style.css")
# Should anything ever get in that refers to elsewhere, a browser will not go there.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Part(NamedTuple):
    """A part of a page."""

    name: str  # of its anchor
    heading: str
    content: Sequence[Any]


def document(*, title: str, about: str, head: Html, parts: Sequence[Part]) -> str:
    """The text of an HTML file.

    Args:
        title: what the page is about.
        about: a line below it.
        head: what stands first.
        parts: the rest, each with a heading and a link to it.
    """
    links = (tag("a", part.heading, href=f"#{part.name}") for part in parts)
    style = Html(STYLE.read_text(encoding="utf-8"))
    policy = {"http-equiv": "Content-Security-Policy"}
    made = f"Made by fcifar {fcifar.__version__}. This page is whole: it loads nothing."
    return (
        "<!doctype html>\n"
        + tag(
            "html",
            tag(
                "head",
                tag("meta", charset="utf-8"),
                tag("meta", **policy, content=_POLICY),
                tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", name="color-scheme", content="light dark"),
                tag("title", title),
                tag("link", rel="icon", href="data:,"),
                tag("style", style),
            ),
            tag(
                "body",
                tag("header", tag("h1", title), tag("p", about, class_="soft")),
                tag("nav", *links, aria_label="Parts of this page"),
                tag(
                    "main",
                    tag("section", tag("h2", "Result", class_="hidden"), head, id="result"),
                    *(section(part.name, part.heading, *part.content) for part in parts),
                ),
                tag("footer", tag("p", made)),
            ),
            lang="en",
        )
        + "\n"
    )
