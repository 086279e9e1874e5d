"""How long this process has been running."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def since_process_start() -> float:
    """Seconds since the operating system started this process.

    Linux tells; elsewhere it is counted from the import of this module, which the command line
    imports within its first second.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
