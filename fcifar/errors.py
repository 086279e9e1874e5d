"""The two kinds of errors, and how messages show values from outside.

Each message is one line that says what was given, what is accepted and what to do.
"""

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence

_ROOM = 100  # letters of a value
_LONGEST = 400  # letters of a text
_NAMES, _FIRST = 20, 8  # how many names are shown, and how many of more than that


class UsageError(ValueError):
    """Invalid request. The command line exits with 2."""


class ExternalError(RuntimeError):
    """I/O, network or corrupt-file error. The command line exits with 1."""


class DamagedError(ExternalError):
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


def located(error: BaseException) -> str:
    """What an exception out of a user's code says, as one line with the file and line there.

    Of an exception that torch's compiler wraps, the one inside it: ``division by zero (my_nets.py,
    line 12)``.
    """
    inner = getattr(error, "inner_exception", None)
    inner = inner if isinstance(inner, Exception) else error
    text = reason(inner) if not isinstance(inner, SyntaxError) else one_line(inner.msg)
    kind = type(inner).__name__
    for end in (" Developer debug context", " from user code", " Set TORCHDYNAMO_VERBOSE"):
        text = text.partition(end)[0]
    if isinstance(error, SystemExit):
        text = f"it exits with {text}"
    elif isinstance(error, LookupError | NotImplementedError) and text != kind:
        text = f"{kind}: {text}"
    place = raised_at(error)
    return one_line(f"{text} ({place})" if place else text)


def raised_at(error: BaseException) -> str:
    """``my_nets.py, line 12``: the innermost line of a user's code on the way to an exception.

    Of an installed package where none of the user's own is on the way, and empty for code of ours,
    torch and Python alone. What lies outside the outermost line of ours has called us, and is not
    on the way.
    """
    lines = [*_lines(error)]
    ours = [i for i, (file, _) in enumerate(lines) if file.startswith(_OURS)]
    inside = lines[ours[0] :] if ours else lines
    others = [line for line in inside if not line[0].startswith((_OURS, "<frozen"))]
    own = [line for line in others if "-packages/" not in line[0] and not _is_pythons(line[0])]
    packages = [line for line in others if _package(line[0]) not in ("", *_TOOLS)]
    for found in (own, packages):
        if found:
            file, number = found[-1]
            return f"{_shortened(file)}, line {number}"
    return ""


def _lines(error: BaseException) -> Iterator[tuple[str, int]]:
    """Files and line numbers from the outermost to the innermost, through what was compiled."""
    if isinstance(error, SyntaxError) and error.filename:
        yield error.filename, error.lineno or 0
        return
    for frame, number in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, number
    for frame in getattr(error, "real_stack", None) or ():  # of torch.compile
        yield frame.filename, frame.lineno or 0


_OURS = f"{__file__.rpartition('/')[0]}/"
_PYTHONS = f"{traceback.__file__.rpartition('/')[0]}/"


# Installed packages that we call ourselves; where another is on the way, it holds a user's module.
_TOOLS = (
    *("PIL", "click", "filelock", "jinja2", "matplotlib", "numpy", "optree", "rich", "safetensors"),
    *("torch", "typer"),
)


def _package(file: str) -> str:
    """The installed package that a file is of; empty for others."""
    return file.partition("-packages/")[2].partition("/")[0]


def _is_pythons(file: str) -> bool:
    return file.startswith(_PYTHONS)


def _shortened(file: str) -> str:
    """Without the folder that it was imported from."""
    folders = [folder for folder in sys.path if folder and file.startswith(f"{folder}/")]
    return file[len(max(folders, key=len)) + 1 :] if folders else file


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """``"; did you mean 'blitz'?"``, to go behind what is accepted; or nothing if none is close."""
    if not isinstance(word, str) or len(word) > _ROOM:
        return ""
    from difflib import get_close_matches  # for a mistake alone

    known = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ""
