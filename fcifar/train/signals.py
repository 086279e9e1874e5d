"""SIGINT, SIGTERM and SIGHUP as a function that the training loop polls between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator

Stop = Callable[[], int | None]
"""Returns the number of a signal to stop at, or None."""

# Windows has no SIGHUP.
_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None))]


def never() -> None:
    """Never stop."""


@contextlib.contextmanager
def catching_signals() -> Generator[Stop]:
    """Catch signals within the block; yields a function that returns the first one, or None.

    The second signal has its usual effect. Ignored signals, as under nohup, stay ignored. Outside
    the main thread, where Python delivers no signals, nothing is caught.
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
