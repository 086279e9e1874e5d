"""Train a run or a group again from its manifest, and compare it bit for bit."""

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
from fcifar.train.checkpoint import load_init
from fcifar.train.config import CheckpointConfig, RunConfig, check_same_data, read_config
from fcifar.train.events import Event, Logged, Noted, Observe, ignore
from fcifar.train.loop import Interrupted
from fcifar.train.runtime import Runtime, activate
from fcifar.train.signals import Stop, never

_CHECKPOINT = CheckpointConfig(checkpoint_every="1h", keep_checkpoints=1, allow_nonfinite=True)
_TIMINGS = {"seconds", "images_per_second"}  # fields of a log record that may differ
# Entries of an environment that bits depend on; the others are informational.
_BITWISE = (
    *("torch", "code", "model_code", "cpu", "cpu_capability", "libc", "torch_build", "cuda"),
    "cudnn",
)
_SET_BY_RUNTIME = ("$OMP_NUM_THREADS", "$MKL_NUM_THREADS")


class Change(NamedTuple):
    """A difference between two environments."""

    name: str
    then: Any
    now: Any
    matters: bool  # whether bits may depend on it


class Original(NamedTuple):
    """A run to reproduce."""

    run: Path
    config: RunConfig
    records: list[dict[str, Any]]
    checkpoints: dict[int, Path]  # undamaged ones, by step
    report: dict[str, Any] | None  # None for an unfinished run
    damaged: list[str]  # problems of files, a line each
    changes: list[Change]  # of the environment since then

    @property
    def mismatches(self) -> list[str]:
        """The reasons why identity cannot be expected; empty if it can."""
        return _mismatches(self.changes, self.config)


def read(run: Path, *, device: str | None = None) -> Original:
    """Read what a reproduction of a run is compared with, optionally for another device.

    Raises:
        UsageError: ``run`` is not a run directory, or the device is not available.
        ExternalError: its manifest or its log is damaged.
    """
    config, manifest = read_config(run, device=device), run_dir.read_manifest(run)
    damaged = verify(run)
    checkpoints = run_dir.list_checkpoints(run)

    def is_intact(path: Path) -> bool:
        return path.exists() and not any(line.startswith(f"{path} ") for line in damaged)

    return Original(
        run=run,
        config=config,
        records=metrics_log.read_digests(run),
        checkpoints={step: path for step, path in checkpoints.items() if is_intact(path)},
        report=run_dir.read_report(run) if is_intact(run / run_dir.REPORT) else None,
        damaged=damaged,
        changes=_changes(manifest, config, [config.recipe.model]),
    )


def last_step(original: Original, until: int | None) -> int:
    """Return the last step to compare, at most ``until``. Raises a UsageError if there is none."""
    steps = {record["step"] for record in original.records} | set(original.checkpoints)
    comparable = [step for step in steps if until is None or step <= until]
    if not any(comparable):
        first = min((step for step in steps if step), default=None)
        hint = f"the first is at step {first:,}" if first else "the run ended before the first"
        up_to = "" if until is None else f" up to step {until:,}"
        raise UsageError(
            f"{original.run} has no log point or checkpoint{up_to} to compare with; {hint}"
        )
    return max(comparable)


