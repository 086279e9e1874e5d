"""The step: ``(state, batch) -> (state, metrics)``, a pure function.

This is the centre of fcifar. Read it first.

    model = models.lenet()
    optimizer = optim.sgd(1e-3, momentum=0.9)
    state = init_train_state(model, optimizer, key=random.key(0))
    train_step = make_train_step(model, optimizer)
    state, metrics = train_step(state, Batch(images, labels))

Nothing is hidden: the state goes in and comes out, randomness is a key inside it, and calling the
step again with the same arguments gives the same bits. ``torch.func.grad``, ``vmap``, ``jvp`` and
``torch.compile`` go around it; ``compile_step`` does the last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import averaging, metrics, precision, random
from fcifar.augment import Augment, tta
from fcifar.augment.tta import Views
from fcifar.averaging import Average
from fcifar.grads import Gradient, of_batch
from fcifar.losses import Loss, cross_entropy
from fcifar.metrics import Metrics
from fcifar.models.base import Buffers, Model, Params, Variables
from fcifar.optim import Optimizer, apply_updates
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.random import Key


class Batch(NamedTuple):
    """Images and their labels."""

    images: Tensor  # uint8 [B, 3, 32, 32], or floating in [0, 1]
    labels: Tensor  # int64 [B]


class Shard(NamedTuple):
    """Some rows of a batch, in the hands of one of the processes that divide it."""

    images: Tensor  # [b, 3, 32, 32], as in Batch
    labels: Tensor  # int64 [b]
    first: Tensor  # int64 [], which row of the batch is the first of these


class TrainState(NamedTuple):
    """All that a step needs and all that it changes."""

    step: Tensor  # int64 [], how many steps have been made
    variables: Variables
    opt_state: Any
    key: Key  # never changes: step k draws from fold_in(key, k)
    average: Any = ()  # of the variables over training, where one is kept


class EvalOutput(NamedTuple):
    """Per-example loss, correctness and logits."""

    loss: Tensor  # [B]
    correct: Tensor  # bool [B]
    logits: Tensor  # [B, C]


TrainStep = Callable[[TrainState, Batch | Shard], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Batch], EvalOutput]
Preprocess = Callable[[Tensor], Tensor]
Reduction = Callable[[Tensor], Tensor]  # [B] -> []


def init_train_state(
    model: Model,
    optimizer: Optimizer,
    *,
    key: Key,
    policy: Policy = precision.FP32,
    average: Average = averaging.none(),  # noqa: B008
    sample: Tensor | None = None,
) -> TrainState:
    """The state before the first step, on the device of ``key``.

    Args:
        average: what ``make_train_step`` is given.
        sample: normalised training images [N, 3, H, W], for a model that adapts to them.

    >>> state = fcifar.init_train_state(
    ...     fcifar.models.lenet(), fcifar.optim.sgd(0.1), key=fcifar.random.key(0)
    ... )
    >>> state.step, state.variables.params["conv1.weight"].shape
    (tensor(0), torch.Size([6, 3, 5, 5]))
    """
    init_key, step_key = random.split(key)
    variables = model.init(init_key)
    if sample is not None:
        variables = model.adapt(variables, sample)
    variables = precision.cast(variables, policy.param)
    return TrainState(
        step=torch.zeros((), dtype=torch.int64, device=key.device),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        key=step_key,
        average=average.init(variables),
    )


def normalize(
    mean: tuple[float, ...] = (0.5, 0.5, 0.5), std: tuple[float, ...] = (0.5, 0.5, 0.5)
) -> Preprocess:
    """``(images - mean) / std`` for each channel, of images in [0, 1].

    The result takes uint8 [..., 3, H, W], which it first divides by 255, or a floating tensor that
    is in [0, 1] already, and gives a floating one.

    >>> fcifar.normalize()(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2))[0]
    tensor([[-1.,  1.]])
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
    reduction: Reduction = torch.mean,
    gradient: Gradient = of_batch,
    average: Average = averaging.none(),  # noqa: B008
    axis: Axis = ALONE,
) -> TrainStep:
    """The pure training step of a model under an optimizer.

    Args:
        loss: per-example losses.
        augment: ``(key, images) -> images`` on the batch as it comes, before ``preprocess``.
        preprocess: images as the data set holds them to images as the model wants them.
        policy: dtypes; parameters, gradients, buffers and optimizer state stay in
            ``policy.param``.
        reduction: of the losses, ``torch.mean`` or ``torch.sum``: what the step descends.
        gradient: of the reduced losses; or, for private training, ``privacy.dp_gradient``.
        average: of the variables over training, kept beside them.
        axis: the ranks that divide a batch, see ``fcifar.parallel``.

    Returns:
        ``train_step(state, batch) -> (state, metrics)``, with the metrics of the batch under the
        parameters before the update. The ranks of an ``axis`` call it with a ``Shard`` each.

    >>> model, optimizer = fcifar.models.lenet(), fcifar.optim.sgd(1e-3, momentum=0.9)
    >>> state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    >>> train_step = fcifar.make_train_step(model, optimizer)
    >>> batch = fcifar.Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    >>> state, metrics = train_step(state, batch)
    >>> state.step, metrics.count
    (tensor(1), tensor(4))
    """

    def train_step(state: TrainState, batch: Batch | Shard) -> tuple[TrainState, Metrics]:
        augment_key, model_key = random.split(_key_of(state, batch))
        images = preprocess(augment(augment_key, batch.images)).to(policy.compute)

        def objective(params: Params, batch: Batch, key: Key) -> tuple[Tensor, Any]:
            cast = precision.cast(params, policy.compute)
            variables = Variables(cast, state.variables.buffers)
            logits, buffers = model.apply(variables, batch.images, key=key, train=True)
            logits = logits.to(policy.output)
            losses = loss(logits, batch.labels)
            return reduction(losses), (losses, logits, buffers)

        grads, (_, (losses, logits, buffers)) = gradient(objective)(
            state.variables.params, Batch(images, batch.labels), model_key
        )
        seen = metrics.measure(losses, logits.argmax(-1) == batch.labels)
        if axis.size > 1:
            grads, buffers, seen = _over_ranks(axis, reduction, state, grads, buffers, losses, seen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.variables.params)
        variables, averaged = average.update(
            Variables(
                params=apply_updates(state.variables.params, updates),
                buffers=precision.cast(buffers, policy.param),
            ),
            state.average,
        )
        new_state = TrainState(state.step + 1, variables, opt_state, state.key, averaged)
        return new_state, seen

    return train_step


