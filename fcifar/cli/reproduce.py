"""fcifar reproduce and fcifar verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcifar.cli import completion, options, output
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from fcifar.runs.reproduce import Original

_TENSORS = 5  # lines of a table of differing tensors

Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run or a group of runs, by path or name.",
        callback=options.where_run_is,
        autocompletion=completion.runs,
    ),
]


def reproduce(
    run: Run,
    until: Annotated[
        int | None,
        typer.Option(
            "--until", min=1, help="Compare up to this step.", show_default="the run's end"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Keep the new run in this directory.", callback=options.in_utf8),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Another device than the run's; it will differ.", show_default=False
        ),
    ] = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Train a run again from its manifest, and compare it bit for bit. Exit 0: identical; 1: not.

    Compares each log point, each checkpoint that was kept, and the final parameters.

    [dim]fcifar reproduce runs/a
    fcifar reproduce runs/a --until 4000[/]
    """
    import logging

    from fcifar.cli import progress, train_sweep
    from fcifar.cli.data import open_dataset
    from fcifar.runs import reproduce
    from fcifar.train import distributed, run_dir, sweep
    from fcifar.train.signals import catching_signals

    if out is not None and distributed.is_main():
        run_dir.check_free(out)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if run_dir.is_group(run):
        if until is not None or device is not None:
            raise UsageError(
                "--until and --device are of a single run; leave them out, or reproduce "
                f"{sweep.finished(run)[0]} with them"
            )
        data = open_dataset(sweep.read(run).config.dataset, data_dir, quiet=quiet)
        return train_sweep.reproduce(run, data, out=out, json=json, quiet=quiet)
    original = reproduce.read(run, device=device)
    reproduce.last_step(original, until)
    data = open_dataset(original.config.dataset, data_dir, quiet=quiet)
    if not quiet:
        _announce(original)
    with progress.training(quiet=quiet) as observe, catching_signals() as stop:
        result = reproduce.reproduce(
            original, data, until=until, out=out, observe=observe, stop=stop
        )
    if not isinstance(result, dict):
        if result.signum is None:  # on ranks other than 0, which compares
            return 0
        output.note(f"stopped after step {result.step:,}, before the end of the comparison")
        return 128 + result.signum
    if json:
        output.document(result)
    else:
        _show(result)
    return 0 if result["identical"] else 1


def verify(
    run: Run,
    json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Check that every file of a run is as it was written, in a moment and without training.

    [dim]fcifar verify runs/a[/]
    """
    from fcifar.runs.verify import verify as find_problems

    problems = find_problems(run)
    if json:
        output.document({"run": str(run), "intact": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            output.line(problem)
    else:
        output.line(f"{run} is as it was written")
    return 1 if problems else 0


def _announce(original: "Original") -> None:
    """What is going to be done, and whether identity can be expected."""
    config = original.config
    recipe, runtime, how = config.recipe, config.runtime, "compiled" if config.compile else "eager"
    output.note(
        f"reproducing {original.run}: {recipe.name} on {original.config.dataset}, seed "
        f"{config.seed}, {runtime.device}, {output.count(runtime.threads, 'thread')}, "
        f"{runtime.precision}, {how}"
    )
    for problem in original.damaged:
        output.note(f"damaged: {problem}")
    for change in original.changes:
        weight = "" if change.matters else " (changes no bits)"
        output.note(f"changed: {change.name} was {change.then}, is {change.now}{weight}")
    if original.mismatches:
        output.note(f"identity cannot be expected: {'; '.join(original.mismatches)}")
    else:
        output.note("identity can be expected")


def _show(result: dict[str, Any]) -> None:
    from fcifar.runs.reproduce import describe_difference

    first, final = result["first_difference"], result["final"]
    seen = [
        output.count(result["log_points"], "log point"),
        output.count(len(result["checkpoints"]), "checkpoint"),
    ]
    compared = ", ".join(seen + (["the final parameters"] if final else []))
    pairs = [("verdict", _verdict(result))]
    pairs += [("first", describe_difference(first))] if first else []
    pairs += [("damaged", problem) for problem in result["damaged"]]
    pairs += [
        ("compared", f"{compared}, up to step {result['steps']:,}"),
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
        return "the training is identical, but a file is not as it was written"
    why = "" if result["expected"] else ", as was to be expected in this environment"
    return f"not identical{why}"


def _show_tensors(entry: dict[str, Any]) -> None:
    found = entry["differing"]
    output.stdout.print()
    output.table(
        ("tensor", "elements", "differing", "largest difference"),
        [
            (
                tensor["tensor"],
                f"{tensor['elements']:,}",
                f"{tensor['elements_differing'] or 0:,}",
                f"{tensor['largest_difference']:.3g}",
            )
            for tensor in found[:_TENSORS]
        ],
        title=f"{entry['file']}, after step {entry['step']:,}: "
        + output.count(len(found), "differing tensor"),
    )
    if len(found) > _TENSORS:
        output.stdout.print(f"... and {len(found) - _TENSORS} more", style="dim")
