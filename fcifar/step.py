"""The training step: ``(state, batch) -> (state, metrics)``, a pure function.

This is the centre of fcifar. Read it first.

    model = models.lenet()
    optimizer = optim.sgd(1e-3, momentum=0.9)
    state = init_train_state(model, optimizer, key=random.key(0))
    train_step = make_train_step(model, optimizer)
    state, metrics = train_step(state, Batch(images, labels))

There is no hidden state. The state is an argument and a result, randomness is a key inside it, and
a step called again with the same arguments gives the same bits. ``torch.func.grad``, ``vmap``,
``jvp`` and ``torch.compile`` (see ``compile_step``) compose with it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import averaging, layers, metrics, precision, random, tree
from fcifar.augment import Augment, Mix, identity, tta
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
    """Some rows of a batch, held by one of the processes that share it."""

    images: Tensor  # [b, 3, 32, 32], as in Batch
    labels: Tensor  # int64 [b]
    first: Tensor  # int64 [], index in the batch of the first of these rows


class Sampled(NamedTuple):
    """A batch with a random number of images, in a fixed number of rows.

    Absent rows count nowhere, and their images are not read. For a gradient that does not divide by
    the number of rows, such as that of ``privacy.dp_gradient(..., batch_size=...)``.
    """

    images: Tensor  # [B, 3, 32, 32], as in Batch
    labels: Tensor  # int64 [B]
    present: Tensor  # bool [B]


class TrainState(NamedTuple):
    """Everything that a step reads and updates."""

    step: Tensor  # int64 [], number of steps so far
    variables: Variables
    opt_state: Any
    key: Key  # never changes: step k draws from fold_in(key, k)
    average: Any = ()  # state of the average of the variables, see averaging


class EvalOutput(NamedTuple):
    """Per-example loss, correctness and logits."""

    loss: Tensor  # [B]
    correct: Tensor  # bool [B]
    logits: Tensor  # [B, C]


TrainStep = Callable[[TrainState, Batch | Shard | Sampled], tuple[TrainState, Metrics]]
EvalStep = Callable[[Variables, Batch], EvalOutput]
Preprocess = Callable[[Tensor], Tensor]
Reduction = Callable[[Tensor], Tensor]  # [B] -> []
_MIX = 2  # of a step's key: 0 and 1 are the augmentation and the model


def init_train_state(
    model: Model,
    optimizer: Optimizer,
    *,
    key: Key,
    policy: Policy = precision.FP32,
    average: Average = averaging.none(),  # noqa: B008
    sample: Tensor | None = None,
    pretrained: Mapping[str, Tensor] | None = None,
) -> TrainState:
    """The state before the first step, on the device of ``key``.

    Args:
        average: the same as for ``make_train_step``.
        sample: normalised training images [N, 3, H, W], for ``model.adapt``, which runs on their
            device.
        pretrained: values of parameters and buffers by name; the others are drawn. Names that the
            model does not have are ignored.

    Raises:
        ValueError: a pretrained value has another shape.

    >>> state = fcifar.init_train_state(
    ...     fcifar.models.lenet(), fcifar.optim.sgd(0.1), key=fcifar.random.key(0)
    ... )
    >>> state.step, state.variables.params["conv1.weight"].shape
    (tensor(0), torch.Size([6, 3, 5, 5]))
    """
    init_key, step_key = random.split(key)
    variables = model.init(init_key)
    if sample is not None:
        adapted = model.adapt(tree.on_device(variables, sample.device), sample)
        variables = tree.on_device(adapted, key.device)
    variables = precision.cast(variables, policy.param)
    if pretrained:
        variables = _with_values(variables, pretrained)
    return TrainState(
        step=torch.zeros((), dtype=torch.int64, device=key.device),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        key=step_key,
        average=average.init(variables),
    )


def _with_values(variables: Variables, values: Mapping[str, Tensor]) -> Variables:
    """Replace variables by copies of the values of the same names, in their dtypes and devices."""

    def replaced(name: str, old: Tensor) -> Tensor:
        if name not in values:
            return old
        if values[name].shape != old.shape:
            raise ValueError(
                f"the pretrained {name} is {list(values[name].shape)}, and the model's is "
                f"{list(old.shape)}"
            )
        return values[name].to(old, copy=True)

    params, buffers = ({n: replaced(n, old) for n, old in part.items()} for part in variables)
    return Variables(params, buffers)


def eval_variables(
    state: TrainState,
    optimizer: Optimizer,
    average: Average = averaging.none(),  # noqa: B008
) -> Variables:
    """Return the variables to evaluate and to save: ``optimizer.value``, then ``average.value``.

    Without an average and a schedule-free optimizer, they are ``state.variables``.

    Args:
        optimizer, average: the same as for ``make_train_step``.

    >>> model, optimizer = fcifar.models.lenet(), fcifar.optim.schedule_free_sgd(1.0)
    >>> state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    >>> variables = fcifar.step.eval_variables(state, optimizer)
    """
    params = optimizer.value(state.variables.params, state.opt_state)
    return average.value(state.variables._replace(params=params), state.average)


def normalize(
    mean: tuple[float, ...] = (0.5, 0.5, 0.5), std: tuple[float, ...] = (0.5, 0.5, 0.5)
) -> Preprocess:
    """Return ``images -> (images - mean) / std`` per channel.

    The function takes uint8 [..., 3, H, W], which it divides by 255, or floating images in [0, 1],
    and returns floating images.

    >>> fcifar.normalize()(torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2))[0]
    tensor([[-1.,  1.]])
    """

    def preprocess(images: Tensor) -> Tensor:
        is_new = not images.is_floating_point()  # then its memory is used again
        x = images.to(torch.float32).div_(255) if is_new else images
        shift = layers.constant(mean, x)[:, None, None]
        scale = layers.constant(std, x)[:, None, None]
        return x.sub_(shift).div_(scale) if is_new else (x - shift) / scale

    return preprocess


def make_train_step(
    model: Model,
    optimizer: Optimizer,
    *,
    loss: Loss = cross_entropy,
    augment: Augment = identity,
    mix: Mix | None = None,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
    reduction: Reduction = torch.mean,
    gradient: Gradient = of_batch,
    average: Average = averaging.none(),  # noqa: B008
    axis: Axis = ALONE,
) -> TrainStep:
    """Make the pure training step of a model and an optimizer.

    Args:
        loss: per-example losses.
        augment: ``(key, images) -> images``, applied before ``preprocess``.
        mix: ``(key, images, labels) -> (images, targets)``, such as ``augment.mixup(0.2)``, applied
            after ``augment``. The loss is of the targets [B, C], and a prediction is correct if it
            is the class with the largest target. With an ``axis``, each rank has an even number of
            rows.
        preprocess: maps images of the data set to images for the model.
        policy: dtypes. Parameters, gradients, buffers and optimizer state stay in ``policy.param``.
        reduction: ``torch.mean`` or ``torch.sum``, giving the objective from the losses.
        gradient: how the gradient of the objective is computed, such as ``privacy.dp_gradient``.
        average: average of the variables over training, kept in the state.
        axis: ranks that share a batch, see ``fcifar.parallel``.

    Returns:
        ``train_step(state, batch) -> (state, metrics)``, with the metrics of the batch under the
        parameters before the update. With an ``axis``, each rank passes a ``Shard``. The examples
        of ``gradient`` are a ``Batch``, or a ``Sampled`` if the batch is one.

    >>> model, optimizer = fcifar.models.lenet(), fcifar.optim.sgd(1e-3, momentum=0.9)
    >>> state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    >>> train_step = fcifar.make_train_step(model, optimizer)
    >>> batch = fcifar.Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
    >>> state, metrics = train_step(state, batch)
    >>> state.step, metrics.count
    (tensor(1), tensor(4))
    """

    def train_step(state: TrainState, batch: Batch | Shard | Sampled) -> tuple[TrainState, Metrics]:
        key = random.fold_in(state.key, state.step)
        if isinstance(batch, Shard):
            key = random.from_row(key, batch.first)
        augment_key, model_key = random.split(key)
        images, labels, present = batch.images, batch.labels, None
        if isinstance(batch, Sampled):
            present = batch.present
            images = torch.where(present[:, None, None, None], images, 0)
        images = augment(augment_key, images)
        if mix is not None:
            images, labels = mix(random.fold_in(key, _MIX), images, labels)
        images = preprocess(images).to(policy.compute)

        def objective(params: Params, batch: Batch | Sampled, key: Key) -> tuple[Tensor, Any]:
            cast = precision.cast(params, policy.compute)
            variables = Variables(cast, state.variables.buffers)
            logits, buffers = model.apply(variables, batch.images, key=key, train=True)
            logits = logits.to(policy.output)
            losses = loss(logits, batch.labels)
            if isinstance(batch, Sampled):  # the gradients of absent rows are then 0
                losses = torch.where(batch.present, losses, 0.0)
            return reduction(losses), (losses, logits, buffers)

        examples = Batch(images, labels)
        if present is not None:
            examples = Sampled(images, labels, present)
        grads, (_, (losses, logits, buffers)) = gradient(objective)(
            state.variables.params, examples, model_key
        )
        classes = labels if mix is None else labels.argmax(-1)
        sums = metrics.measure(losses, logits.argmax(-1) == classes, present)
        if axis.size > 1:
            grads, buffers, sums = _over_ranks(axis, reduction, state, grads, buffers, losses, sums)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.variables.params)
        params = apply_updates(state.variables.params, updates)
        variables, averaged = average.update(
            Variables(params, precision.cast(buffers, policy.param)), state.average
        )
        return TrainState(state.step + 1, variables, opt_state, state.key, averaged), sums

    return train_step


def _over_ranks(
    axis: Axis,
    reduction: Reduction,
    state: TrainState,
    grads: Params,
    buffers: Buffers,
    losses: Tensor,
    sums: Metrics,
) -> tuple[Params, Buffers, Metrics]:
    """Return gradients, buffers and metrics of the whole batch, given those of each rank.

    Buffers are averaged over the ranks; they are already equal if batch norm is synchronised.
    """
    # Average the changes: the mean of a constant buffer would round, the mean of zeros does not.
    old = state.variables.buffers
    changes = [buffers[name] - old[name] for name in old]
    totals = iter(axis.psum([*grads.values(), *changes, *sums]))
    # Ratio of the whole batch's reduction to the sum of the ranks' reductions: 1 / size for a mean.
    all_rows = torch.ones_like(losses).repeat(axis.size)
    weight = reduction(all_rows) / (axis.size * reduction(torch.ones_like(losses)))
    grads = {name: next(totals) * weight.to(leaf.dtype) for name, leaf in grads.items()}
    buffers = {
        name: value + (next(totals) / axis.size).to(value.dtype) for name, value in old.items()
    }
    return grads, buffers, Metrics(*totals)


def make_eval_step(
    model: Model,
    *,
    loss: Loss = cross_entropy,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
    views: Views = tta.NONE,
) -> EvalStep:
    """Make ``eval_step(variables, batch) -> EvalOutput`` with per-example loss, correctness and
    logits.

    It is written for one example and mapped over the batch with ``torch.func.vmap``. The logits are
    the mean over the ``views`` of an image, see ``fcifar.augment.tta``.

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
