"""Transformations of a step: step -> step.

    step = on_indices(make_train_step(model, optimizer), data)    # fed with row numbers
    step = accumulate(step)                                       # adding up its metrics
    step = map_replicas(step)                                     # over a stack of states
    step = compile_step(step)                                     # by torch.compile

``make_loop_step`` does the first two at once, for the training loop.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import metrics, parallel, random, tree
from fcifar.augment import functional
from fcifar.metrics import Metrics
from fcifar.step import Batch, Shard, TrainState, TrainStep
from fcifar.tree import Tree

# What goes in ------------------------------------------------------------------------------------


def on_indices(step: Callable[[Any, Batch], Any], data: Batch) -> Callable[[Any, Tensor], Any]:
    """The same step, fed with row numbers (int64 [B]) of a data set that lies on the device.

    Compiled, the gather is part of the step: no image is touched outside it.

    >>> data = fcifar.Batch(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9))
    >>> step = fcifar.on_indices(lambda state, batch: (state + 1, batch.labels), data)
    >>> step(torch.tensor(0), torch.tensor([7, 2]))
    (tensor(1), tensor([7, 2]))
    """

    def step_on_indices(state: Any, rows: Tensor) -> Any:
        return step(state, Batch(data.images[rows], data.labels[rows]))

    return step_on_indices


class StepInput(NamedTuple):
    """The input of one step of the training loop. What a run does without is empty, and free."""

    indices: Tensor  # int64 [B], rows of the training images
    flip: Any = ()  # bool [B], the images to mirror before anything else
    hparams: Mapping[str, Tensor] = {}
    first_row: Any = ()  # of a shard: which row of the batch its first one is, int64 []


def shard(inputs: StepInput, rank: int, size: int) -> StepInput:
    """The part of one of ``size`` ranks; all of it where there is one.

    Raises:
        ValueError: the rows cannot be divided into ``size`` equal parts.
    """
    if size == 1:
        return inputs
    indices, flip = parallel.shard((inputs.indices, inputs.flip), rank, size)
    first = torch.tensor(rank * len(indices), device=indices.device)
    return inputs._replace(indices=indices, flip=flip, first_row=first)


def alternate(mirrored: Tensor, rows: Tensor, epoch: int) -> Tensor:
    """Which images of a batch to mirror, so that every image is mirrored in every other epoch.

    Images whose ``mirrored`` (bool, one for each row of the data) is true are mirrored in the
    epochs 0, 2, 4, ..., the others in 1, 3, 5, .... So any two epochs in succession show all images
    both ways, which flips at random do for half of them.

    Jordan, https://arxiv.org/abs/2404.00498, "alternating flip".

    Args:
        rows: int64 [B], those of the batch.

    Returns:
        bool [B].

    >>> mirrored, rows = torch.tensor([True, False, True]), torch.tensor([2, 1])
    >>> [fcifar.step_transforms.alternate(mirrored, rows, epoch).tolist() for epoch in (0, 1)]
    [[True, False], [False, True]]
    """
    return mirrored[rows] ^ (epoch % 2 == 1)


# What is kept ------------------------------------------------------------------------------------


class LoopState(NamedTuple):
    """A state, and the metrics of the steps since they were last read."""

    state: TrainState
    totals: Metrics  # of those steps
    nonfinite: Tensor  # int64 [], the first step of all whose loss was not finite; 0 for none


Donated = Annotated[LoopState, "its memory may hold the result: not to be used after the call"]
LoopStep = Callable[[Donated, StepInput], tuple[LoopState, tuple[()]]]


def init_loop_state(state: TrainState) -> LoopState:
    """The state with metrics of no steps, on the device of its key."""
    device = state.key.device
    return LoopState(
        state, metrics.zeros(device=device), torch.zeros((), dtype=torch.int64, device=device)
    )


def add_metrics(loop: LoopState, state: TrainState, latest: Metrics) -> LoopState:
    """The loop's state after a step that gave ``state`` and the metrics ``latest``."""
    fine = torch.logical_or(loop.nonfinite > 0, latest.loss.isfinite())
    nonfinite = torch.where(fine, loop.nonfinite, state.step)
    return LoopState(state, tree.add(loop.totals, latest), nonfinite)


def accumulate(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
) -> Callable[[LoopState, Any], tuple[LoopState, tuple[()]]]:
    """The same step, adding up its metrics: ``(loop_state, batch) -> (loop_state, ())``.

    There is nothing to look at after a step, hence nothing to wait for, until the totals are read,
    or whether a loss was ever not finite. Steps are counted from 1.
    """

    def accumulating(loop: LoopState, batch: Any) -> tuple[LoopState, tuple[()]]:
        return add_metrics(loop, *step(loop.state, batch)), ()

    return accumulating


def make_loop_step(
    step_with: Callable[[Mapping[str, Tensor]], TrainStep], data: Batch, *, compile: bool = False
) -> LoopStep:
    """The step of the training loop: gather the rows, mirror them, step, add up the metrics.

    Args:
        step_with: the step with the traced hyperparameters that come with each input.
        data: the training images, on the device.
        compile: through ``torch.compile``, with the old state's memory donated to the new one.
    """

    def loop_step(loop: LoopState, inputs: StepInput) -> Any:
        images = data.images[inputs.indices]
        if isinstance(inputs.flip, Tensor):
            images = functional.mirror(images, inputs.flip)
        labels = data.labels[inputs.indices]
        is_shard = isinstance(inputs.first_row, Tensor)
        batch = Shard(images, labels, inputs.first_row) if is_shard else Batch(images, labels)
        new = add_metrics(loop, *step_with(inputs.hparams)(loop.state, batch))
        return _overwrite(loop, new) if compile else (new, ())

    return _donating(_compile(loop_step)) if compile else loop_step


