"""Training a group from the command line, and what a person sees of it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcifar.cli import output, render
from fcifar.cli.overrides import with_changes
from fcifar.errors import UsageError, shown
from fcifar.recipes.recipe import Recipe, option_name

if TYPE_CHECKING:
    from fcifar.data import Dataset
    from fcifar.train.config import RunConfig
    from fcifar.train.sweep import Sweep

_FIELDS = {option_name(field.name): field.name for field in dataclasses.fields(Recipe)}


def plan(config: "RunConfig", *, replicas: int | None, grid: Sequence[str], method: str) -> "Sweep":
    """The sweep of ``--replicas``, ``--sweep`` and ``--replica-method``. Raises a UsageError."""
    from fcifar.recipes import trials
    from fcifar.train import sweep

    if replicas is not None and not 1 <= replicas <= trials.LARGEST:
        raise UsageError(
            f"--replicas is {replicas}; it must be a whole number from 1 to {trials.LARGEST:,}"
        )
    seeds = range(config.seed, config.seed + (replicas or 1))
    axes = dict(_axis(config.recipe, text) for text in grid)
    if len(axes) < len(grid):
        raise UsageError("--sweep names the same value twice; give all of its values at once")
    return sweep.Sweep(
        trials=trials.make_trials(config.recipe, axes, seeds),
        method=trials.choose_method(method, config.recipe, config.runtime.device),
        config=config,
    )


def _axis(recipe: "Recipe", text: str) -> tuple[str, list[tuple[Any, "Recipe"]]]:
    """``lr=0.1,0.2`` as a name, and the recipe with each value."""
    name, equals, values = text.partition("=")
    each = _split(values)
    if not equals or not name or not all(each):
        raise UsageError(f"--sweep is {shown(text)}; it must be NAME=VALUE,VALUE,...")
    if len(set(each)) < len(each):
        raise UsageError(f"--sweep {shown(text)} has a value twice; give each once")
    field = _FIELDS.get(name, name)
    return option_name(field), [
        (_plain(value), with_changes(recipe, [f"{field}={value}"], "--sweep")) for value in each
    ]


def _split(text: str) -> list[str]:
    """At commas, but for those inside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _plain(text: str) -> Any:
    """A number where it is one, and else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float) else text


def train(
    path: Path,
    spec: "Sweep",
    data: "Dataset",
    *,
    resume: bool,
    json: bool,
    quiet: bool,
    tensorboard: bool = False,
) -> int:
    """Train a sweep, draw its figures, and print its summary."""
    from fcifar.cli import progress
    from fcifar.report import draw
    from fcifar.train import distributed, loop, run_dir, sweep
    from fcifar.train.signals import catching_signals

    events = path if tensorboard and distributed.is_main() else None
    with progress.training(quiet=quiet, events=events) as observe, catching_signals() as stop:
        result = sweep.train(path, spec, data, resume=resume, observe=observe, stop=stop)
    if isinstance(result, loop.Interrupted):
        output.note(
            f"stopped after step {result.step:,} of a run; go on with: fcifar train --resume {path}"
            if run_dir.is_group(path)
            else "stopped before the first run"
        )
        if json:
            output.document({"run_dir": str(path), "interrupted": True, "steps": result.step})
        return 128 + (result.signum or 0)
    if not distributed.is_main():
        return 0
    with progress.doing("drawing the figures", quiet=quiet):
        draw.group(path)
    if json:
        output.document(result)
    else:
        render.show_sweep(result)
    return 0


def reproduce(path: Path, data: "Dataset", *, out: Path | None, json: bool, quiet: bool) -> int:
    """Train a group again, and say which of its runs are the same. Exit 0: all; 1: not."""
    from fcifar.cli import progress
    from fcifar.runs.reproduce import describe_difference, group_mismatches, reproduce_group
    from fcifar.train import loop
    from fcifar.train.signals import catching_signals

    mismatches = group_mismatches(path)
    if not quiet:
        why = f"cannot be expected: {'; '.join(mismatches)}" if mismatches else "can be expected"
        output.note(f"reproducing {path}; identity {why}")
    with progress.training(quiet=quiet) as observe, catching_signals() as stop:
        result = reproduce_group(path, data, out=out, observe=observe, stop=stop)
    if isinstance(result, loop.Interrupted):
        if result.signum is None:  # on ranks other than 0, which compares
            return 0
        output.note("stopped before the end of the comparison")
        return 128 + result.signum
    if json:
        output.document(result)
        return 0 if result["identical"] else 1
    same = [run for run in result["runs"] if run["first_difference"] is None]
    verdict = "identical" if result["identical"] else "not identical"
    output.facts(
        [
            ("verdict", f"{verdict}: {len(same)} of {output.count(len(result['runs']), 'run')}"),
            *[
                (run["name"], describe_difference(run["first_difference"]))
                for run in result["runs"]
                if run["first_difference"]
            ],
            *[("damaged", problem) for problem in result["damaged"]],
            ("time", f"{result['seconds']:.1f} s"),
        ]
    )
    return 0 if result["identical"] else 1
