"""Shared by the scripts: options, interleaved timing, and training in this process."""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fcifar.data import Dataset
from fcifar.train import loop
from fcifar.train.config import RunConfig

K = TypeVar("K", bound=Hashable)


def parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser with a script's docstring as its description.

    Args:
        description: shown with its line breaks.
        options: the default of each option, or its type if it has none. ``name`` is the name of the
            record.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in options.items():
        settings = {"type": default} if isinstance(default, type) else {"default": default}
        made.add_argument(f"--{name.replace('_', '-')}", **{"type": type(default), **settings})
    return made


def interleaved(
    functions: Mapping[K, Callable[[], object]],
    repetitions: int,
    wait: Callable[[], object] = lambda: None,
) -> dict[K, list[float]]:
    """Time functions in turns, one call each; return the seconds of each repetition.

    A first round compiles and fills caches. It is not counted.

    Args:
        wait: synchronises the device after each call.
    """
    seconds: dict[K, list[float]] = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            wait()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of several calls, after one that is not counted."""
    function()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


@contextlib.contextmanager
def trained(
    config: RunConfig, dataset: Dataset, **options: Any
) -> Generator[tuple[dict[str, Any], Path], None, None]:
    """Train; give the report and the run directory, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        report = loop.train(run, config, dataset, **options)
        if isinstance(report, loop.Interrupted):
            raise SystemExit("interrupted")
        yield report, run


def train(config: RunConfig, dataset: Dataset, **options: Any) -> dict[str, Any]:
    """Train in a temporary run directory, and return the report."""
    with trained(config, dataset, **options) as (report, _):
        return report
