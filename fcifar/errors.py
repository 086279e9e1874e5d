"""The two ways a command can fail.

Each message is one line that says what was given, what is accepted and what to do.
"""

_ROOM = 100  # letters


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
