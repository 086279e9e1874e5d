"""fcifar reproduce and fcifar verify."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fcifar.cli import options, output, progress
from fcifar.cli.options import option
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from fcifar.runs.reproduce import Original

_TENSORS = 5  # rows of a table of differing tensors
_OPERATIONS = 10  # and of one of operations

_operations = functools.partial(option, rich_help_panel="Which operation differs")

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
    against: Annotated[
        str | None,
        _operations(
            "--against",
            "Compare with other settings here: threads=N, device=NAME, precision=NAME, eager, "
            "compiled, fast, or same; several with commas. Or with the FILE of a --trace.",
            "SETTINGS|FILE",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        _operations(
            "--trace",
            "Write the operations of a step to this .safetensors file, for --against elsewhere.",
            "FILE",
            dir_okay=False,
            callback=options.in_utf8,
        ),
    ] = None,
    step: Annotated[
        int | None,
        _operations(
            "--step",
            "The step, from 1.",
            None,
            "the first that differs; with --trace: 1",
            min=1,
        ),
    ] = None,
    values: Annotated[
        int | None,
        _operations(
            "--values", "With --trace: keep the output of this operation, by number.", None, min=1
        ),
    ] = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Train a run again from its manifest, and compare it bit for bit. Exit 0: identical; 1: not.

    Compares each log point, each checkpoint that was kept, and the final parameters.

    With --against, takes the steps of the run with the recorded settings and with
    others, and names the first step and the first operation that differ.

    [dim]fcifar reproduce runs/a
    fcifar reproduce runs/a --until 4000
    fcifar reproduce runs/a --against threads=2
    fcifar reproduce runs/a --trace a.safetensors --step 40   # there
    fcifar reproduce runs/a --against a.safetensors           # here[/]
    """
    from fcifar.cli.data import open_dataset
    from fcifar.runs import reproduce
    from fcifar.train import distributed, loop, run_dir, sweep
    from fcifar.train.signals import catching_signals

    if against is not None or trace is not None:
        if out is not None or run_dir.is_group(run):
            raise UsageError("--against and --trace are of a single run, without --out")
        request = _Request(against, trace, step, values, until)
        return _compare_operations(run, request, device, data_dir, json=json, quiet=quiet)
    if step is not None or values is not None:
        raise UsageError("--step and --values are for --against or --trace; add one of them")
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


class _Request(NamedTuple):
    """The options of a comparison of operations."""

    against: str | None
    trace: Path | None
    step: int | None
    values: int | None
    until: int | None

    def check(self) -> None:
        """Raise a UsageError for options that exclude each other."""
        if self.against is not None and self.trace is not None:
            raise UsageError("--trace and --against are for two machines; give one of them")
        if self.values is not None and self.trace is None:
            raise UsageError("--values is for --trace, which writes them")
        is_search = self.against is not None and self.file is None and self.step is None
        if self.until is not None and not is_search:
            raise UsageError("--until is for a search of the step; leave it out, or --step")
        if self.file is not None and self.step is not None:
            raise UsageError(f"{self.file} has the step; leave out --step")

    @property
    def file(self) -> Path | None:
        """The file of a trace to compare with, if ``against`` is one."""
        is_file = self.against is not None and self.against.endswith(".safetensors")
        return Path(self.against) if is_file and self.against else None


def _compare_operations(
    run: Path,
    request: _Request,
    device: str | None,
    data_dir: Path | None,
    *,
    json: bool,
    quiet: bool,
) -> int:
    from fcifar.cli.data import open_dataset
    from fcifar.runs import replay, reproduce, trace_file
    from fcifar.train.loop import Interrupted
    from fcifar.train.signals import catching_signals

    request.check()
    original = reproduce.read(run, device=device)
    if request.trace is not None:
        _check_trace(request.trace)
    elif request.file is None and request.against is not None:
        replay.parse_settings(original.config, request.against)
    data = open_dataset(original.config.dataset, data_dir, quiet=quiet)
    with progress.counting(quiet=quiet) as count, catching_signals() as stop:
        if request.trace is not None:
            step, value = request.step or 1, request.values
            result = trace_file.make_trace(
                original, data, request.trace, step=step, value=value, progress=count
            )
        elif request.file is not None:
            result = trace_file.compare_trace(original, data, request.file)
        else:
            result = replay.compare_settings(
                *(original, data, str(request.against)),
                step=request.step,
                until=request.until,
                progress=count,
                stop=stop,
            )
    if isinstance(result, Interrupted):
        output.note(f"stopped after step {result.step:,}; both sides are equal up to it")
        return 128 + (result.signum or 0)
    output.result(result, _show_trace if request.trace else _show_operations, json)
    return 0 if request.trace or result["identical"] else 1


