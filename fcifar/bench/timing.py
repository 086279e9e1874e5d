"""Interleaved timing of several functions.

Interleaving spreads machine noise evenly over the candidates. Each is warmed up, and called many
times per measurement; results are medians over measurements.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fcifar.models import Params

REPETITIONS = 7


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
