"""Interleaved timing of several functions.

Interleaving spreads machine noise evenly over the candidates. Each candidate is warmed up, and
called many times per measurement; results are medians over measurements.
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
    """Something to be timed."""

    once: Callable[[], object]
    wait: Callable[[], object] = lambda: None  # until what was asked of the device is done
    steps: int = 1  # that one call makes
    params: Callable[[], Params] = dict  # as they are now; for those that train


def wait_for(device: str) -> Callable[[], object]:
    """What waits until a device has done all that it was asked to."""
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
        seconds: of one measurement of one candidate; at least one call is made.
        repetitions: measurements of each.
        observe: is told who is next.

    Returns:
        By name: ``seconds``, those of a step, one for each repetition; their median and spread;
        ``first_call_seconds``, with whatever had to be compiled for it.
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
            _timed(candidate, 1)  # caches hold what the one before left
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
    """The distance between the quartiles, as a part of the median."""
    if len(values) < 2:
        return math.nan
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def warm_up(candidate: Candidate) -> float:
    """Seconds of the first call, with whatever had to be compiled for it."""
    seconds = _timed(candidate, 1)
    _timed(candidate, 2)  # the second call may still choose and allocate
    return seconds


def _timed(candidate: Candidate, calls: int) -> float:
    """Seconds a call."""
    candidate.wait()
    started = time.perf_counter()
    for _ in range(calls):
        candidate.once()
    candidate.wait()
    return (time.perf_counter() - started) / calls
