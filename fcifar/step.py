"""The step: ``(state, batch) -> (state, metrics)``, a pure function.

This is the centre of fcifar. Read it first.

    model = models.lenet()
    optimizer = optim.sgd(1e-3, momentum=0.9)
    state = init_train_state(model, optimizer, key=random.key(0))
    train_step = make_train_step(model, optimizer)
    state, metrics = train_step(state, Batch(images, labels))

Nothing is hidden: the state goes in and comes out, randomness is a key inside it, and calling the
step again with the same arguments gives the same bits. ``torch.func.grad``, ``vmap``, ``jvp`` and
``torch.compile`` go around it. ``compile_step`` is the only impure doorway.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fcifar import kernels, metrics, precision, random, tree
from fcifar.augment import Augment
from fcifar.losses import Loss, cross_entropy
from fcifar.metrics import Metrics
from fcifar.models.base import Model, Params, Variables
from fcifar.optim import Optimizer, apply_updates
from fcifar.precision import Policy
from fcifar.random import Key


class Batch(NamedTuple):
    """Images and their labels."""

    images: Tensor  # uint8 [B, 3, 32, 32], or floating in [0, 1]
    labels: Tensor  # int64 [B]


class TrainState(NamedTuple):
    """All that a step needs and all that it changes."""

    step: Tensor  # int64 [], how many steps have been made
    variables: Variables
    opt_state: Any
    key: Key  # never changes: step k draws from fold_in(key, k)


class Examples(NamedTuple):
    """What a model makes of each example."""

    loss: Tensor  # [B]
    correct: Tensor  # bool [B]
    logits: Tensor  # [B, C]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Batch], Examples]
Preprocess = Callable[[Tensor], Tensor]


def init_train_state(
    model: Model, optimizer: Optimizer, *, key: Key, policy: Policy = precision.FP32
) -> TrainState:
    """The state before the first step, on the device of ``key``."""
    init_key, step_key = random.split(key)
    variables = precision.cast(model.init(init_key), policy.param)
    return TrainState(
        step=torch.zeros((), dtype=torch.int64, device=key.device),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        key=step_key,
    )


def normalize(
    mean: tuple[float, ...] = (0.5, 0.5, 0.5), std: tuple[float, ...] = (0.5, 0.5, 0.5)
) -> Preprocess:
    """``(images - mean) / std`` for each channel, of images in [0, 1].

    The result takes uint8 [..., 3, H, W], which it first divides by 255, or a floating tensor that
    is in [0, 1] already, and gives a floating one.
    """

    def preprocess(images: Tensor) -> Tensor:
        x = images if images.is_floating_point() else images.to(torch.float32) / 255
        shift = torch.tensor(mean, dtype=x.dtype, device=x.device)
        scale = torch.tensor(std, dtype=x.dtype, device=x.device)
        return (x - shift[:, None, None]) / scale[:, None, None]

    return preprocess


def no_augment(key: Key, images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def make_train_step(
    model: Model,
    optimizer: Optimizer,
    *,
    loss: Loss = cross_entropy,
    augment: Augment = no_augment,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> TrainStep:
    """The pure training step of a model under an optimizer.

    Args:
        loss: per-example losses; the step descends their mean.
        augment: ``(key, images) -> images`` on the batch as it comes, before ``preprocess``.
        preprocess: images as the data set holds them to images as the model wants them.
        policy: dtypes; parameters, gradients and optimizer state stay in ``policy.param``.

    Returns:
        ``train_step(state, batch) -> (state, metrics)``, with the metrics of the batch under the
        parameters before the update.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_key, model_key = random.split(random.fold_in(state.key, state.step))
        images = preprocess(augment(augment_key, batch.images)).to(policy.compute)

        def objective(params: Params) -> tuple[Tensor, Any]:
            variables = precision.cast(Variables(params, state.variables.buffers), policy.compute)
            logits, buffers = model.apply(variables, images, key=model_key, train=True)
            logits = logits.to(policy.output)
            losses = loss(logits, batch.labels)
            return losses.mean(), (losses, logits, buffers)

        grads, (_, (losses, logits, buffers)) = grad_and_value(objective, has_aux=True)(
            state.variables.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.variables.params)
        new_state = TrainState(
            step=state.step + 1,
            variables=Variables(
                params=apply_updates(state.variables.params, updates),
                buffers=precision.cast(buffers, policy.param),
            ),
            opt_state=opt_state,
            key=state.key,
        )
        return new_state, metrics.measure(losses, logits.argmax(-1) == batch.labels)

    return train_step


