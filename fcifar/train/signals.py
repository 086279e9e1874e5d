"""Ctrl-C, SIGTERM and a closed terminal, as a function that the loop calls between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

Stop = Callable[[], int | None]
"""The number of a signal after which to stop, or None."""

# Windows has no SIGHUP. A signal that is ignored, as under nohup, stays ignored.
_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None))]


def never() -> None:
    """Do not stop."""


@contextlib.contextmanager
def catching_signals() -> Iterator[Stop]:
    """A function that gives the first signal caught (SIGINT, SIGTERM or SIGHUP), or None so far.

    The second signal has its usual effect. Outside the main thread, where Python delivers no
    signals, nothing is caught.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    before = {s: signal.getsignal(s) for s in _SIGNALS if signal.getsignal(s) != signal.SIG_IGN}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def catch(signum: int, frame: object) -> None:
        caught.append(signum)
        restore()

    for signum in before:
        signal.signal(signum, catch)
    try:
        yield lambda: caught[0] if caught else None
    finally:
        restore()
