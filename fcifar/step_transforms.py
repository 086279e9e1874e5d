"""Transformations of a step: step -> step.

    step = on_indices(make_train_step(model, optimizer), data)    # take row numbers
    step = accumulate(step)                                       # sum the metrics
    step = map_replicas(step)                                     # map over a stack of states
    step = compile_step(step)                                     # compile with torch.compile

``make_loop_step`` combines the first two for the training loop.
"""

import itertools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import metrics, parallel, random, tree
from fcifar.augment import functional
from fcifar.metrics import Metrics
from fcifar.step import Batch, Sampled, Shard, TrainState, TrainStep
from fcifar.tree import Tree

# Inputs ------------------------------------------------------------------------------------------


def on_indices(step: Callable[[Any, Batch], Any], data: Batch) -> Callable[[Any, Tensor], Any]:
    """Make a step that takes row numbers (int64 [B]) of a data set on the device.

    When compiled, the gather is part of the step: no image is touched outside it.

    >>> data = fcifar.Batch(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9))
    >>> step = fcifar.on_indices(lambda state, batch: (state + 1, batch.labels), data)
    >>> step(torch.tensor(0), torch.tensor([7, 2]))
    (tensor(1), tensor([7, 2]))
    """

    def step_on_indices(state: Any, rows: Tensor) -> Any:
        return step(state, Batch(data.images[rows], data.labels[rows]))

    return step_on_indices


class StepInput(NamedTuple):
    """The input of one step of the training loop. Unused fields are empty and cost nothing."""

    indices: Tensor  # int64 [B], rows of the training images
    flip: Any = ()  # bool [B], images to mirror before augmentation
    hparams: Mapping[str, Tensor] = {}
    first_row: Any = ()  # int64 [], for a shard: index in the batch of its first row
    present: Any = ()  # bool [B], for a batch of a random size: rows that have an image


def shard(inputs: StepInput, rank: int, size: int) -> StepInput:
    """Return the part of one of ``size`` ranks.

    Raises:
        ValueError: the rows cannot be divided into ``size`` equal parts.
    """
    if size == 1:
        return inputs
    indices, flip = parallel.shard((inputs.indices, inputs.flip), rank, size)
    first = torch.full((), rank * len(indices), dtype=torch.int64, device=indices.device)
    return inputs._replace(indices=indices, flip=flip, first_row=first)


def alternate(mirrored: Tensor, rows: Tensor, epoch: int) -> Tensor:
    """Return which images of a batch to mirror under alternating flip: bool [B].

    Images whose entry in ``mirrored`` (bool, one per row of the data) is true are mirrored in
    epochs 0, 2, 4, ..., the others in epochs 1, 3, 5, .... Any two successive epochs show every
    image both ways, which random flips do for half of the images.

    Jordan, https://arxiv.org/abs/2404.00498, "alternating flip".

    Args:
        rows: int64 [B], rows of the batch in the data.

    >>> mirrored, rows = torch.tensor([True, False, True]), torch.tensor([2, 1])
    >>> [fcifar.step_transforms.alternate(mirrored, rows, epoch).tolist() for epoch in (0, 1)]
    [[True, False], [False, True]]
    """
    return mirrored[rows] ^ (epoch % 2 == 1)


# State -------------------------------------------------------------------------------------------


class LoopState(NamedTuple):
    """A train state, and the metrics of the steps since they were last read."""

    state: TrainState
    totals: Metrics
    nonfinite: Tensor  # int64 [], first step of the run with a non-finite loss, from 1; 0 for none


Donated = Annotated[LoopState, "donated: must not be used after the call"]
LoopStep = Callable[[Donated, StepInput], tuple[LoopState, tuple[()]]]


def init_loop_state(state: TrainState) -> LoopState:
    """The loop state before the first step, on the device of the state's key."""
    zero = torch.zeros((), dtype=torch.int64, device=state.key.device)
    return LoopState(state, metrics.zeros(device=zero.device), zero)


def add_metrics(loop: LoopState, state: TrainState, latest: Metrics) -> LoopState:
    """Return the loop state after a step that returned ``state`` and the metrics ``latest``."""
    fine = torch.logical_or(loop.nonfinite > 0, latest.loss.isfinite())
    nonfinite = torch.where(fine, loop.nonfinite, state.step)
    return LoopState(state, tree.add(loop.totals, latest), nonfinite)


def accumulate(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
) -> Callable[[LoopState, Any], tuple[LoopState, tuple[()]]]:
    """Make a step that sums its metrics: ``(loop_state, batch) -> (loop_state, ())``.

    No result has to be read, hence waited for, until the totals are needed.
    """

    def accumulating(loop: LoopState, batch: Any) -> tuple[LoopState, tuple[()]]:
        return add_metrics(loop, *step(loop.state, batch)), ()

    return accumulating


def make_loop_step(step_with: Callable[[Mapping[str, Tensor]], TrainStep], data: Batch) -> LoopStep:
    """Make the step of the training loop: gather rows, mirror, step, sum metrics.

    Args:
        step_with: maps the traced hyperparameters of an input to a step.
        data: training images, on the device.
    """

    def loop_step(loop: LoopState, inputs: StepInput) -> tuple[LoopState, tuple[()]]:
        images = data.images[inputs.indices]
        if isinstance(inputs.flip, Tensor):
            images = functional.mirror(images, inputs.flip)
        labels = data.labels[inputs.indices]
        batch: Batch | Shard | Sampled = Batch(images, labels)
        if isinstance(inputs.first_row, Tensor):
            batch = Shard(images, labels, inputs.first_row)
        if isinstance(inputs.present, Tensor):
            batch = Sampled(images, labels, inputs.present)
        return add_metrics(loop, *step_with(inputs.hparams)(loop.state, batch)), ()

    return loop_step


