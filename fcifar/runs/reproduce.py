"""Training a run or a group again, from its manifest alone, and comparing it bit for bit."""

import itertools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import io, tensor_files, tree
from fcifar.data import Dataset
from fcifar.errors import DamagedError, UsageError
from fcifar.runs.verify import verify
from fcifar.step_transforms import LoopState
from fcifar.train import distributed, environment, loop, metrics_log, run_dir, sweep
from fcifar.train.config import CheckpointConfig, RunConfig, check_same_data, read_config
from fcifar.train.events import Event, Logged, Noted, Observe, ignore
from fcifar.train.loop import Interrupted
from fcifar.train.runtime import Runtime, activate
from fcifar.train.signals import Stop, never

_RARELY = CheckpointConfig(checkpoint_every="1h", keep_checkpoints=1, allow_nonfinite=True)

_WALL_CLOCK = {"seconds", "images_per_second"}  # in a log, what may differ

# What a result's bits depend on; the rest of an environment is there for a person.
_MATTERS = (
    *("torch", "code", "model_code", "cpu", "cpu_capability", "libc", "torch_build", "cuda"),
    "cudnn",
)
_SET_BY_RUNTIME = ("$OMP_NUM_THREADS", "$MKL_NUM_THREADS")


class Change(NamedTuple):
    """Something in the environment that is not as it was."""

    name: str
    then: Any
    now: Any
    matters: bool  # whether bits may depend on it


class Original(NamedTuple):
    """A run to be reproduced, with all that is known before a step is made."""

    run: Path
    config: RunConfig
    records: list[dict[str, Any]]
    checkpoints: dict[int, Path]  # those that are whole, by step
    report: dict[str, Any] | None  # None for an unfinished run
    damaged: list[str]  # files that are not as they were written
    changes: list[Change]  # of the environment since then

    @property
    def mismatches(self) -> list[str]:
        """Why identity cannot be expected, if it cannot."""
        alone = (
            f"it was one of {self.config.vmap_size} that were trained at once, which agrees with "
            "one alone to rounding; reproduce the group instead"
        )
        return _mismatches(self.changes, self.config) + ([alone] if self.config.vmap_size else [])


def read(run: Path, *, device: str | None = None) -> Original:
    """Everything about a run that a reproduction is compared with.

    Raises:
        UsageError: it is not a run directory, or its device is not here and no other was given.
        ExternalError: its manifest or its log is damaged; the message names the place.
    """
    config = read_config(run, device=device)
    manifest = run_dir.read_manifest(run)
    damaged = verify(run)
    checkpoints = run_dir.list_checkpoints(run)
    changes = _changes(manifest, config, [config.recipe.model])
    if (ran_on := manifest["runtime"]["device"]) != config.runtime.device:
        changes = [Change("--device", ran_on, config.runtime.device, True), *changes]

    def is_whole(path: Path) -> bool:
        return path.exists() and not any(line.startswith(f"{path} ") for line in damaged)

    return Original(
        run=run,
        config=config,
        records=metrics_log.read_digests(run),
        checkpoints={step: path for step, path in checkpoints.items() if is_whole(path)},
        report=run_dir.read_report(run) if is_whole(run / run_dir.REPORT) else None,
        damaged=damaged,
        changes=changes,
    )


def last_step(original: Original, until: int | None) -> int:
    """The step up to which there is something to compare.

    Raises:
        UsageError: there is nothing up to ``until``.
    """
    steps = {record["step"] for record in original.records} | set(original.checkpoints)
    reached = [step for step in steps if until is None or step <= until]
    if not any(reached):
        first = min((step for step in steps if step), default=None)
        there = f"the first is at step {first:,}" if first else "the run ended before the first"
        up_to = "" if until is None else f" up to step {until:,}"
        raise UsageError(
            f"{original.run} has no log point or checkpoint{up_to} to compare with; {there}"
        )
    return max(reached)


