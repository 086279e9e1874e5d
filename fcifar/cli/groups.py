"""Training a group from the command line, and what a person sees of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcifar.cli import output
from fcifar.cli.overrides import with_changes
from fcifar.errors import UserError, shown

if TYPE_CHECKING:
    from fcifar.data import Dataset
    from fcifar.recipes import Recipe
    from fcifar.train.config import RunConfig
    from fcifar.train.sweep import Sweep

_ROWS = 40  # of a table of runs; the summary has all
_ALIASES = {"lr": "learning_rate"}
_SHORT = {name: alias for alias, name in _ALIASES.items()}


def plan(config: "RunConfig", *, replicas: int | None, grid: Sequence[str], method: str) -> "Sweep":
    """The sweep of ``--replicas``, ``--sweep`` and ``--replica-method``. Raises a UserError."""
    from fcifar.recipes import trials
    from fcifar.train import sweep

    if replicas is not None and not 1 <= replicas <= trials.LARGEST:
        raise UserError(
            f"--replicas is {replicas}; it must be a whole number from 1 to {trials.LARGEST:,}"
        )
    seeds = range(config.seed, config.seed + (replicas or 1))
    axes = dict(_axis(config.recipe, text) for text in grid)
    if len(axes) < len(grid):
        raise UserError("--sweep names the same value twice; give all of its values at once")
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
        raise UserError(f"--sweep is {shown(text)}; it must be NAME=VALUE,VALUE,...")
    if len(set(each)) < len(each):
        raise UserError(f"--sweep {shown(text)} has a value twice; give each once")
    field = _ALIASES.get(name, name)
    return _SHORT.get(field, field), [
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
    from fcifar.report import groups as drawing
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
    with progress.doing("drawing the pictures", quiet=quiet):
        drawing.draw(path)
    if json:
        output.document(result)
    else:
        show(result)
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


def show(summary: dict[str, Any]) -> None:
    """Print what a group came to."""
    if len(summary["cells"]) > 1:
        _show_cells(summary)
    else:
        _show_members(summary["members"])
    output.stdout.print()
    facts = [
        fact
        for cell in summary["cells"]
        if cell["together"] and len(summary["cells"]) == 1
        for fact in _of_replicas(cell)
    ]
    failed = [member for member in summary["members"] if "failed" in member]
    facts += [("failed", f"{member['name']}: {member['failed']}") for member in failed]
    if len(summary["cells"]) > 1:
        facts.append(("best", _best(summary)))
    how = "one after another" if summary["method"] == "loop" else "all at once, by vmap"
    facts += [
        (
            "training",
            f"{output.count(len(summary['members']), 'run')}, {how}: "
            f"{summary['train_seconds']:.1f} s",
        ),
        ("compiling", f"{summary['compile_seconds']:.1f} s"),
        ("process", f"{summary['process_seconds']:.1f} s from its start"),
        ("runs", summary["run_dir"]),
    ]
    output.facts(facts)


def _of_replicas(cell: dict[str, Any]) -> list[tuple[str, str]]:
    """What several networks of one recipe say together."""
    together = cell["together"]
    low, high = (output.percent(value, 2) for value in together["interval95"])
    real = together["std_distribution"]
    rest = (
        f", and {100 * real:.2f} is real difference between the networks"
        if real > 0
        else "; more than was seen, so no real difference between the networks shows"
    )
    facts = [
        (
            "test accuracy",
            f"{output.percent(together['mean_accuracy'], 2)} on average over "
            f"{together['replicas']} seeds, 95 % interval {low} to {high}",
        ),
        (
            "spread",
            f"standard deviation {100 * together['std_accuracy']:.2f} points, from "
            f"{output.percent(together['min_accuracy'], 2)} to "
            f"{output.percent(together['max_accuracy'], 2)}",
        ),
        (
            "of that",
            f"{100 * together['std_independent']:.2f} is what independent errors on "
            f"{together['n']:,} images give{rest}",
        ),
        ("ensemble", f"{output.percent(together['ensemble_accuracy'], 2)}, of mean probabilities"),
        (
            "disagreement",
            f"two networks differ on {output.percent(together['mean_disagreement'])} of the images",
        ),
    ]
    if cell["tta_accuracy"]:
        tta = cell["tta_accuracy"]
        facts.insert(
            1, ("with --tta", f"{output.percent(tta['mean'], 2)}, deviation {100 * tta['std']:.2f}")
        )
    return facts


def _show_members(members: Sequence[dict[str, Any]]) -> None:
    output.table(
        ("run", "test accuracy", "test loss", "training"),
        [
            (member["name"], "failed", "-", "-")
            if "failed" in member
            else (
                member["name"],
                output.percent(member["test_accuracy"], 2),
                f"{member['test_loss']:.4f}",
                f"{member['train_seconds']:.1f} s",
            )
            for member in members[:_ROWS]
        ],
    )
    _say_more(len(members), "run")


def _show_cells(summary: dict[str, Any]) -> None:
    output.table(
        (*summary["swept"], "validation", "test", "test loss", "runs"),
        [
            (
                *map(str, cell["changes"].values()),
                _mean(cell["valid_accuracy"]),
                _mean(cell["test_accuracy"]),
                f"{cell['test_loss']['mean']:.4f}" if cell["test_loss"] else "-",
                str(len(cell["runs"])) + (f", {cell['failed']} failed" if cell["failed"] else ""),
            )
            for cell in summary["cells"][:_ROWS]
        ],
    )
    _say_more(len(summary["cells"]), "cell")


def _say_more(number: int, what: str) -> None:
    if number > _ROWS:
        output.line(f"... and {output.count(number - _ROWS, what)} more in the summary")


def _mean(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "-"
    mean = output.percent(figures["mean"], 2)
    return mean if figures["n"] == 1 else f"{mean} ±{100 * figures['std']:.2f}"


def _best(summary: dict[str, Any]) -> str:
    if summary["best"] is None:
        return "not chosen, for no images were held out to choose by; give --valid-fraction 0.1"
    (cell,) = [cell for cell in summary["cells"] if cell["name"] == summary["best"]]
    accuracy = output.percent(cell["valid_accuracy"]["mean"], 2)
    return f"{summary['best']}, by its accuracy on validation images, {accuracy}"