def reproduce(
    original: Original,
    dataset: Dataset,
    *,
    until: int | None = None,
    out: Path | None = None,
    observe: Observe = ignore,
    stop: Stop = never,
) -> dict[str, Any] | Interrupted:
    """Train again, and compare each log point, each checkpoint, and the final parameters.

    Args:
        original: from ``read``.
        dataset: the one that the run was trained on.
        until: compare only up to this step.
        out: where to keep the new run; by default it is deleted.
        observe: called with each event, also for the first difference.
        stop: called before each step, see ``loop.train``.

    Returns:
        The comparison, as JSON-serializable values; ``identical`` is the result. ``Interrupted``
        after a signal, and on other ranks than 0.

    Raises:
        UsageError: there is nothing to compare, or ``dataset`` is another one.
        ExternalError: see ``loop.train``.
    """
    run, config = original.run, original.config
    check_same_data(run, config, dataset)
    whole = original.report is not None and until is None
    end = last_step(original, until)
    first: dict[str, Any] | None = None  # difference
    last_equal = 0  # step
    is_equal: list[bool] = []  # by log point
    checkpoints: list[dict[str, Any]] = []
    records = [r for r in original.records if whole or _is_within(r, end)]
    expected = iter(records)

    def add_difference(difference: dict[str, Any] | None) -> None:
        nonlocal first
        if difference and not first:
            first = difference
            observe(Noted(f"first difference {describe_difference(difference)}"))

    def compare_log(event: Event) -> None:
        nonlocal last_equal
        observe(event)
        if isinstance(event, Logged) and (whole or _is_within(event.record, end)):
            record = json.loads(json.dumps(io.finite(event.record)))  # as in the log
            difference = compare_records(next(expected, None), record)
            is_equal.append(difference is None)
            add_difference(difference)
            if not first and record["split"] == "train":
                last_equal = record["step"]

    def compare_checkpoint(step: int, state: LoopState) -> None:
        nonlocal last_equal
        if path := original.checkpoints.get(step):
            differing = tree.differences(tensor_files.load(path, state)[0].state, state.state)
            checkpoints.append({"file": path.name, "step": step, "differing": differing})
            if differing:
                add_difference(_difference(step, "checkpoint", differing))
            elif not first:
                last_equal = step

    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        result = loop.train(
            Path(folder),
            config.replace(checkpoint=_CHECKPOINT),
            dataset,
            pretrained=load_init(run, config),
            observe=compare_log,
            stop=stop,
            probe=compare_checkpoint if distributed.is_main() else None,
            until=None if whole else end,
        )
        if isinstance(result, Interrupted) and result.signum is not None:
            return result
        if not distributed.is_main():  # rank 0 compares
            return Interrupted(None, end)
        for missing in expected:
            add_difference(compare_records(missing, None))
        final = None
        if original.report and isinstance(result, dict):
            final = _compare_final(run, original.report, Path(folder))
    if final and not final["identical"]:
        add_difference(_difference(final["step"], "final", final["differing"]))
    digests = [None, *(r["digest"] for r in records if r["split"] == "train")]
    return {
        "run": str(run),
        "identical": not first and not original.damaged,
        "whole": whole,
        "steps": end if final is None else final["step"],
        "log_points": len(is_equal),
        "digest": final["digest"] if final else digests[-1],
        "expected": not original.mismatches,
        "environment": [change._asdict() for change in original.changes],
        "damaged": original.damaged,
        "first_difference": first,
        "last_equal": last_equal,
        "log_points_differing": is_equal.count(False),
        "checkpoints": checkpoints,
        "final": final,
        "out": str(out) if out else None,
        "seconds": time.perf_counter() - started,
    }


def describe_difference(difference: dict[str, Any]) -> str:
    """Return one line with the step and what differs."""
    parts = []
    if names := difference["tensors"]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        parts.append(f"tensor {names[0]}{more}")
    for value in difference["what"]:
        if "then" not in value:
            parts.append(value["name"])
        elif value["name"] != "digest":
            gap = value.get("difference")
            text = f"{value['name']} {value['then']} then, {value['now']} now"
            parts.append(text if gap is None else f"{text} ({gap:.3g} apart)")
    where = f"at step {difference['step']:,} ({difference.get('kind', 'log')})"
    return f"{where}: {'; '.join(parts) or 'the digest of the predictions'}"


def _is_within(record: dict[str, Any], end: int) -> bool:
    """Whether a record is from a step up to ``end``, and not from the final test."""
    return record["step"] <= end and not record["split"].startswith("test")


def _compare_final(run: Path, report: dict[str, Any], new: Path) -> dict[str, Any]:
    """Compare the final parameters of a run and of its reproduction, and of their averages."""
    again = run_dir.read_report(new)
    then, now = report["params_digest"], again["params_digest"]
    pairs = {run_dir.FINAL: (then, now)}
    if "average_params_digest" in report:
        key = "average_params_digest"
        pairs[run_dir.AVERAGE] = (report[key], again.get(key))
    differing: list[dict[str, Any]] = []
    for name in (name for name, (a, b) in pairs.items() if a != b):
        with suppress(DamagedError):  # reported as damaged already
            files = [tensor_files.read(path / name)[0] for path in (run, new)]
            differing += tree.differences(*files)
    return {
        "identical": all(a == b for a, b in pairs.values()),
        "step": report["steps"],
        "digest": then,
        "new_digest": now,
        "differing": differing,
    }


