"""Comparison of two traces of a step: the first operation whose outputs differ, and by how much.

Traces of one kind are compared operation by operation. Those of an eager and a compiled step have
other operations, in another order. Each output of a compiled kernel is then compared with the eager
output of as many elements that is nearest to it in mean, root mean square, minimum and maximum.
What has no such counterpart, because a kernel does in one pass what eager operations do in several,
is not compared.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar.train.step_trace import COMPILED, Operation, Output, Trace

NEAR = {"float32": 1e-3, "float64": 1e-3, "bfloat16": 2e-2, "float16": 5e-3}
"""By dtype: how far figures of two counterparts may be apart, relative to the largest element."""

_FEW = 8  # elements; a counterpart of fewer may be one by chance


class Place(NamedTuple):
    """The same output in two traces; numbers are from 0."""

    operation: int
    output: int
    other_operation: int
    other_output: int


class Difference(NamedTuple):
    """The first difference of two traces."""

    place: Place | None  # of the outputs that differ; None if the operations do
    operation: int  # number in each of the traces, from 0
    other: int
    equal: int  # outputs before it that are equal
    without: int  # outputs before it that have no counterpart


def first_difference(trace: Trace, other: Trace) -> Difference | None:
    """Return the first difference of two traces; None if there is none.

    Between an eager and a compiled step, it is the first in the order of the compiled one.
    """
    if trace.kind == other.kind:
        return _first_in_order(trace.operations, other.operations)
    if trace.kind == COMPILED:
        return _first_by_value(trace.operations, other.operations)
    found = _first_by_value(other.operations, trace.operations)
    if found is None or found.place is None:
        return found
    a, i, b, j = found.place
    return found._replace(place=Place(b, j, a, i), operation=b, other=a)


def _first_in_order(a: Sequence[Operation], b: Sequence[Operation]) -> Difference | None:
    equal = 0
    for n, (x, y) in enumerate(itertools.zip_longest(a, b)):
        if x is None or y is None or x.name != y.name or len(x.outputs) != len(y.outputs):
            return Difference(None, n, n, equal, 0)
        for i, (u, v) in enumerate(zip(x.outputs, y.outputs, strict=True)):
            if (u.dtype, u.shape, u.hash) != (v.dtype, v.shape, v.hash):
                return Difference(Place(n, i, n, i), n, n, equal, 0)
            equal += 1
    return None


def _first_by_value(compiled: Sequence[Operation], eager: Sequence[Operation]) -> Difference | None:
    """Return the first output of a kernel whose counterpart differs."""
    equal = without = 0
    for n, operation in enumerate(compiled):
        for i, output in enumerate(operation.outputs):
            found, gap = counterpart(output, eager)
            if found is None:
                without += 1
            elif gap == 0:
                equal += 1
            else:
                return Difference(Place(n, i, *found), n, found[0], equal, without)
    return None


def origins(trace: Trace, other: Trace) -> tuple[list[int], int]:
    """Return the operations that compute other outputs from the same inputs, and how many differ.

    The others of those that differ only pass a difference on. For eager steps, up to the first
    place where they call different operations.
    """
    found, differing = [], 0
    for n, (x, y) in enumerate(zip(trace.operations, other.operations, strict=False)):
        if x.name != y.name:
            break
        if [o.hash for o in x.outputs] != [o.hash for o in y.outputs]:
            differing += 1
            if x.inputs == y.inputs:
                found.append(n)
    return found, differing


def counterpart(
    output: Output, operations: Sequence[Operation]
) -> tuple[tuple[int, int] | None, float]:
    """Return the operation and the output that are nearest to ``output``, and their distance.

    The distance is 0 for equal elements, in any order. (None, inf) if none is near.
    """
    limit = NEAR.get(output.dtype, 0.0) if math.prod(output.shape) >= _FEW else 0.0
    best, nearest = None, math.inf
    for n, operation in enumerate(operations):
        for i, other in enumerate(operation.outputs):
            if other.dtype != output.dtype or math.prod(other.shape) != math.prod(output.shape):
                continue
            if other.unordered == output.unordered:
                return (n, i), 0.0
            if (gap := _gap(output, other)) <= limit and gap < nearest:
                best, nearest = (n, i), gap
    return best, nearest


def _gap(a: Output, b: Output) -> float:
    """Return the largest difference of two outputs' figures, relative to their largest element."""
    figures = [(x.mean, x.rms, x.low, x.high) for x in (a, b)]
    scale = max(abs(v) for v in itertools.chain(*figures))
    gaps = [abs(u - v) for u, v in zip(*figures, strict=True)]
    # Not 0 even if all are equal, because the elements are not.
    return max([*gaps, math.ulp(0.0)]) / scale if math.isfinite(scale) and scale else math.inf


# Amounts -----------------------------------------------------------------------------------------


def amount(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Return by how much two tensors of as many elements differ, as JSON-serializable values.

    ``elements``, ``differing`` (those whose bits differ), ``largest`` (absolute difference; None
    beside a NaN or infinity on one side), and of floating values ``ulps``: the largest number of
    representable values between two elements, plus 1. ``order`` is "sorted" if the tensors have
    other shapes and only agree, about, when their elements are sorted; else "same".

    >>> from fcifar.runs.trace_diff import amount
    >>> amount(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2**-22]))["ulps"]
    1
    """
    order = "same"
    x, y = (t.detach().cpu().reshape(-1) for t in (a, b))
    if a.shape != b.shape and not _are_near(x, y):
        order, x, y = "sorted", x.sort().values, y.sort().values
    differs = _bits(x) != _bits(y)
    gap = (x.double() - y.double()).abs()
    gap = torch.where(differs, gap, 0.0)
    largest = gap.max().item()
    result = {
        "elements": len(x),
        "differing": int(differs.sum()),
        "largest": largest if math.isfinite(largest) else None,
        "order": order,
    }
    if x.is_floating_point():
        result["ulps"] = int((_rank(x) - _rank(y)).abs().max())
    return result


def _are_near(x: Tensor, y: Tensor) -> bool:
    scale = max(x.double().abs().max().item(), 1e-300)
    return (x.double() - y.double()).abs().max().item() <= 1e-2 * scale


def _bits(x: Tensor) -> Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(sizes[x.element_size()])


def _rank(x: Tensor) -> Tensor:
    """Return the position of each float in their order: int64, 0 for both zeros."""
    bits = _bits(x).to(torch.int64)
    lowest = -(1 << (8 * x.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)
