"""The command line in one of several processes, which torchrun started all alike.

Process 0 does what the command says; the others wait for it to want something done.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATIENCE = 5  # seconds for a process to end by itself, once another was lost
_TOLD = 1.0  # seconds for process 0 to say what went wrong


def several() -> bool:
    """Whether there are others."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def play_part(command: Callable[[], Any]) -> Any:
    """Process 0 carries out the command; the others do what it wants done.

    Raises:
        UserError, WorldError: as the command; or this process could not do its part.
    """
    from fcifar.runs import ranks

    try:
        if ranks.here().rank > 0:
            return _follow()
        try:
            return command()
        except BaseException:
            ranks.claim("failure")  # so that the others say nothing
            raise
        finally:
            ranks.dismiss()
    except ranks.LostError:
        # A thread of torch's that waits for the lost one can keep Python from ending.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        raise
    finally:
        ranks.leave()


def _follow() -> None:
    """Do what process 0 wants done, until it wants nothing more.

    Raises:
        UserError, WorldError: this process could not do its part, and says so.
        SystemExit: another process could not, and says so itself.
    """
    from fcifar.cli import output
    from fcifar.runs import following
    from fcifar.runs.events import Event, Noted
    from fcifar.runs.interrupt import catching_signals

    def observe(event: Event) -> None:
        if isinstance(event, Noted):
            output.note(event.text)

    try:
        following.serve(observe=observe, catch=catching_signals)
    except Exception as error:  # a process that is lost, or a user's code, on all of them alike
        _leave_the_word_to_the_first(error)


def _leave_the_word_to_the_first(error: Exception) -> None:
    from fcifar.runs import ranks

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which torchrun sends at once
    deadline = time.monotonic() + _TOLD
    while time.monotonic() < deadline:
        if ranks.is_claimed("failure"):
            raise SystemExit(1) from error
        time.sleep(0.05)
    if ranks.claim("failure"):
        raise error
    raise SystemExit(1) from error


def command(processes: int) -> str:
    """How to start fcifar in so many processes."""
    return f"torchrun --nproc-per-node {processes} -m fcifar" if processes > 1 else "fcifar"


def left_behind() -> Path | None:
    """The run that these processes trained when one of them failed and torchrun began anew."""
    if not several():
        return None
    from fcifar.runs import directory, group, ranks

    path = ranks.recall("run")
    run = Path(path) if path else None
    return run if run and ((run / directory.MANIFEST).exists() or group.is_group(run)) else None


def remember(run: Path) -> None:
    """Keep the name of a run, for ``left_behind``."""
    if several():
        from fcifar.runs import ranks

        ranks.remember("run", str(run.absolute()))