def reproduce(
    original: Original,
    dataset: Dataset,
    *,
    until: int | None = None,
    out: Path | None = None,
    observe: Observe = ignore,
    stop: Stop = never,
) -> dict[str, Any] | Interrupted:
    """Train again, and compare every log point, every checkpoint kept, and the final parameters.

    Args:
        original: from ``read``.
        dataset: the one that it was trained on.
        until: compare up to this step alone.
        out: keeps the new run; without it, it is thrown away.
        observe: is told what happens, and of each difference as soon as it is there.
        stop: called before each step, as by ``loop.train``.

    Returns:
        What was found, as values that JSON holds; ``identical`` is the verdict. Or Interrupted,
        when a signal ended it, and on ranks other than 0.

    Raises:
        UsageError: there is nothing to compare, or ``dataset`` is another one.
        ExternalError: as ``loop.train``.
    """
    run, config = original.run, original.config
    check_same_data(run, config, dataset)
    whole = original.report is not None and until is None
    end = last_step(original, until)
    first: list[dict[str, Any]] = []  # the first difference, once there is one
    compared: list[bool] = []  # whether each log point is the same
    tensors: list[dict[str, Any]] = []
    records = [r for r in original.records if whole or _is_within(r, end)]
    expected = iter(records)

    def differ(difference: dict[str, Any] | None) -> None:
        if difference and not first:
            first.append(difference)
            observe(Noted(f"differs first {describe_difference(difference)}"))

    def watch(event: Event) -> None:
        observe(event)
        if isinstance(event, Logged) and (whole or _is_within(event.record, end)):
            record = json.loads(json.dumps(io.finite(event.record)))  # as the log holds it
            difference = compare_records(next(expected, None), record)
            compared.append(difference is None)
            differ(difference)

    def look(step: int, state: LoopState) -> None:
        if path := original.checkpoints.get(step):
            found = tree.differences(tensor_files.load(path, state)[0].state, state.state)
            tensors.append({"file": path.name, "step": step, "differing": found})
            if found:
                differ(_difference(step, "checkpoint", found))

    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        result = loop.train(
            Path(folder),
            config.replace(checkpoint=_RARELY),
            dataset,
            observe=watch,
            stop=stop,
            probe=look if distributed.is_main() else None,
            until=None if whole else end,
        )
        if isinstance(result, Interrupted) and result.signum is not None:
            return result
        if not distributed.is_main():  # rank 0 compares
            return Interrupted(None, end)
        for missing in expected:
            differ(compare_records(missing, None))
        final = None
        if original.report and isinstance(result, dict):
            final = _compare_final(run, original.report, Path(folder))
    if final and not final["identical"]:
        differ(_difference(final["step"], "final", final["differing"]))
    digests = [None, *(r["digest"] for r in records if r["split"] == "train")]
    return {
        "run": str(run),
        "identical": not first and not original.damaged,
        "whole": whole,
        "steps": end if final is None else final["step"],
        "log_points": len(compared),
        "digest": final["digest"] if final else digests[-1],
        "expected": not original.mismatches,
        "environment": [change._asdict() for change in original.changes],
        "damaged": original.damaged,
        "first_difference": first[0] if first else None,
        "log_points_differing": compared.count(False),
        "checkpoints": tensors,
        "final": final,
        "out": str(out) if out else None,
        "seconds": time.perf_counter() - started,
    }


def describe_difference(difference: dict[str, Any]) -> str:
    """One line: where, and by how much."""
    where = f"at step {difference['step']:,} ({difference.get('kind', 'log')})"
    figures = [
        f"{what['name']} {what['then']} then, {what['now']} now"
        + (f" ({what['difference']:.3g} apart)" if what.get("difference") is not None else "")
        if "then" in what
        else what["name"]
        for what in difference["what"]
        if what["name"] != "digest"
    ]
    names = difference["tensors"]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        figures.insert(0, f"tensor {names[0]}{more}")
    return f"{where}: " + "; ".join(figures or ["the digest of the predictions"])


def _is_within(record: dict[str, Any], end: int) -> bool:
    """Whether a record is of a step up to ``end``, and not of the test images, after all steps."""
    return record["step"] <= end and not record["split"].startswith("test")


def _compare_final(run: Path, report: dict[str, Any], new: Path) -> dict[str, Any]:
    """The final parameters of a run, whose report is given, and of the new one."""
    then, now = report["params_digest"], run_dir.read_report(new)["params_digest"]
    differing: list[dict[str, Any]] = []
    if then != now:
        with suppress(DamagedError):  # it is among the damaged files already
            files = [tensor_files.read(path / run_dir.FINAL)[0] for path in (run, new)]
            differing = tree.differences(*files)
    return {
        "identical": then == now,
        "step": report["steps"],
        "digest": then,
        "new_digest": now,
        "differing": differing,
    }


