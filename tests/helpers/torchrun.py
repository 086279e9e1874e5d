"""The command line in several processes, as torchrun starts them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fcifar.train.run_dir import METRICS
from tests.helpers import undrawn
from tests.helpers.commands import Outcome


def start(
    words: Sequence[str],
    *,
    processes: int = 2,
    options: Sequence[str] = (),
    program: Sequence[str] = (undrawn.PATH,),
) -> subprocess.Popen:
    """``torchrun OPTIONS -m fcifar WORDS`` in the background, without figures; or a program."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", *options),
        *("--nproc-per-node", str(processes), *program, *words),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    )


def end(launcher: subprocess.Popen, seconds: float = 120) -> Outcome:
    """Wait for its end, and kill all of it if that does not come."""
    try:
        out, err = launcher.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for rank in (0, 1):
            for process in find(launcher, rank):
                os.kill(process, signal.SIGKILL)
        launcher.kill()
        raise
    return Outcome(launcher.returncode, out, err)


def run(words: Sequence[str], *, processes: int = 2, options: Sequence[str] = ()) -> Outcome:
    """The same to its end."""
    return end(start(words, processes=processes, options=options))


def alone(words: Sequence[str]) -> Outcome:
    """``fcifar WORDS``, in one process."""
    command = [sys.executable, undrawn.PATH, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=_environment(), timeout=120, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def find(launcher: subprocess.Popen, rank: int) -> list[int]:
    """The process of a rank, if it is there (Linux tells)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if int(parent) == launcher.pid and f"RANK={rank}".encode() in variables:
            found.append(int(folder.name))
    return found


def wait_for_steps(run: Path, lines: int) -> None:
    """Until a run has logged so often."""
    for _ in range(1200):
        log = run / METRICS
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{run} has not got so far")


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