def _key_of(state: TrainState, batch: Batch | Shard) -> Key:
    key = random.fold_in(state.key, state.step)
    return random.from_row(key, batch.first) if isinstance(batch, Shard) else key


def _over_ranks(
    axis: Axis,
    reduction: Reduction,
    state: TrainState,
    grads: Params,
    buffers: Buffers,
    losses: Tensor,
    seen: Metrics,
) -> tuple[Params, Buffers, Metrics]:
    """Gradients, buffers and metrics of the whole batch, from those of each rank's rows.

    Buffers are the mean of the ranks' ones, which are the same where batch norm sees all rows.
    """
    # Of their change: the mean of what is constant would round, that of 0 does not.
    old = state.variables.buffers
    change = [buffers[name] - old[name] for name in old]
    sums = iter(axis.psum([*grads.values(), *change, *seen]))
    # The whole batch's reduction, in parts of the sum of the ranks' ones: 1 / size for the mean.
    all_rows = torch.ones_like(losses).repeat(axis.size)
    weight = reduction(all_rows) / (axis.size * reduction(torch.ones_like(losses)))
    grads = {name: next(sums) * weight.to(leaf.dtype) for name, leaf in grads.items()}
    buffers = {
        name: value + (next(sums) / axis.size).to(value.dtype) for name, value in old.items()
    }
    return grads, buffers, Metrics(*sums)


def make_eval_step(
    model: Model,
    *,
    loss: Loss = cross_entropy,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
    views: Views = tta.NONE,
) -> EvalStep:
    """``eval_step(variables, batch) -> EvalOutput``: loss, correctness and logits of each example.

    Written for one example and mapped over the batch with ``torch.func.vmap``. The logits are the
    mean over the ``views`` of an image, see ``fcifar.augment.tta``.

    >>> model = fcifar.models.lenet()
    >>> eval_step = fcifar.make_eval_step(model)
    >>> batch = fcifar.Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    >>> examples = eval_step(model.init(fcifar.random.key(0)), batch)
    >>> examples.loss.shape, examples.correct.dtype, examples.logits.shape
    (torch.Size([4]), torch.bool, torch.Size([4, 10]))
    """

    def eval_example(variables: Variables, image: Tensor, label: Tensor) -> EvalOutput:
        x = views.of(preprocess(image).to(policy.compute))
        cast = variables._replace(params=precision.cast(variables.params, policy.compute))
        each, _ = model.apply(cast, x, train=False)
        logits = tta.combine(views, each.to(policy.output))
        return EvalOutput(loss(logits, label), logits.argmax(-1) == label, logits)

    def eval_step(variables: Variables, batch: Batch) -> EvalOutput:
        return vmap(eval_example, in_dims=(None, 0, 0))(variables, batch.images, batch.labels)

    return eval_step