def _difference(step: int, kind: str, found: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """As ``compare_records``, of parameters."""
    return {"step": step, "kind": kind, "what": [], "tensors": [entry["tensor"] for entry in found]}


def _changes(manifest: Mapping[str, Any], config: RunConfig, models: Sequence[str]) -> list[Change]:
    """What has changed in the environment since a run or a group was trained."""
    with activate(config.runtime):
        now = environment.describe(models)
    then = manifest.get("environment", {})
    return compare_environments(then, now, config.runtime, compiled=config.compile)


def _mismatches(changes: Sequence[Change], config: RunConfig) -> list[str]:
    found = [f"{c.name} was {c.then} and is {c.now}" for c in changes if c.matters]
    fast = "it was made with --fast, which promises no bits"
    return found + ([] if config.runtime.deterministic else [fast])


# Groups ------------------------------------------------------------------------------------------


def group_mismatches(path: Path) -> list[str]:
    """Why the same bits cannot be expected of a group again, if they cannot."""
    spec = sweep.read(path)
    manifest = run_dir.read_manifest(path, run_dir.SWEEP)
    models = [trial.recipe.model for trial in spec.trials]
    return _mismatches(_changes(manifest, spec.config, models), spec.config)


def reproduce_group(
    path: Path,
    dataset: Dataset,
    *,
    out: Path | None = None,
    observe: Observe = ignore,
    stop: Stop = never,
) -> dict[str, Any] | Interrupted:
    """Train a group again, and compare every log point and the final parameters of each run.

    All of its runs, by the same method: mapped over each other, they round together.

    Returns:
        What was found, as values that JSON holds; ``identical`` is the verdict. Or Interrupted.

    Raises:
        UsageError: ``path`` is not a finished group, or was trained on another data set.
        ExternalError: a file of it is damaged.
    """
    spec = sweep.read(path)
    if not (path / run_dir.SUMMARY).exists():
        raise UsageError(f"{path} is not finished; resume it with fcifar train --resume {path}")
    check_same_data(path, spec.config, dataset)
    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        new = Path(distributed.from_main("reproduced", folder))  # one folder for all ranks
        result = sweep.train(new, spec, dataset, observe=observe, stop=stop)
        if isinstance(result, Interrupted) or not distributed.is_main():
            return result if isinstance(result, Interrupted) else Interrupted(None, 0)
        runs = [
            {"name": trial.name, "first_difference": _first(path / trial.name, new / trial.name)}
            for trial in spec.trials
        ]
    damaged = verify(path)
    return {
        "run": str(path),
        "identical": not damaged and all(run["first_difference"] is None for run in runs),
        "runs": runs,
        "damaged": damaged,
        "expected": not group_mismatches(path),
        "seconds": time.perf_counter() - started,
    }


def _first(then: Path, now: Path) -> dict[str, Any] | None:
    """The first difference between the logs of two runs, or between their ends."""
    records, others = (metrics_log.read_digests(run) for run in (then, now))
    for a, b in itertools.zip_longest(records, others):
        if difference := compare_records(a, b):
            return difference
    ends = [run_dir.read_report(run) if run_dir.is_finished(run) else {} for run in (then, now)]
    a, b = (end.get("params_digest") for end in ends)
    return None if a == b else _difference(records[-1]["step"] if records else 0, "final")


# Differences -------------------------------------------------------------------------------------


def compare_environments(
    then: Mapping[str, Any], now: Mapping[str, Any], runtime: Runtime, *, compiled: bool
) -> list[Change]:
    """What changed between two of ``environment.describe``, what matters first.

    Args:
        runtime: of the run, which sets threads and switches by itself.
        compiled: whether the C++ compiler matters.
    """
    a, b = (_flat(values, runtime.device) for values in (then, now))
    matters = {*_MATTERS, "device", *(["compiler", "kernels"] if compiled else [])}
    matters |= {name for name in (*a, *b) if name.startswith("$") and name not in _SET_BY_RUNTIME}
    changes = [
        Change(name, a.get(name), b.get(name), name in matters)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
    return sorted(changes, key=lambda change: not change.matters)


def _flat(values: Mapping[str, Any], device: str) -> dict[str, Any]:
    skipped = ("versions", "variables", "devices", "switches", "threads")
    devices = [name for name in values.get("devices", ()) if name.split(" ")[0] == device]
    return {
        **{name: value for name, value in values.items() if name not in skipped},
        **values.get("versions", {}),
        **{f"${name}": value for name, value in values.get("variables", {}).items()},
        "device": devices[0] if devices else None,
    }


def compare_records(
    then: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """How one log point differs from another, as values that JSON holds; None for not at all.

    ``what`` names each figure with both values and their difference; ``tensors`` names, in the
    order of the state, the tensors whose digests differ.
    """
    if then is None or now is None:
        present = now if then is None else then
        assert present is not None
        side = "only in the new run" if then is None else "missing from the new run"
        return {"step": present["step"], "what": [{"name": f"log point {side}"}], "tensors": []}
    what = []
    for name in sorted({*then, *now} - _WALL_CLOCK - {"tensors"}):
        a, b = then.get(name), now.get(name)
        if a != b:
            are_numbers = isinstance(a, int | float) and isinstance(b, int | float)
            gap = abs(a - b) if are_numbers else None
            what.append({"name": name, "then": a, "now": b, "difference": gap})
    a, b = then.get("tensors", {}), now.get("tensors", {})
    tensors = [name for name in a if a[name] != b.get(name)] + [n for n in b if n not in a]
    kind = "training" if then["split"] == "train" else then["split"]
    if not what and not tensors:
        return None
    return {"step": then["step"], "kind": kind, "what": what, "tensors": tensors}
