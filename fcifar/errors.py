"""Exception classes, and formatting of values for error messages.

Each message is one line: what was given, what is accepted, and what to do.
"""

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence

_MAX_VALUE = 100  # characters of a value
_MAX_TEXT = 400  # characters of a text
_MAX_NAMES, _FIRST_NAMES = 20, 8  # list up to 20 names, otherwise the first 8


class UsageError(ValueError):
    """Invalid request. The command line exits with status 2."""


class ExternalError(RuntimeError):
    """I/O, network or corrupt-file error. The command line exits with status 1."""


class DamagedError(ExternalError):
    """A readable file whose content is not what was written."""


def shown(value: object) -> str:
    """Return the repr of ``value``, on one line and truncated to 100 characters."""
    try:
        text = repr(value).replace("\n", " ")
    except (ValueError, RecursionError):  # an int of too many digits, or too deep a nesting
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def one_line(text: object) -> str:
    """Return ``text`` on one line: elided in the middle if long, as a repr if not printable."""
    words = str(text)
    if len(words) > _MAX_TEXT:
        words = f"{words[: _MAX_TEXT // 2]}...{words[-_MAX_TEXT // 2 :]}"
    return words if words.isprintable() else repr(words)


def names_of(names: Sequence[str]) -> str:
    """Join ``names`` by commas; of more than 20, the first 8 and the number of the others."""
    if len(names) <= _MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_FIRST_NAMES])} and {len(names) - _FIRST_NAMES:,} more"


def reason(error: BaseException) -> str:
    """Return the message of an exception as one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(text.split()) or type(error).__name__)


def located(error: BaseException) -> str:
    """Return the message of an exception raised by user code, with its file and line.

    Example: ``division by zero (my_nets.py, line 12)``. An exception wrapped by torch.compile is
    unwrapped.
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
    line = raised_at(error)
    return one_line(f"{text} ({line})" if line else text)


def raised_at(error: BaseException) -> str:
    """Return the innermost line of user code in a traceback, such as ``my_nets.py, line 12``.

    If there is none, return the innermost line of an installed package that is not a dependency of
    this one; otherwise "". Frames outside the outermost frame of this package are its callers and
    are ignored.
    """
    lines = [*_lines(error)]
    ours = [i for i, (file, _) in enumerate(lines) if file.startswith(_PACKAGE)]
    inside = lines[ours[0] :] if ours else lines
    others = [line for line in inside if not line[0].startswith((_PACKAGE, "<frozen"))]
    installed = [line for line in others if "-packages/" in line[0]]
    user = [line for line in others if line not in installed and not line[0].startswith(_STDLIB)]
    foreign = [line for line in installed if _distribution(line[0]) not in _DEPENDENCIES]
    for candidates in (user, foreign):
        if candidates:
            file, number = candidates[-1]
            return f"{relative_to_path(file)}, line {number}"
    return ""


def _lines(error: BaseException) -> Iterator[tuple[str, int]]:
    """Yield file and line number of each frame, outermost first, including compiled code."""
    if isinstance(error, SyntaxError) and error.filename:
        yield error.filename, error.lineno or 0
        return
    for frame, number in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, number
    for frame in getattr(error, "real_stack", None) or ():  # set by torch.compile
        yield frame.filename, frame.lineno or 0


_PACKAGE = f"{__file__.rpartition('/')[0]}/"
_STDLIB = f"{traceback.__file__.rpartition('/')[0]}/"

# Dependencies called by this package. Any other installed package holds a user's module.
_DEPENDENCIES = (
    *("PIL", "click", "filelock", "jinja2", "matplotlib", "numpy", "optree", "rich", "safetensors"),
    *("torch", "typer"),
)


def _distribution(file: str) -> str:
    return file.partition("-packages/")[2].partition("/")[0]


def relative_to_path(file: str) -> str:
    """Return ``file`` relative to the entry of ``sys.path`` that it was imported from."""
    folders = [folder for folder in sys.path if folder and file.startswith(f"{folder}/")]
    return file[len(max(folders, key=len)) + 1 :] if folders else file


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'blitz'?"`` for a close match in ``choices``, otherwise ""."""
    if not isinstance(word, str) or len(word) > _MAX_VALUE:
        return ""
    from difflib import get_close_matches  # imported only on errors

    known = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ""
