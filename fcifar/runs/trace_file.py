"""Traces of one step as files, to compare the operations of two machines.

    make_trace(original, dataset, Path("a.safetensors"), step=40)     # there
    compare_trace(original, dataset, Path("a.safetensors"))           # here, the same run

A file has the state before the step and its inputs, so that both machines take the step from the
same bits, and of each operation its name, its line, and fingerprint and figures of its outputs.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from fcifar import io, tensor_files, tree
from fcifar.data import Dataset
from fcifar.errors import DamagedError, UsageError
from fcifar.runs import trace_diff
from fcifar.runs.replay import (
    Progress,
    Side,
    Step,
    describe,
    inputs_from,
    make_side,
    results,
    state_before,
    tracer,
)
from fcifar.runs.reproduce import Original
from fcifar.train import environment
from fcifar.train.config import to_dict
from fcifar.train.runtime import activate
from fcifar.train.step_trace import Operation, Output, Trace

_TORCH = str(torch.__version__)


def make_trace(
    original: Original,
    dataset: Dataset,
    path: Path,
    *,
    step: int = 1,
    value: int | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Replay a run to a step, from 1, and write the trace of that, see ``write_trace``."""
    side = make_side(original, dataset)
    state = state_before(side, original, step, progress)
    _, inputs = next(inputs_from(side, step - 1))
    return write_trace(path, side, Step(step, state, inputs, []), value)


def compare_trace(original: Original, dataset: Dataset, path: Path) -> dict[str, Any]:
    """Take the step of a trace's file here, and compare, see ``locate_from``."""
    started = time.perf_counter()
    found = locate_from(path, make_side(original, dataset))
    seconds = time.perf_counter() - started
    return io.finite({"run": str(original.run), **found, "seconds": seconds})


def write_trace(path: Path, side: Side, step: Step, value: int | None = None) -> dict[str, Any]:
    """Write the trace of a step, and the state before it, to a safetensors file.

    Args:
        step: its ``differing`` is not used.
        value: number of an operation, from 1, whose outputs are kept, so that the amount of a
            difference is known elsewhere.

    Returns:
        What was written, as JSON-serializable values.

    Raises:
        UsageError: there is no such operation, or a compiled step cannot be recorded.
        ExternalError: the file cannot be written.
    """
    trace, after = tracer(side, step)(() if value is None else [value - 1])
    if value is not None and value - 1 not in trace.kept:
        raise UsageError(
            f"--values is {value}; step {step.number:,} has operations 1 to {len(trace.operations)}"
        )
    # Names of two digits, so that they are read in this order.
    kept = {
        str(number): {f"{i:02}": output for i, output in enumerate(outputs)}
        for number, outputs in trace.kept.items()
    }
    content = {"state": step.before, "inputs": step.inputs, "kept": kept}
    about = {
        "step": step.number,
        "kind": trace.kind,
        "setting": side.name,
        "config": to_dict(side.config),
        "torch": _TORCH,
        "code": environment.code_digest(),
        "after": tree.digest(results(after)),
    }
    metadata = {**about, "operations": [_packed(operation) for operation in trace.operations]}
    tensor_files.save(path, content, {key: json.dumps(value) for key, value in metadata.items()})
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        **{key: about[key] for key in ("step", "kind", "setting")},
        "operations": len(trace.operations),
        "kept": sorted(number + 1 for number in trace.kept),
    }


def _packed(operation: Operation) -> list[Any]:
    return [*operation[:-1], [list(output) for output in operation.outputs]]


def read_trace(path: Path, side: Side) -> tuple[Trace, Step, dict[str, Any]]:
    """Read what ``write_trace`` wrote: the trace, the step, and what is known about them.

    Raises:
        UsageError: it is of another run.
        ExternalError: the file is missing, damaged or not a trace.
    """
    tensors, metadata = tensor_files.read(path)
    try:
        about = {key: json.loads(value) for key, value in metadata.items()}
        config, number = about["config"], about["step"]
        operations = tuple(
            Operation(
                *(name, line, backward, tuple(inputs)),
                tuple(Output(dtype, tuple(shape), *rest) for dtype, shape, *rest in outputs),
            )
            for name, line, backward, inputs, outputs in about.pop("operations")
        )
        kept: dict[int, list[Any]] = {}
        for key in sorted(key for key in tensors if key.startswith("kept.")):
            kept.setdefault(int(key.split(".")[1]), []).append(tensors.pop(key))
        trace = Trace(about["kind"], operations, kept)
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is not a trace of fcifar reproduce --trace") from error
    ours = json.loads(json.dumps(to_dict(side.config)))
    for name in ("recipe", "seed", "dataset"):
        if config[name] != ours[name]:
            raise UsageError(f"{path} is a trace of a run with another {name}; give the same run")
    with activate(side.config.runtime):
        like = {"state": side.training.init(), "inputs": next(side.training.inputs(number - 1))}
    content = tensor_files.fit(path, tensors, like)
    return trace, Step(number, content["state"], content["inputs"], []), about


def locate_from(path: Path, side: Side) -> dict[str, Any]:
    """Take the step of a trace's file here from the same state, and compare the operations.

    Returns and raises as ``locate`` and ``read_trace``. The amount of a difference is known if the
    file has the values of that operation (``--values``).
    """
    trace, step, about = read_trace(path, side)
    here = tracer(side, step)
    other, after = here(())
    difference = trace_diff.first_difference(trace, other)
    amount = None
    if difference is not None and difference.place is not None:
        n, i, m, j = difference.place
        if n in trace.kept:
            amount = trace_diff.amount(trace.kept[n][i], here([m])[0].kept[m][j])
    found = describe(trace, other, difference, amount)
    return {
        "identical": about["after"] == tree.digest(results(after)),
        "step": step.number,
        "sides": [f"{about['setting']}, torch {about['torch']}", f"{side.name}, torch {_TORCH}"],
        **found,
    }