def _difference(step: int, kind: str, tensors: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a difference of tensors in the form of ``compare_records``."""
    return {"step": step, "kind": kind, "what": [], "tensors": [t["tensor"] for t in tensors]}


def _changes(manifest: Mapping[str, Any], config: RunConfig, models: Sequence[str]) -> list[Change]:
    """Compare the environment of a run or a group with the current one."""
    with activate(config.runtime):
        now = environment.describe(models)
    then, device = manifest.get("environment", {}), manifest["runtime"]["device"]
    changes = compare_environments(then, now, config.runtime, compiled=config.compile)
    if device != config.runtime.device:
        changes.insert(0, Change("--device", device, config.runtime.device, True))
    return changes


def _mismatches(changes: Sequence[Change], config: RunConfig) -> list[str]:
    reasons = [f"{c.name} was {c.then} and is {c.now}" for c in changes if c.matters]
    if not config.runtime.deterministic:
        reasons.append("it was trained with --fast, which is not bitwise reproducible")
    if config.vmap_size:
        reasons.append(
            f"it was one of {config.vmap_size} that were trained at once, and a single run agrees "
            "with them only to rounding; reproduce the group instead"
        )
    return reasons


# Groups ------------------------------------------------------------------------------------------


def group_mismatches(path: Path) -> list[str]:
    """Return the reasons why identity of a group cannot be expected; empty if it can."""
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
    """Train a group again, and compare each log point and the final parameters of each run.

    Arguments, results and errors are as in ``reproduce``.
    """
    spec = sweep.read(path)
    if not (path / run_dir.SUMMARY).exists():
        raise UsageError(f"{path} is not finished; resume it with fcifar train --resume {path}")
    check_same_data(path, spec.config, dataset)
    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        new = Path(distributed.from_main("reproduced", folder))  # one folder for all ranks
        pretrained = load_init(path, spec.config)
        result = sweep.train(new, spec, dataset, pretrained=pretrained, observe=observe, stop=stop)
        if isinstance(result, Interrupted) or not distributed.is_main():
            return result if isinstance(result, Interrupted) else Interrupted(None, 0)
        runs = [
            {"name": trial.name, "first_difference": _compare(path / trial.name, new / trial.name)}
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


def _compare(then: Path, now: Path) -> dict[str, Any] | None:
    """Return the first difference between the logs or the final parameters of two runs."""
    records, others = (metrics_log.read_digests(run) for run in (then, now))
    for a, b in itertools.zip_longest(records, others):
        if difference := compare_records(a, b):
            return difference
    runs = [run_dir.read_report(run) if run_dir.is_finished(run) else {} for run in (then, now)]
    a, b = ([r.get("params_digest"), r.get("average_params_digest")] for r in runs)
    return None if a == b else _difference(records[-1]["step"] if records else 0, "final")


# Comparisons -------------------------------------------------------------------------------------


def compare_environments(
    then: Mapping[str, Any], now: Mapping[str, Any], runtime: Runtime, *, compiled: bool
) -> list[Change]:
    """Compare two results of ``environment.describe``; changes that matter come first."""
    a, b = (_flatten(values, runtime.device) for values in (then, now))
    matters = {*_BITWISE, "device", *(["compiler", "kernels"] if compiled else [])}
    matters |= {name for name in (*a, *b) if name.startswith("$") and name not in _SET_BY_RUNTIME}
    changes = [
        Change(name, a.get(name), b.get(name), name in matters)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
    return sorted(changes, key=lambda change: not change.matters)


def _flatten(values: Mapping[str, Any], device: str) -> dict[str, Any]:
    nested = ("versions", "variables", "devices", "switches", "threads")
    devices = [name for name in values.get("devices", ()) if name.split(" ")[0] == device]
    return {
        **{name: value for name, value in values.items() if name not in nested},
        **values.get("versions", {}),
        **{f"${name}": value for name, value in values.get("variables", {}).items()},
        "device": devices[0] if devices else None,
    }


def compare_records(
    then: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Compare two log records; return None if they are equal.

    Otherwise JSON-serializable values: ``what`` has each differing field with both values and their
    difference, ``tensors`` the names of the tensors whose digests differ.
    """
    if then is None or now is None:
        present = now if then is None else then
        assert present is not None
        side = "only in the new run" if then is None else "missing from the new run"
        return {"step": present["step"], "what": [{"name": f"log point {side}"}], "tensors": []}
    what = []
    for name in sorted({*then, *now} - _TIMINGS - {"tensors"}):
        a, b = then.get(name), now.get(name)
        if a != b:
            is_numeric = isinstance(a, int | float) and isinstance(b, int | float)
            gap = abs(a - b) if is_numeric else None
            what.append({"name": name, "then": a, "now": b, "difference": gap})
    a, b = then.get("tensors", {}), now.get("tensors", {})
    tensors = [name for name in a if a[name] != b.get(name)] + [n for n in b if n not in a]
    kind = "training" if then["split"] == "train" else then["split"]
    if not what and not tensors:
        return None
    return {"step": then["step"], "kind": kind, "what": what, "tensors": tensors}
