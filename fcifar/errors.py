"""The two ways a command can fail, and how a message shows what came from outside.

Each message is one line that says what was given, what is accepted and what to do.
"""

from collections.abc import Iterable, Sequence

_ROOM = 100  # letters of a value
_LONGEST = 400  # letters of a text
_NAMES, _FIRST = 20, 8  # how many names are shown, and how many of more than that


class UserError(ValueError):
    """The request cannot be carried out as it was made. The command line exits with 2."""


class WorldError(RuntimeError):
    """Disk, network or a damaged file stood in the way. The command line exits with 1."""


class DamagedError(WorldError):
    """A file is there and can be read, and is not what was written."""


def shown(value: object) -> str:
    """A value as a message shows it: printable, on one line, and cut short where it is long."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # more digits than Python prints; lists without an end
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _ROOM else f"{text[: _ROOM - 3]}..."


def one_line(text: object) -> str:
    """``text`` as part of one line: cut in the middle if long, quoted if it would not print."""
    words = str(text)
    if len(words) > _LONGEST:
        words = f"{words[: _LONGEST // 2]}...{words[-_LONGEST // 2 :]}"
    return words if words.isprintable() else repr(words)


def names_of(names: Sequence[str]) -> str:
    """``cat, dog``, or of very many the first and how many more there are."""
    if len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_FIRST])} and {len(names) - _FIRST:,} more"


def reason(error: BaseException) -> str:
    """What an exception says, as one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(text.split()) or type(error).__name__)


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'blitz'?"``, to go behind what is accepted; or nothing if none is close."""
    if not isinstance(word, str) or len(word) > _ROOM:
        return ""
    from difflib import get_close_matches  # for a mistake alone

    known = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ""
