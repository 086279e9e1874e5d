"""Interleaved timing of several functions.

Interleaving spreads machine noise evenly over the candidates. Each is warmed up, and called many
times per measurement; results are medians over measurements.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fcifar.models import Params

REPETITIONS = 7
BUSY = 0.15  # cores of other processes that disturb a measurement


class Candidate(NamedTuple):
    """A function to time."""

    once: Callable[[], object]
    wait: Callable[[], object] = lambda: None  # synchronises the device
    steps: int = 1  # steps per call
    params: Callable[[], Params] = dict  # current parameters, if it trains


def wait_for(device: str) -> Callable[[], object]:
    """Return the function that synchronises a device."""
    match device.partition(":")[0]:
        case "cuda":
            return lambda: torch.cuda.synchronize(device)
        case "mps":
            return torch.mps.synchronize
    return lambda: None


def measure(
    candidates: Mapping[str, Candidate],
    *,
    seconds: float,
    repetitions: int = REPETITIONS,
    observe: Callable[[str], object] = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """Time candidates in turns.

    Args:
        seconds: time of one measurement of one candidate; at least one call is made.
        repetitions: measurements per candidate.
        observe: called with the name of the next candidate.

    Returns:
        By name: ``seconds`` of a step in each repetition; their median and spread;
        ``first_call_seconds``, including compilation.
    """
    first, calls = {}, {}
    for name, candidate in candidates.items():
        observe(name)
        first[name] = warm_up(candidate)
        calls[name] = max(1, round(seconds / _timed(candidate, 2)))
    names = list(candidates)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        turn = repetition % len(names)  # the order rotates between repetitions
        for name in (*names[turn:], *names[:turn]):
            observe(name)
            candidate = candidates[name]
            _timed(candidate, 1)  # fills the caches
            measured[name].append(_timed(candidate, calls[name]) / candidate.steps)
    return {
        name: {
            "seconds": measured[name],
            "median_seconds": statistics.median(measured[name]),
            "spread": spread(measured[name]),
            "first_call_seconds": first[name],
        }
        for name in names
    }


class Load(NamedTuple):
    """What the machine and this process have computed, in seconds since some time."""

    elapsed: float
    machine: float | None  # of all processes on all cores; None if it is not known
    process: float  # of this process, and of those that it has waited for


def load() -> Load:
    """Read the times, before and after a measurement."""
    own = sum(os.times()[:4])
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return Load(time.perf_counter(), None, own)
    cores = sum(line.startswith("cpu") for line in lines) - 1
    user, nice, system, _, _, irq, softirq, *_ = map(int, lines[0].split()[1:])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    # In some containers the file is that of a larger machine.
    return Load(time.perf_counter(), busy if cores == os.cpu_count() else None, own)


def used_by_others(before: Load, after: Load) -> float | None:
    """Return how many cores other processes used, on average; None if it is not known."""
    if before.machine is None or after.machine is None:
        return None
    seconds = max(after.elapsed - before.elapsed, 1e-9)
    others = after.machine - before.machine - (after.process - before.process)
    return max(0.0, others / seconds)


def busy_notice(cores: float | None) -> str:
    """Return a line about ``used_by_others``; empty if it does not matter."""
    if cores is None or cores < BUSY:
        return ""
    return (
        f"other processes used {cores:.1f} of {os.cpu_count()} cores meanwhile: the times are too "
        "long, and the ratios uncertain; measure again on a quiet machine"
    )


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range, relative to the median."""
    if len(values) < 2:
        return math.nan
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def warm_up(candidate: Candidate) -> float:
    """Return the seconds of the first call, including compilation."""
    seconds = _timed(candidate, 1)
    _timed(candidate, 2)  # the second call may still tune and allocate
    return seconds


def _timed(candidate: Candidate, calls: int) -> float:
    """Return the seconds per call."""
    candidate.wait()
    started = time.perf_counter()
    for _ in range(calls):
        candidate.once()
    candidate.wait()
    return (time.perf_counter() - started) / calls
