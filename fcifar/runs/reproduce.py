"""A run trained again from its manifest alone, and compared with itself bit for bit."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.data import Dataset
from fcifar.errors import DamagedError, UserError
from fcifar.running import Running
from fcifar.runs import checkpoint, directory, environment, integrity, loop, manifest, saving
from fcifar.runs.differences import (
    Change,
    compare_environments,
    compare_records,
    compare_trees,
)
from fcifar.runs.events import Event, Logged, Noted, Observe, ignore
from fcifar.runs.jsonfiles import finite
from fcifar.runs.manifest import Settings
from fcifar.runs.runtime import activate
from fcifar.runs.safeguards import Safeguards

_STOPPED = 0  # in place of a signal's number: training came as far as was asked


class Original(NamedTuple):
    """A run to be reproduced, with all that is known before a step is made."""

    run: Path
    settings: Settings
    records: list[dict[str, Any]]
    checkpoints: dict[int, Path]  # those that are whole, by step
    report: dict[str, Any] | None  # None for a run that has not come to its end
    damaged: list[str]  # files that are not as they were written
    changes: list[Change]  # of the environment since then

    @property
    def doubts(self) -> list[str]:
        """Why identity cannot be expected, if it cannot."""
        changed = [
            f"{change.name} was {change.then} and is {change.now}"
            for change in self.changes
            if change.matters
        ]
        if not self.settings.runtime.deterministic:
            changed.append("the run was made with --fast, which promises no bits")
        if self.settings.mapped:
            changed.append(
                f"it was one of {self.settings.mapped} that were trained at once, which agrees "
                "with one alone to rounding; reproduce the group instead"
            )
        return changed


def read(run: Path, *, device: str | None = None) -> Original:
    """Everything about a run that a reproduction is compared with.

    Raises:
        UserError: it is not a run directory, or its device is not here and no other was given.
        WorldError: its manifest or its log is damaged; the message names the place.
    """
    settings = manifest.read_settings(run, device=device)
    about = directory.read_manifest(run)
    records = directory.read_records(run)
    damaged = integrity.check(run)
    report_is_whole = (run / directory.REPORT).exists() and not any(
        problem.startswith(f"{run / directory.REPORT} ") for problem in damaged
    )
    with activate(settings.runtime):
        now = environment.describe([settings.recipe.model])
    changes = compare_environments(
        about["environment"], now, settings.runtime, compiled=settings.compiled
    )
    if (ran_on := about["runtime"]["device"]) != settings.runtime.device:
        changes = [Change("--device", ran_on, settings.runtime.device, True), *changes]
    return Original(
        run=run,
        settings=settings,
        records=records,
        checkpoints={
            step: path
            for step, path in saving.list_checkpoints(run).items()
            if not any(problem.startswith(f"{path} ") for problem in damaged)
        },
        report=directory.read_report(run) if report_is_whole else None,
        damaged=damaged,
        changes=changes,
    )


def last_step(original: Original, until: int | None) -> int:
    """The step up to which there is something to compare.

    Raises:
        UserError: there is nothing up to ``until``.
    """
    steps = {record["step"] for record in original.records} | set(original.checkpoints)
    reached = [step for step in steps if until is None or step <= until]
    if not any(reached):
        first = min((step for step in steps if step), default=None)
        there = f"the first is at step {first:,}" if first else "the run ended before the first"
        raise UserError(
            f"{original.run} has no log point or checkpoint"
            + (f" up to step {until:,}" if until is not None else "")
            + f" to compare with; {there}"
        )
    return max(reached)


def reproduce(
    original: Original,
    dataset: Dataset,
    *,
    until: int | None = None,
    out: Path | None = None,
    observe: Observe = ignore,
    stop: Callable[[], int | None] = lambda: None,
) -> dict[str, Any] | loop.Interrupted:
    """Train again, and compare every log point, every checkpoint kept, and the final parameters.

    Args:
        original: from ``read``.
        dataset: the one that it was trained on.
        until: compare up to this step alone.
        out: keeps the new run; without it, it is thrown away.
        observe: is told what happens, and of each difference as soon as it is there.
        stop: asked before each step, as by ``loop.train``.

    Returns:
        What was found, as values that JSON holds; ``identical`` is the verdict. Or Interrupted,
        when a signal ended it.

    Raises:
        UserError: there is nothing to compare, or ``dataset`` is another one.
        WorldError: as ``loop.train``.
    """
    run, settings = original.run, original.settings
    manifest.check_same_data(run, settings, dataset)
    whole = original.report is not None and until is None
    end = last_step(original, until)
    first: list[dict[str, Any]] = []  # the first difference, once there is one
    compared: list[bool] = []  # whether each log point is the same
    tensors: list[dict[str, Any]] = []
    expected = iter([r for r in original.records if whole or _is_within(r, end)])

    def differ(difference: dict[str, Any] | None) -> None:
        if difference and not first:
            first.append(difference)
            observe(Noted(f"differs first {describe_difference(difference)}"))

    def watch(event: Event) -> None:
        observe(event)
        if isinstance(event, Logged) and (whole or not _is_final(event.record)):
            record = json.loads(json.dumps(finite(event.record)))  # as the log holds it
            difference = compare_records(next(expected, None), record)
            compared.append(difference is None)
            differ(difference)

    def look(step: int, running: Running) -> None:
        if path := original.checkpoints.get(step):
            found = compare_trees(saving.load_running(path, running).running.state, running.state)
            tensors.append({"file": path.name, "step": step, "differing": found})
            if found:
                differ({"step": step, "kind": "checkpoint", "what": [], "tensors": _names(found)})

    started = time.perf_counter()
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        new = Path(folder) if out else Path(folder) / "run"
        result = loop.train(
            new,
            settings.recipe,
            settings.runtime,
            dataset,
            compiled=settings.compiled,
            traced=settings.traced,
            earlier_ends=settings.earlier_ends,
            safeguards=Safeguards(checkpoint_every="1h", keep_checkpoints=1, allow_nonfinite=True),
            observe=watch,
            stop=stop,
            probe=look,
            until=None if whole else end,
        )
        if isinstance(result, loop.Interrupted) and result.signum != _STOPPED:
            return result
        for missing in expected:
            differ(compare_records(missing, None))
        final = _compare_final(original, new, result) if isinstance(result, dict) else None
    if final and not final["identical"]:
        step = final["step"]
        differ({"step": step, "kind": "final", "what": [], "tensors": _names(final["differing"])})
    return {
        "run": str(run),
        "identical": not first and not original.damaged,
        "whole": whole,
        "steps": end if final is None else final["step"],
        "log_points": len(compared),
        "digest": final["digest"] if final else _last_digest(original.records, end),
        "expected": not original.doubts,
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


def _is_final(record: dict[str, Any]) -> bool:
    """Whether a record is of the test images, at the end; with several views too."""
    return record.get("split", "").startswith("test")


def _is_within(record: dict[str, Any], end: int) -> bool:
    return record["step"] <= end and not _is_final(record)


def _compare_final(original: Original, new: Path, report: dict[str, Any]) -> dict[str, Any] | None:
    """The final parameters of both."""
    if original.report is None:
        return None
    found = {
        "identical": report["params_digest"] == original.report["params_digest"],
        "step": report["steps"],
        "digest": original.report["params_digest"],
        "new_digest": report["params_digest"],
        "differing": [],
    }
    if not found["identical"]:
        try:
            (then, _), (now, _) = (
                checkpoint.read(run / directory.FINAL) for run in (original.run, new)
            )
            found["differing"] = compare_trees(then, now)
        except DamagedError:  # it is among the damaged files already
            pass
    return found


def _names(found: list[dict[str, Any]]) -> list[str]:
    return [entry["tensor"] for entry in found]


def _last_digest(records: list[dict[str, Any]], end: int) -> str | None:
    """The digest of the state at the last log point up to a step."""
    digests = [r["digest"] for r in records if r["kind"] == "train" and r["step"] <= end]
    return digests[-1] if digests else None
