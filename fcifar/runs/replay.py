"""Replay the steps of a run under two settings, up to the first operation that differs.

    a = make_side(original, dataset)                       # as recorded
    b = make_side(original, dataset, "threads=2")
    step, _ = first_step(a, b)
    found = locate(a, b, step)                             # its first operation that differs

Both settings take every step from the same state until their results differ, so that the step is
found without a log of it. From the state before, both are traced, see ``step_trace``.

Where the two settings are on two machines, ``trace_file`` keeps the trace of one step.
"""

import dataclasses
import time
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

from fcifar import io, random, step_transforms, tensor_files, tree
from fcifar.data import Dataset
from fcifar.errors import ExternalError, UsageError, did_you_mean, shown
from fcifar.runs import trace_diff
from fcifar.runs.reproduce import Original
from fcifar.step_transforms import LoopState, StepInput
from fcifar.train import fingerprint, programs, step_trace
from fcifar.train.checkpoint import load_init
from fcifar.train.config import RunConfig, check_same_data
from fcifar.train.loop import Interrupted
from fcifar.train.runtime import activate
from fcifar.train.setup import Training, make_training, stage_at
from fcifar.train.signals import Stop, never
from fcifar.train.step_trace import COMPILED, EAGER, Output, Trace

Progress = Callable[[str, int, int], None]
_WORDS = {
    "eager": {"compile": False},
    "compiled": {"compile": True},
    "deterministic": {"deterministic": True},
    "fast": {"deterministic": False},
    "same": {},
}
_SETTINGS = ("threads", "device", "precision")


class Side(NamedTuple):
    """One of two settings."""

    config: RunConfig
    training: Training
    plain: Training  # not compiled; what a compiled one is recorded from

    @property
    def name(self) -> str:
        """The setting in words, such as "cpu, 1 thread, fp32, eager"."""
        runtime, how = self.config.runtime, COMPILED if self.config.compile else EAGER
        threads = f"{runtime.threads} thread{'s' if runtime.threads > 1 else ''}"
        fast = "" if runtime.deterministic else ", fast"
        return f"{runtime.device}, {threads}, {runtime.precision}, {how}{fast}"


class Step(NamedTuple):
    """A step that differs, and what it started from."""

    number: int  # from 1; 0 for the initialisation
    before: LoopState
    inputs: StepInput | tuple[()]
    differing: list[dict[str, Any]]  # tensors after it, from ``tree.differences``


# The settings ------------------------------------------------------------------------------------


def parse_settings(config: RunConfig, text: str) -> RunConfig:
    """Return a configuration with the settings of ``text``, such as "threads=2,eager".

    Settings are ``threads=N``, ``device=NAME``, ``precision=NAME``, ``eager``, ``compiled``,
    ``deterministic`` and ``fast``; ``same`` changes none, and so compares a run with itself.

    Raises:
        UsageError: unknown or impossible settings, or the recorded ones.
    """
    runtime, changes = config.runtime, {}
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if equals and name in _SETTINGS:
            if name == "threads" and not value.isdecimal():
                raise UsageError(f"--against has threads={shown(value)}, which is not a number")
            changes[name] = int(value) if name == "threads" else value
        elif not equals and name in _WORDS:
            changes |= _WORDS[name]
        else:
            names = [*(f"{name}=" for name in _SETTINGS), *_WORDS]
            raise UsageError(
                f"--against has {shown(word)}; it must be the .safetensors file of a --trace, or "
                f"some of {', '.join(names)}{did_you_mean(name, names)}"
            )
    compiled = changes.pop("compile", config.compile)
    changed = config.replace(runtime=dataclasses.replace(runtime, **changes), compile=compiled)
    if changed == config and text.strip() != "same":
        raise UsageError(
            f"--against is {text}, which the run was trained with; give other settings, or same to "
            "find operations that differ from call to call"
        )
    return changed


def make_side(original: Original, dataset: Dataset, settings: str = "same") -> Side:
    """Return a side of a comparison.

    Args:
        settings: as for ``parse_settings``; by default those of the run.

    Raises:
        UsageError: the settings, or ``dataset`` is not that of the run.
    """
    check_same_data(original.run, original.config, dataset)
    config = parse_settings(original.config, settings)
    if config.runtime.processes > 1:
        raise UsageError(
            f"{original.run} was trained by {config.runtime.processes} processes; operations are "
            "compared for runs of a single process"
        )
    pretrained = load_init(original.run, config)
    with activate(config.runtime):
        plain = make_training(config.replace(compile=False), dataset, pretrained=pretrained)
        training = plain
        if config.compile:
            training = make_training(config, dataset, pretrained=pretrained)
    return Side(config, training, plain)


# Steps -------------------------------------------------------------------------------------------


def _advance(side: Side, state: LoopState, inputs: StepInput, step: int) -> LoopState:
    """Take step ``step`` (from 0), which may overwrite ``state``."""
    tree.map(lambda total: total.zero_(), state.totals)  # only the metrics of this step
    with activate(side.config.runtime):
        return stage_at(side.training.stages, step)(state, inputs)[0]