# torch.compile -----------------------------------------------------------------------------------


def compile_step(
    step: Callable[[Any, Any], tuple[Any, Any]], *, donate: bool = True
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The same step through ``torch.compile``, as one graph for each shape of batch.

    On the CPU the graph has kernels of our own in it, see ``fcifar.kernels``. What the step closes
    over is read once, while it is compiled, as ``jax.jit`` has it; its arguments, and torch's
    switches, are looked at before each call.

    Args:
        step: a pure ``(state, batch) -> (state, metrics)``.
        donate: write the new state into the old state's memory and return that, as JAX's
            ``donate_argnums`` allows. The state that was passed in is then gone; clone it first
            (``tree.map(torch.clone, state)``) to keep it. With ``donate=False`` the compiled step
            is as pure as the original.

    >>> step = fcifar.compile_step(lambda state, batch: (state + batch, batch), donate=False)
    >>> step(torch.tensor([1.0]), torch.tensor([2.0]))
    (tensor([3.]), tensor([2.]))
    """
    if not donate:
        return compile_pure(step)

    def in_place(state: Any, batch: Any) -> Any:
        new_state, metrics = step(state, batch)
        _overwrite(state, new_state)
        return metrics

    return _donating(_compile(in_place))


def compile_pure(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two trees of tensors through ``torch.compile``, as ``compile_step`` has it."""

    def compiled(first: Any, second: Any) -> Any:
        return function(first, second)

    return _compile(compiled)


def _overwrite(old: Tree, new: Tree) -> tuple[()]:
    """Write the leaves of ``new`` into the memory of ``old``."""
    tree.map(lambda old, new: old if new is old else old.copy_(new), old, new)
    return ()


def _donating(in_place: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step of which ``in_place`` writes the new state into the old one."""

    def donating(state: Any, batch: Any) -> tuple[Any, Any]:
        metrics = in_place(state, batch)
        return state, metrics

    return donating


def _compile(function: Any) -> Callable[[Any, Any], Any]:
    """A function that was defined for this, of two trees of tensors, through ``torch.compile``."""
    from fcifar import kernels

    # Torch keeps what it compiled by code, and tells functions of one code apart by guards on what
    # they close over, which are left out here: so each gets a code of its own.
    code = function.__code__
    function.__code__ = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
    # As torch names the arguments: ``state.key``, or in earlier versions ``L['state'].key``.
    argument = re.compile(rf"$|(L\[')?({'|'.join(code.co_varnames[:2])})\b")

    def keep_those_on_arguments(guards: Sequence[Any]) -> list[bool]:
        """Keep the guards of arguments and of torch's switches.

        The others, many hundreds, ask whether the code has been changed since, and take a fifth of
        a small step's time.
        """
        return [argument.match(guard.name) is not None for guard in guards]

    return torch.compile(
        function,
        backend=kernels.step_backend,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": keep_those_on_arguments},
    )


_NUMBERS = itertools.count()


# Many at once: a replica is a row of every leaf --------------------------------------------------


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one structure as one, with an axis in front: R leaves [...] become one [R, ...].

    Raises:
        ValueError: there are none.

    >>> fcifar.step_transforms.stack([{"w": torch.tensor(1)}, {"w": torch.tensor(2)}])
    {'w': tensor([1, 2])}
    """
    if not trees:
        raise ValueError("stack needs at least one tree")
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def take(stacked: Tree, i: int) -> Tree:
    """Replica ``i`` of a stack, as views."""
    return tree.map(lambda leaf: leaf[i], stacked)


def init_replicas(init: Callable[[random.Key], Tree], keys: Tensor) -> Tree:
    """The states of several replicas in one.

    Args:
        init: the state of one, from its key.
        keys: [R, 2], as ``random.split`` gives them.

    >>> keys = fcifar.random.split(fcifar.random.key(0), 3)
    >>> states = fcifar.step_transforms.init_replicas(fcifar.models.lenet().init, keys)
    >>> states.params["fc3.bias"].shape
    torch.Size([3, 10])
    """
    return stack([init(key) for key in keys])


def map_replicas(
    step: Callable[[Any, Any], tuple[Any, Any]],
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """A step over the first axis of all that goes in and comes out, through ``torch.func.vmap``.

    One kernel then serves all replicas: that pays where kernels are small and cost a launch each,
    on a GPU. Convolutions whose weights differ become grouped ones, which the CPU is slow at: one
    compiled step, called for one replica after another, is faster there (docs/many-at-once.md).

    A replica's draws are those it has alone, to the bit; the rest agrees to rounding.

    >>> step = fcifar.step_transforms.map_replicas(lambda w, x: (w - x.mean(), x.sum()))
    >>> step(torch.tensor([1.0, 2.0]), torch.ones(2, 5))
    (tensor([0., 1.]), tensor([5., 5.]))
    """
    return vmap(step)
