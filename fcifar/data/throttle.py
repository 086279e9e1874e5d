"""Progress callbacks, called at most 20 times a second."""

import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # (description, done, total); total 0 when unknown

_INTERVAL = 0.05  # seconds between two calls


def paced(progress: Progress | None) -> Progress:
    """Return ``progress`` throttled. The first and last call of a task always pass."""
    if progress is None:
        return lambda description, done, total: None
    last = (None, 0.0)  # description and time of the last call

    def report(description: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if description != last[0] or now - last[1] >= _INTERVAL or (total and done >= total):
            last = (description, now)
            progress(description, done, total)

    return report