def inputs_from(side: Side, start: int) -> Iterator[tuple[int, StepInput]]:
    """Yield number (from 0) and inputs of each step from ``start`` on."""
    with activate(side.config.runtime):
        inputs = side.training.inputs(start)
    return enumerate(inputs, start)


def _copy(state: Any, side: Side) -> Any:
    """Return a copy on the device of a side."""
    moved = tree.on_device(state, side.config.runtime.device)
    return tree.map(lambda x: x.clone(), moved)


def state_before(
    side: Side, original: Original, step: int, progress: Progress = lambda *_: None
) -> LoopState:
    """Return the state before a step, from 1: from the run's last checkpoint before it, or anew.

    Raises:
        UsageError: the run has no such step.
    """
    total = side.training.total_steps
    if not 1 <= step <= total:
        raise UsageError(f"--step is {step}; the run has steps 1 to {total:,}")
    with activate(side.config.runtime):
        state = side.training.init()
    saved = [n for n in original.checkpoints if n < step]
    start = max(saved, default=0)
    if saved:
        state = tensor_files.load(original.checkpoints[start], state)[0]
    for number, inputs in inputs_from(side, start):
        if number == step - 1:
            break
        state = _advance(side, state, inputs, number)
        progress("replaying", number + 1 - start, step - 1 - start)
    return state


def first_step(
    a: Side,
    b: Side,
    *,
    until: int | None = None,
    progress: Progress = lambda *_: None,
    stop: Stop = never,
) -> tuple[Step | None, int]:
    """Return the first step whose result differs, and the number of steps that were compared.

    Args:
        until: compare only up to this step.
        progress: called with a description, the steps done and all steps.
        stop: called before each step; a signal number ends the comparison.
    """
    end = min(until or a.training.total_steps, a.training.total_steps)
    starts = []
    for side in (a, b):
        with activate(side.config.runtime):
            starts.append(side.training.init())
    state, other = starts
    if differing := tree.differences(state.state, other.state):
        return Step(0, state, (), differing), 0
    multipliers = fingerprint.draw_multipliers(random.key(0), state)
    theirs = multipliers.to(b.config.runtime.device)
    for step, inputs in inputs_from(a, 0):
        if step >= end or stop():
            return None, step
        before = _copy(state, a)
        state = _advance(a, state, inputs, step)
        other = _advance(b, other, _copy(inputs, b), step)
        hashes = fingerprint.hash_leaves(multipliers, state).tolist()
        if hashes != fingerprint.hash_leaves(theirs, other).tolist():
            return Step(step + 1, before, inputs, _differences(state, other)), step
        progress("comparing steps", step + 1, end)
    return None, end


def compare_step(a: Side, b: Side, step: int, state: LoopState) -> Step:
    """Take a step, from 1, on both sides from the same state."""
    _, inputs = next(inputs_from(a, step - 1))
    states = [_advance(side, _copy(state, side), _copy(inputs, side), step - 1) for side in (a, b)]
    return Step(step, state, inputs, _differences(*states))


def _differences(a: LoopState, b: LoopState) -> list[dict[str, Any]]:
    return tree.differences(results(a), results(b))


def results(state: LoopState) -> dict[str, Any]:
    """The state, and the metrics of the last step beside it."""
    return {**state.state._asdict(), "metrics": state.totals}


# Traces ------------------------------------------------------------------------------------------


def tracer(side: Side, step: Step) -> Callable[[Container[int]], tuple[Trace, LoopState]]:
    """Return a function that records a step of a side.

    Its argument is the numbers of the operations whose outputs are kept, from 0.

    Raises:
        UsageError: the operations of a compiled step cannot be recorded.
    """
    runtime = side.config.runtime
    if step.number == 0:

        def trace_init(keep: Container[int]) -> tuple[Trace, LoopState]:
            with activate(runtime):
                return step_trace.record(side.training.init, keep=keep)

        return trace_init

    plain = stage_at(side.plain.stages, step.number - 1)

    def start() -> tuple[LoopState, StepInput]:
        state, inputs = _copy((step.before, step.inputs), side)
        tree.map(lambda total: total.zero_(), state.totals)
        return state, inputs

    if not side.config.compile:

        def trace(keep: Container[int]) -> tuple[Trace, LoopState]:
            with activate(runtime):
                found, (state, _) = step_trace.record(plain, *start(), keep=keep)
            return found, state

        return trace

    def overwriting(state: LoopState, inputs: StepInput) -> tuple[()]:
        return step_transforms.overwrite(state, plain(state, inputs)[0])

    with activate(runtime):
        observed = programs.observed(overwriting, *start())

    def trace_compiled(keep: Container[int]) -> tuple[Trace, LoopState]:
        state, inputs = start()
        with activate(runtime):
            return observed(state, inputs, keep), state

    return trace_compiled