def _check_trace(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise UsageError(f"--trace is {path}; its name must end in .safetensors")
    if path.exists():
        raise UsageError(f"{path} exists already; remove it or choose another --trace")


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
            ("time", output.seconds(result["seconds"])),
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
    pairs += [("next", _next(result))] if first else []
    pairs += [("damaged", problem) for problem in result["damaged"]]
    pairs += [
        ("compared", f"{points}, {checkpoints}{parameters}, up to step {result['steps']:,}"),
        ("time", output.seconds(result["seconds"])),
        ("digest", str(result["digest"])),
    ]
    if final and not final["identical"]:
        pairs.append(("new digest", final["new_digest"]))
    output.facts(pairs)
    differing = [entry for entry in result["checkpoints"] if entry["differing"]]
    differing += [{"file": "final.safetensors", **final}] if final and final["differing"] else []
    if differing:
        entry = differing[0]
        _show_tensors(f"{entry['file']}, after step {entry['step']:,}", entry["differing"])


def _next(result: dict[str, Any]) -> str:
    """How to find the operation: the first step after the last that is known to be equal."""
    run, step = result["run"], result["last_equal"] + 1
    return (
        f"fcifar reproduce {run} --trace FILE --step {step}, where it was trained, and --against "
        "FILE here name the operation; or --against SETTINGS, if both can be had here"
    )


def _verdict(result: dict[str, Any]) -> str:
    if result["identical"]:
        return "identical" if result["whole"] else f"identical up to step {result['steps']:,}"
    if not result["first_difference"]:
        return "the training is identical, but a file has changed"
    return "not identical" + ("" if result["expected"] else ", as expected in this environment")


def _show_tensors(where: str, differing: list[dict[str, Any]]) -> None:
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
    title = f"{where}: {count}"
    output.stdout.print()
    output.table(("tensor", "elements", "differing", "largest difference"), rows, title=title)
    if len(differing) > _TENSORS:
        output.stdout.print(f"... and {len(differing) - _TENSORS} more", style="dim")


# Operations --------------------------------------------------------------------------------------


def _show_trace(result: dict[str, Any]) -> None:
    kept = ", ".join(f"{number:,}" for number in result["kept"])
    output.facts(
        [
            ("step", f"{result['step']:,}, {result['setting']}"),
            ("operations", f"{result['operations']:,}"),
            *([("values", f"of operation {kept}")] if kept else []),
            ("written", f"{result['path']}, {output.size(result['bytes'])}"),
            ("next", f"fcifar reproduce RUN --against {result['path']}, elsewhere"),
        ]
    )


def _show_operations(result: dict[str, Any]) -> None:
    step, (first, second) = result["step"], result["sides"]
    pairs = [("sides", first), ("", second)]
    if result["identical"]:
        where = f"step {step:,}" if step else output.count(result["steps"], "step")
        output.facts([("verdict", f"identical: {where}"), *pairs, *_time(result)])
        return
    where = f"from step {step:,} on" if step else "from the initialisation on"
    pairs = [("verdict", f"not identical, {where}"), *pairs]
    output.facts([*pairs, *_operation(result), *_time(result)])
    if len(result.get("origins", ())) > 1:
        _show_origins(result["origins"])
    if result.get("differing"):
        after = f"after step {step:,}" if step else "after the initialisation"
        _show_tensors(after, result["differing"])


def _time(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [("time", output.seconds(result["seconds"]))]


def _operation(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The rows about the first operation that differs."""
    if result["operation"] is None:
        return [("operation", f"not found: {result['why']}")]
    kinds = result["kinds"]
    sides = [result["operation"], result["other_operation"]]
    is_mixed = kinds[0] != kinds[1]
    rows: list[tuple[str, str]] = []
    for i, operation in enumerate(sides if is_mixed or "why" in result else sides[:1]):
        label = f"{kinds[i]}" if is_mixed else "operation"
        if operation is None:
            rows.append((label, f"none is left of {result['operations'][i]:,}"))
            continue
        of = f"{operation['number']:,} of {result['operations'][i]:,}"
        rows.append((label, f"{of}, {operation['name']}"))
        if operation["line"]:
            backward = ", backward pass" if operation["backward"] else ""
            rows.append(("line", f"{operation['line']}{backward}"))
    if near := result.get("near"):
        backward = ", backward pass" if near["backward"] else ""
        rows.append(("near", f"{near['name']}, {near['line']}{backward}"))
    if "why" in result:
        return [*rows, ("why", result["why"])]
    tensor, of = result["output"], result["operation"]["outputs"]
    shape = f"{tensor['dtype']} {tensor['shape']}"
    rows.append(("output", f"{tensor['number']} of {of}, {shape}" if of > 1 else shape))
    rows += _amount(result)
    without = result["without_counterpart"]
    more = f", and {without:,} cannot be compared" if without else ""
    rows.append(("before it", f"{output.count(result['equal'], 'output')} equal{more}"))
    if "origins" in result:
        count = output.count(result["differing_operations"], "operation")
        own = f"{len(result['origins']):,} of them from the same inputs"
        rows.append(("in all", f"{count} differ, {own}"))
    return rows


def _show_origins(operations: list[dict[str, Any]]) -> None:
    rows = [
        (
            f"{operation['number']:,}",
            operation["name"],
            operation["line"] + (", backward" if operation["backward"] else ""),
        )
        for operation in operations[:_OPERATIONS]
    ]
    output.stdout.print()
    title = f"{len(operations):,} operations that differ from the same inputs"
    output.table(("", "operation", "line"), rows, title=title)
    if len(operations) > _OPERATIONS:
        output.stdout.print(f"... and {len(operations) - _OPERATIONS} more", style="dim")


def _amount(result: dict[str, Any]) -> list[tuple[str, str]]:
    amount = result["amount"]
    if amount is None:
        number = result["operation"]["number"]
        return [("amount", f"unknown; write the trace again with --values {number}")]
    order = ", sorted" if amount["order"] == "sorted" else ""
    largest = "NaN or infinity" if amount["largest"] is None else f"{amount['largest']:.3g}"
    ulps = f", {amount['ulps']:,} ulp" if "ulps" in amount else ""
    return [
        (
            "differing",
            f"{amount['differing']:,} of {output.count(amount['elements'], 'element')}{order}",
        ),
        ("largest", f"{largest}{ulps}"),
    ]