def make_eval_step(
    model: Model,
    *,
    loss: Loss = cross_entropy,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> EvalStep:
    """``eval_step(variables, batch) -> Examples``: loss, correctness and logits of each example.

    Written for one example and mapped over the batch with ``torch.func.vmap``.
    """

    def eval_example(variables: Variables, image: Tensor, label: Tensor) -> Examples:
        x = preprocess(image).to(policy.compute)
        logits, _ = model.apply(precision.cast(variables, policy.compute), x[None], train=False)
        logits = logits[0].to(policy.output)
        return Examples(loss(logits, label), logits.argmax(-1) == label, logits)

    def eval_step(variables: Variables, batch: Batch) -> Examples:
        return vmap(eval_example, in_dims=(None, 0, 0))(variables, batch.images, batch.labels)

    return eval_step


def on_indices(step: Callable[[Any, Batch], Any], data: Batch) -> Callable[[Any, Tensor], Any]:
    """The same step, fed with row numbers (int64 [B]) of a data set that lies on the device.

    Compiled, the gather is part of the step: no image is touched outside it.
    """

    def step_on_indices(state: Any, rows: Tensor) -> Any:
        return step(state, Batch(data.images[rows], data.labels[rows]))

    return step_on_indices


class Running(NamedTuple):
    """A state, and what is known of the steps since somebody last looked."""

    state: TrainState
    totals: Metrics  # of those steps
    nonfinite: Tensor  # int64 [], the first step of all whose loss was not finite; 0 for none


def start_running(state: TrainState) -> Running:
    """A state of which nobody knows anything yet, on the device of its key."""
    device = state.key.device
    return Running(
        state, metrics.zeros(device=device), torch.zeros((), dtype=torch.int64, device=device)
    )


def accumulate(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
) -> Callable[[Running, Any], tuple[Running, tuple[()]]]:
    """The same step, adding up its metrics: ``(running, batch) -> (running, ())``.

    There is nothing to look at after a step, hence nothing to wait for, until somebody reads the
    totals, or whether a loss was ever not finite. Steps are counted from 1.
    """

    def accumulating(running: Running, batch: Any) -> tuple[Running, tuple[()]]:
        state, latest = step(running.state, batch)
        fine = torch.logical_or(running.nonfinite > 0, latest.loss.isfinite())
        nonfinite = torch.where(fine, running.nonfinite, state.step)
        return Running(state, tree.add(running.totals, latest), nonfinite), ()

    return accumulating


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
    """
    if not donate:
        return compile_pure(step)

    def in_place(state: Any, batch: Any) -> Any:
        new_state, metrics = step(state, batch)
        tree.map(lambda old, new: old if new is old else old.copy_(new), state, new_state)
        return metrics

    compiled = compile_pure(in_place)

    def donating(state: Any, batch: Any) -> tuple[Any, Any]:
        metrics = compiled(state, batch)
        return state, metrics

    return donating


def compile_pure(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of two trees of tensors through ``torch.compile``, as ``compile_step`` has it."""

    def compiled(first: Any, second: Any) -> Any:
        return function(first, second)

    # Torch keeps what it compiled by code, and tells functions of one code apart by checks on what
    # they close over, which are left out here: so each gets a code of its own.
    code = compiled.__code__
    compiled.__code__ = code.replace(co_name=f"{code.co_name}_{next(_NUMBERS)}")
    return torch.compile(
        compiled,
        backend=kernels.backend,
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": _keep_those_on_arguments},
    )


_NUMBERS = itertools.count()


def _keep_those_on_arguments(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's checks before each call to keep: those of arguments and of switches.

    The others, many hundreds, ask whether the code has been changed since, and take a fifth of a
    small step's time.
    """
    return [_ARGUMENT.match(guard.name) is not None for guard in guards]


# As torch names them: ``first.state.key``, or in earlier versions ``L['first'].state.key``.
_ARGUMENT = re.compile(r"$|(L\[')?(first|second)\b")