def locate(a: Side, b: Side, step: Step, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Return the first operation of a step that differs, as JSON-serializable values.

    ``operation`` is None if none was found; ``why`` then says why.
    """
    try:
        progress("recording the operations", 0, 2)
        first, second = tracer(a, step), tracer(b, step)
    except UsageError as error:
        return {"operation": None, "why": str(error)}
    trace, after = first(())
    progress("recording the operations", 1, 2)
    other, other_after = second(())
    if a.config != b.config and a.config.runtime.deterministic and b.config.runtime.deterministic:
        check_recorded(step, after, other_after)
    difference = trace_diff.first_difference(trace, other)
    if difference is None or difference.place is None:
        return describe(trace, other, difference)
    n, i, m, j = difference.place
    values = first([n])[0].kept[n][i], second([m])[0].kept[m][j]
    found = describe(trace, other, difference, trace_diff.amount(*values))
    if a.config.compile and b.config.compile:  # kernels have no line: say which operation is near
        eager, _ = tracer(a._replace(config=a.config.replace(compile=False)), step)(())
        near, _ = trace_diff.counterpart(trace.operations[n].outputs[i], eager.operations)
        found["near"] = _described(eager, near[0]) if near else None
    return found


def check_recorded(step: Step, after: LoopState, other: LoopState) -> None:
    """Raise an ExternalError unless the recorded steps made the results of the unrecorded ones."""
    if step.number and _differences(after, other) != step.differing:
        raise ExternalError(
            f"step {step.number:,} gives other results while its operations are recorded; run it "
            "again, and report this if it stays"
        )


def describe(
    trace: Trace,
    other: Trace,
    difference: trace_diff.Difference | None,
    amount: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the first difference of two traces as JSON-serializable values. Numbers are from 1."""
    counts = {"kinds": [trace.kind, other.kind], "operations": [*map(_count, (trace, other))]}
    if difference is None:
        why = "all outputs of operations that were compared are equal"
        return {**counts, "operation": None, "why": why}
    sides = [
        _described(t, n) for t, n in ((trace, difference.operation), (other, difference.other))
    ]
    found: dict[str, Any] = {
        **counts,
        "equal": difference.equal,
        "without_counterpart": difference.without,
    }
    if trace.kind == other.kind == EAGER:
        numbers, differing = trace_diff.origins(trace, other)
        found["origins"] = [_described(trace, n) for n in numbers]
        found["differing_operations"] = differing
    if difference.place is None:
        why = "from here on the two call different operations"
        return {**found, "operation": sides[0], "other_operation": sides[1], "why": why}
    n, i, m, j = difference.place
    outputs = trace.operations[n].outputs[i], other.operations[m].outputs[j]
    return {
        **found,
        "operation": sides[0],
        "other_operation": sides[1],
        "output": {"number": i + 1, **_figures(outputs[0])},
        "other_output": {"number": j + 1, **_figures(outputs[1])},
        "amount": dict(amount) if amount else None,
    }


def _count(trace: Trace) -> int:
    return len(trace.operations)


def _described(trace: Trace, number: int) -> dict[str, Any] | None:
    if number >= len(trace.operations):
        return None
    operation = trace.operations[number]
    return {
        "number": number + 1,
        "name": operation.name,
        "line": operation.line,
        "backward": operation.backward,
        "outputs": len(operation.outputs),
    }


def _figures(output: Output) -> dict[str, Any]:
    return {**output._asdict(), "shape": list(output.shape)}


def compare_settings(
    original: Original,
    dataset: Dataset,
    settings: str,
    *,
    step: int | None = None,
    until: int | None = None,
    progress: Progress = lambda *_: None,
    stop: Stop = never,
) -> dict[str, Any] | Interrupted:
    """Find the first step and operation at which the recorded settings and others differ.

    Args:
        original: from ``reproduce.read``.
        settings: the others, as for ``parse_settings``.
        step: compare this step, from 1, from the state before it with the recorded settings; by
            default all steps in order.
        until: compare only up to this step.

    Returns:
        JSON-serializable values; ``identical`` is the result. ``Interrupted`` after a signal.

    Raises:
        UsageError: impossible settings, or there is no such step.
        ExternalError: a checkpoint cannot be read.
    """
    started = time.perf_counter()
    a, b = make_side(original, dataset), make_side(original, dataset, settings)
    if step is None:
        found, compared = first_step(a, b, until=until, progress=progress, stop=stop)
    else:
        found, compared = compare_step(a, b, step, state_before(a, original, step, progress)), step
        found = found if found.differing else None
    if found is None and (signum := stop()):
        return Interrupted(signum, compared)
    result = {
        "run": str(original.run),
        "identical": found is None,
        "sides": [a.name, b.name],
        "steps": compared,
        "step": None if found is None else found.number,
        "differing": [] if found is None else found.differing,
        "tensors": len(tree.leaves(found.before)) if found is not None else None,
    }
    if found is not None:
        result |= locate(a, b, found, progress)
    return io.finite({**result, "seconds": time.perf_counter() - started})
