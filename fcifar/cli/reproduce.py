"""fcifar reproduce and fcifar verify."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fcifar.cli import options, output, progress
from fcifar.cli.options import option
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from fcifar.runs.reproduce import Original

_TENSORS = 5  # rows of a table of differing tensors

Run = Annotated[Path, options.run_argument("A run or a group of runs, by path or name.")]


def reproduce(
    run: Run,
    until: Annotated[
        int | None, option("--until", "Compare up to this step.", None, "the run's end")
    ] = None,
    out: Annotated[
        Path | None, options.path_option("--out", "Keep the new run in this directory.")
    ] = None,
    device: Annotated[
        str | None, option("--device", "Use another device; bits will differ.")
    ] = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Train a run again from its manifest, and compare it bit for bit. Exit 0: identical; 1: not.

    Compares each log point, each checkpoint that was kept, and the final parameters.

    [dim]fcifar reproduce runs/a
    fcifar reproduce runs/a --until 4000[/]
    """
    from fcifar.cli.data import open_dataset
    from fcifar.runs import reproduce
    from fcifar.train import distributed, loop, run_dir, sweep
    from fcifar.train.signals import catching_signals

    if out is not None and distributed.is_main():
        run_dir.check_free(out)
    original = None
    if run_dir.is_group(run):
        if until is not None or device is not None:
            raise UsageError(
                "--until and --device are of a single run; leave them out, or reproduce "
                f"{sweep.finished(run)[0]} with them"
            )
        data = open_dataset(sweep.read(run).config.dataset, data_dir, quiet=quiet)
        if not quiet:
            output.note(f"reproducing {run}; {_expectation(reproduce.group_mismatches(run))}")
    else:
        original = reproduce.read(run, device=device)
        reproduce.last_step(original, until)
        data = open_dataset(original.config.dataset, data_dir, quiet=quiet)
        if not quiet:
            _announce_run(original)
    with progress.training(quiet=quiet) as observe, catching_signals() as stop:
        if original is None:
            result = reproduce.reproduce_group(run, data, out=out, observe=observe, stop=stop)
        else:
            result = reproduce.reproduce(
                original, data, until=until, out=out, observe=observe, stop=stop
            )
    if isinstance(result, loop.Interrupted):
        if result.signum is None:  # on ranks other than 0, which compares
            return 0
        where = "" if original is None else f"after step {result.step:,}, "
        output.note(f"stopped {where}before the end of the comparison")
        return 128 + result.signum
    output.result(result, _show_group if original is None else _show, json)
    return 0 if result["identical"] else 1


def verify(
    run: Run,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Check that the files of a run are unchanged and complete, without training.

    [dim]fcifar verify runs/a[/]
    """
    from fcifar.runs.verify import verify as find_problems

    problems = find_problems(run)
    if json:
        output.document({"run": str(run), "intact": not problems, "problems": problems})
    else:
        for text in problems or [f"{run} is unchanged and complete"]:
            output.line(text)
    return 1 if problems else 0


def _announce_run(original: "Original") -> None:
    """Print the settings of the run, and whether the result can be identical."""
    config = original.config
    recipe, runtime, how = config.recipe, config.runtime, "compiled" if config.compile else "eager"
    output.note(
        f"reproducing {original.run}: {recipe.name} on {config.dataset}, seed {config.seed}, "
        f"{runtime.device}, {output.count(runtime.threads, 'thread')}, {runtime.precision}, {how}"
    )
    for problem in original.damaged:
        output.note(f"damaged: {problem}")
    for change in original.changes:
        weight = "" if change.matters else " (changes no bits)"
        output.note(f"changed: {change.name} was {change.then}, is {change.now}{weight}")
    output.note(_expectation(original.mismatches))


def _expectation(mismatches: Sequence[str]) -> str:
    if mismatches:
        return f"identity cannot be expected: {'; '.join(mismatches)}"
    return "identity can be expected"


def _show_group(result: dict[str, Any]) -> None:
    from fcifar.runs.reproduce import describe_difference

    differing = [run for run in result["runs"] if run["first_difference"]]
    same, runs = len(result["runs"]) - len(differing), output.count(len(result["runs"]), "run")
    verdict = "identical" if result["identical"] else "not identical"
    output.facts(
        [
            ("verdict", f"{verdict}: {same} of {runs}"),
            *[(run["name"], describe_difference(run["first_difference"])) for run in differing],
            *[("damaged", problem) for problem in result["damaged"]],
            ("time", f"{result['seconds']:.1f} s"),
        ]
    )


def _show(result: dict[str, Any]) -> None:
    from fcifar.runs.reproduce import describe_difference

    first, final = result["first_difference"], result["final"]
    points = output.count(result["log_points"], "log point")
    checkpoints = output.count(len(result["checkpoints"]), "checkpoint")
    parameters = ", the final parameters" if final else ""
    pairs = [("verdict", _verdict(result))]
    pairs += [("first", describe_difference(first))] if first else []
    pairs += [("damaged", problem) for problem in result["damaged"]]
    pairs += [
        ("compared", f"{points}, {checkpoints}{parameters}, up to step {result['steps']:,}"),
        ("time", f"{result['seconds']:.1f} s"),
        ("digest", str(result["digest"])),
    ]
    if final and not final["identical"]:
        pairs.append(("new digest", final["new_digest"]))
    output.facts(pairs)
    differing = [entry for entry in result["checkpoints"] if entry["differing"]]
    differing += [{"file": "final.safetensors", **final}] if final and final["differing"] else []
    if differing:
        _show_tensors(differing[0])


def _verdict(result: dict[str, Any]) -> str:
    if result["identical"]:
        return "identical" if result["whole"] else f"identical up to step {result['steps']:,}"
    if not result["first_difference"]:
        return "the training is identical, but a file has changed"
    return "not identical" + ("" if result["expected"] else ", as expected in this environment")


def _show_tensors(entry: dict[str, Any]) -> None:
    differing = entry["differing"]
    rows = [
        (
            tensor["tensor"],
            f"{tensor['elements']:,}",
            f"{tensor['elements_differing'] or 0:,}",
            f"{tensor['largest_difference']:.3g}",
        )
        for tensor in differing[:_TENSORS]
    ]
    count = output.count(len(differing), "differing tensor")
    title = f"{entry['file']}, after step {entry['step']:,}: {count}"
    output.stdout.print()
    output.table(("tensor", "elements", "differing", "largest difference"), rows, title=title)
    if len(differing) > _TENSORS:
        output.stdout.print(f"... and {len(differing) - _TENSORS} more", style="dim")
