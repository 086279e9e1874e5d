"""A function of CUDA tensors as one CUDA graph, whose replay is a single launch.

    step = replayed(in_place)           # (state, inputs) -> metrics; writes into the state
    metrics = step(state, inputs)       # the first time: capture a graph; then: replay it

A small step has some 40 kernels of a few microseconds each, which the host launches more slowly
than the device runs them. A graph has them all. It is bound to memory: it reads and writes the
first argument where that lies, reads the second from memory of its own, where each call copies it,
and its results are copied for the caller. So there is one graph for each state and each shape of
batch. Inductor's own graphs (``mode="reduce-overhead"``) leave out functions that overwrite their
arguments.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import operator
import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.errors import one_line
from fcifar.tree import Tree

WARM_UP = 2  # calls before the capture: they compile, choose kernels, and allocate workspaces
MOST_STATES = 8  # first arguments with graphs, alive at the same time

Function = Callable[[Any, Any], Tree]

_FAILED = "the step cannot be captured as a CUDA graph"


class _CaptureError(Exception):
    """A function does what a capture forbids, such as waiting for the device."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    second: list[Tensor]  # the memory that it reads instead of the second argument's leaves
    results: Tree


class _Bound(NamedTuple):
    """A first argument, and the graphs that read and write its leaves in place, by layout."""

    leaves: list["weakref.ref[Tensor]"]
    graphs: dict[Any, _Captured]


def replayed(function: Function, note: Callable[[str], object] = warnings.warn) -> Function:
    """Return ``(first, second) -> results``, which captures ``function`` once and replays it.

    The result is for one stream at a time. Where a graph cannot be used, it calls ``function``:
    for tensors that are not all on one CUDA device, inside a transformation, a trace or another
    capture, with several processes, or when a capture fails.

    Args:
        function: reads, and may overwrite, the leaves of ``first``, and returns tensors. Its host
            code runs a few times only: what it does depends on shapes, not on values.
        note: called with one line when CUDA tensors are not captured.

    Returns:
        A function with an attribute ``prepare``, which takes the same arguments and captures only.
    """
    bound: list[_Bound] = []
    last: tuple[Any, list[Any], _Bound | None] = None, [], None  # to find the same argument fast
    captures: dict[torch.device, Any] = {}  # the memory pool and the stream of all captures
    reasons: set[str] = set()  # why some calls were not captured

    def refuse(reason: str, detail: str = "") -> None:
        if reason not in reasons:
            reasons.add(reason)
            note(f"{reason}{detail and f' ({detail})'}; its kernels are launched one by one")

    def prepare(first: Any, second: Any) -> _Captured | None:
        """Return the graph for these arguments; capture it the first time."""
        nonlocal last
        if last[0] is not first or not _is_unchanged(last[1]):
            last = first, _contents(first), _find(tree.leaves(first))
        graphs = last[2].graphs if last[2] else None
        if graphs is None or _is_transformed():
            return None
        fed = tree.leaves(second)
        layouts = tuple((x.shape, x.stride(), x.dtype, x.device) for x in fed)
        key = layouts, tree.structure(second), _switches()
        if key not in graphs:
            captured = _get(first, second, tree.leaves(first), fed)
            if captured is None:
                return None
            graphs[key] = captured
        return graphs[key]

    def _find(leaves: list[Tensor]) -> _Bound | None:
        """Return the record of a first argument, known or new; None if it is not for graphs."""
        if not leaves or not _is_cuda(leaves[0]):
            return None
        bound[:] = [each for each in bound if all(ref() is not None for ref in each.leaves)]
        for each in bound:
            if [id(ref()) for ref in each.leaves] == [id(leaf) for leaf in leaves]:
                return each
        if len(bound) >= MOST_STATES:
            return refuse(f"more than {MOST_STATES} states take turns in a step")
        bound.append(_Bound([weakref.ref(leaf) for leaf in leaves], {}))
        return bound[-1]

    def _get(first: Any, second: Any, held: list[Tensor], fed: list[Tensor]) -> _Captured | None:
        if len({x.device for x in (*held, *fed)}) > 1:
            return None  # the function itself says what is wrong, or copies
        if _FAILED in reasons:
            return None
        if _has_peers():
            return refuse("with several processes a step is not captured as a CUDA graph")
        device = held[0].device
        try:
            return _capture(function, first, second, device, captures)
        except _CaptureError as error:
            return refuse(_FAILED, one_line(str(error)))

    def call(first: Any, second: Any) -> Tree:
        captured = prepare(first, second)
        if captured is None:
            return function(first, second)
        for own, given in zip(captured.second, tree.leaves(second), strict=True):
            own.copy_(given)
        captured.graph.replay()
        return tree.map(torch.clone, captured.results)

    call.prepare = prepare  # type: ignore[attr-defined]
    return call


def _capture(
    function: Function, first: Any, second: Any, device: torch.device, captures: dict[Any, Any]
) -> _Captured:
    """Capture ``function(first, copy of second)``; this leaves ``first`` as it was."""
    with torch.cuda.device(device):
        if device not in captures:
            captures[device] = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        pool, stream = captures[device]
        spare, fed = tree.map(torch.clone, (first, second))
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function(spare, fed)
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread must not do what a capture forbids: another may write a checkpoint.
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                results = function(first, fed)
        except RuntimeError as error:
            raise _CaptureError(str(error)) from error
    return _Captured(graph, tree.leaves(fed), results)


def _is_cuda(leaf: Tensor) -> bool:
    return leaf.is_cuda


def _contents(first: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    """The dicts and lists in a tree, which can be changed in place, and what is in each."""
    if not isinstance(first, tuple | list | dict):
        return []
    values = tuple(first.values() if isinstance(first, dict) else first)
    own = [] if isinstance(first, tuple) else [(first, values)]
    return own + [each for value in values for each in _contents(value)]


def _is_unchanged(contents: list[tuple[Any, tuple[Any, ...]]]) -> bool:
    for container, values in contents:
        now = container.values() if isinstance(container, dict) else container
        if len(container) != len(values) or not all(map(operator.is_, now, values)):
            return False
    return True


def _has_peers() -> bool:
    ranks = torch.distributed
    return ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1


def _is_transformed() -> bool:
    """Whether a transformation of ``torch.func``, a trace or a capture is under way."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.compiler.is_compiling()
        or torch.cuda.is_current_stream_capturing()
    )


def _switches() -> tuple[Any, ...]:
    """The global settings of torch by which it chooses kernels."""
    cudnn = torch.backends.cudnn
    return (
        torch.get_deterministic_debug_mode(),
        torch.get_float32_matmul_precision(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        torch.is_autocast_enabled("cuda"),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
    )