# torch.compile -----------------------------------------------------------------------------------


def compile_step(
    step: Callable[[Any, Any], tuple[Any, Any]],
    *,
    donate: bool = True,
    note: Callable[[str], object] = warnings.warn,
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Compile a step with ``torch.compile``, as one graph per batch shape.

    On the CPU the graph uses the kernels of ``fcifar.kernels``. On CUDA, a step that donates is
    captured as one CUDA graph for each state and shape of batch, see ``replay``. As in ``jax.jit``,
    values that the step closes over are read once, at compile time. Its arguments and torch's
    global settings are checked before each call.

    Args:
        step: a pure ``(state, batch) -> (state, metrics)``.
        donate: write the new state into the memory of the old one and return that, as
            ``donate_argnums`` of JAX does. The argument must not be used afterwards; clone it first
            to keep it (``tree.map(torch.clone, state)``). With ``donate=False`` the compiled step
            is pure.
        note: called with one line when a step on CUDA cannot be captured.

    >>> step = fcifar.compile_step(lambda state, batch: (state + batch, batch), donate=False)
    >>> step(torch.tensor([1.0]), torch.tensor([2.0]))
    (tensor([3.]), tensor([2.]))
    """
    if not donate:
        return compile_pure(step)

    def in_place(state: Any, batch: Any) -> Any:
        new_state, metrics = step(state, batch)
        overwrite(state, new_state)
        return metrics

    run: Any = replay(_compile(in_place), note)

    def donating(state: Any, batch: Any) -> tuple[Any, Any]:
        metrics = run(state, batch)
        return state, metrics

    donating.prepare = run.prepare  # type: ignore[attr-defined]
    return donating


def compile_pure(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Compile a function of two trees of tensors, without donation."""

    def compiled(first: Any, second: Any) -> Any:
        return function(first, second)

    return _compile(compiled)


def replay(
    function: Callable[[Any, Any], Any], note: Callable[[str], object] = warnings.warn
) -> Callable[[Any, Any], Any]:
    """Replay a function of two trees of CUDA tensors as one CUDA graph for each shape.

    The graph reads the first argument, such as a network's variables, where it lies; the second is
    copied to it. The function is called a few times for a shape, and not again, so that it must be
    pure, or overwrite its first argument only. On other devices it is called as it is.

    Args:
        note: called with one line when CUDA tensors cannot be captured.
    """
    return _kernels().replayed(function, note)


def _kernels() -> Any:
    """Return the kernels, which pure code must not import at its start."""
    from fcifar import kernels

    return kernels


def overwrite(old: Tree, new: Tree) -> tuple[()]:
    """Write the leaves of ``new`` into the memory of ``old``."""
    tree.map(lambda old, new: old if new is old else old.copy_(new), old, new)
    return ()


def _compile(function: Any) -> Callable[[Any, Any], Any]:
    """Compile a function of two trees of tensors. It must be a new function object, which is
    changed.
    """
    # Torch caches by code object, and distinguishes closures of the same code by guards on closed
    # over values. These guards are dropped below, so each function gets its own code object.
    code = function.__code__
    function.__code__ = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
    # Guards on arguments are named ``state.key``, or in earlier versions ``L['state'].key``.
    argument = re.compile(rf"$|(L\[')?({'|'.join(code.co_varnames[:2])})\b")

    def keep_argument_guards(guards: Sequence[Any]) -> list[bool]:
        """Keep guards on arguments and on torch's global settings.

        The others, many hundreds, check whether code has changed, and take a fifth of the time of a
        small step.
        """
        return [argument.match(guard.name) is not None for guard in guards]

    return torch.compile(
        function,
        backend=_kernels().step_backend,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": keep_argument_guards},
    )


_NUMBERS = itertools.count()


# Replicas: one row of every leaf each ------------------------------------------------------------


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of the same structure: R leaves [...] become one leaf [R, ...].

    Raises:
        ValueError: ``trees`` is empty.

    >>> fcifar.step_transforms.stack([{"w": torch.tensor(1)}, {"w": torch.tensor(2)}])
    {'w': tensor([1, 2])}
    """
    if not trees:
        raise ValueError("stack needs at least one tree")
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def take(stacked: Tree, i: int) -> Tree:
    """Return replica ``i`` of a stack, as views."""
    return tree.map(lambda leaf: leaf[i], stacked)


def init_replicas(init: Callable[[random.Key], Tree], keys: Tensor) -> Tree:
    """Initialize one state per key, and stack them.

    Args:
        init: maps a key to a state.
        keys: [R, 2], as returned by ``random.split``.

    >>> keys = fcifar.random.split(fcifar.random.key(0), 3)
    >>> states = fcifar.step_transforms.init_replicas(fcifar.models.lenet().init, keys)
    >>> states.params["fc3.bias"].shape
    torch.Size([3, 10])
    """
    return stack([init(key) for key in keys])


def map_replicas(
    step: Callable[[Any, Any], tuple[Any, Any]],
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Map a step over the first axis of its arguments and results, with ``torch.func.vmap``.

    One kernel then serves all replicas, which pays off on a GPU for small kernels dominated by
    launch overhead. Convolutions with different weights become grouped convolutions, which are slow
    on the CPU: there, calling one compiled step per replica is faster (docs/many-at-once.md).

    The draws of a replica are bit-equal to those without ``vmap``; other values agree to rounding.

    >>> step = fcifar.step_transforms.map_replicas(lambda w, x: (w - x.mean(), x.sum()))
    >>> step(torch.tensor([1.0, 2.0]), torch.ones(2, 5))
    (tensor([0., 1.]), tensor([5., 5.]))
    """
    return vmap(step)
