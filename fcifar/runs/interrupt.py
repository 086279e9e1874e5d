"""Ctrl-C, SIGTERM and a closed terminal, as a question that the loop asks between two steps."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

# Windows has no terminal that closes. One who ignores a signal, as nohup does, goes on doing so.
_SIGNALS = [s for name in ("SIGINT", "SIGTERM", "SIGHUP") if (s := getattr(signal, name, None))]


@contextlib.contextmanager
def catching_signals() -> Iterator[Callable[[], int | None]]:
    """A function that gives the first signal caught (SIGINT, SIGTERM or SIGHUP), or None so far.

    The second signal acts as it always does, for those who cannot wait. Outside the main thread,
    where Python delivers no signals, nothing is caught.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
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
