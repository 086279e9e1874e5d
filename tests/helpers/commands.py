"""What tests of the command line share."""

import io
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


class Person(io.StringIO):
    """Somebody at a terminal, and what they type."""

    def isatty(self) -> bool:
        return True


def fits(text: str) -> bool:
    """Whether a person can read it in a terminal of 80 columns, and a program after a pipe."""
    return all(len(line) <= 80 for line in text.splitlines()) and "\x1b" not in text
