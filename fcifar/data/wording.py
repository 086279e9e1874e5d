"""Words of strangers in a message of ours: file names, class names, what a library says."""

_LONGEST = 400  # characters


def one_line(text: object) -> str:
    """``text`` as part of one line: cut in the middle if long, quoted if it would not print."""
    words = str(text)
    if len(words) > _LONGEST:
        words = f"{words[: _LONGEST // 2]}...{words[-_LONGEST // 2 :]}"
    return words if words.isprintable() else repr(words)


def reason(error: BaseException) -> str:
    """What an exception says, as one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return one_line(" ".join(text.split()) or type(error).__name__)
