"""How long this program has been running."""

import os
import time
from pathlib import Path

import fcifar


def since_process_start() -> float:
    """Seconds since this program was started.

    The operating system does not tell: the age of a process counts from its fork, and what a shell
    did before it became this program, as in ``sleep 10; exec fcifar``, would be in it. So it is the
    time since ``fcifar`` was first imported, and the processor time that was taken until then:
    starting Python and whatever was imported before is computing, and a shell that waits is not.
    What waited for the disk before that import is left out. It is never more than the age of the
    process, where Linux tells that.
    """
    since_import = time.monotonic() - fcifar.IMPORTED.monotonic
    return min(since_import + fcifar.IMPORTED.processor, _age())


def _age() -> float:
    """Seconds since the fork of this process; without end where they are not known."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError, IndexError):
        return float("inf")
