"""Make the parts of a step from a recipe."""

import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import augment, averaging, grads, losses, optim, precision, privacy, random, schedules
from fcifar.augment import functional, tta
from fcifar.augment.tta import Views
from fcifar.averaging import Average
from fcifar.errors import UsageError, located
from fcifar.grads import Gradient
from fcifar.losses import Loss
from fcifar.models import Model
from fcifar.optim import Optimizer
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.random import threefry as cipher
from fcifar.recipes.named import (
    Stage,
    is_own,
    named_augment,
    named_mix,
    named_model,
    named_stages,
    split_augments,
)
from fcifar.recipes.recipe import GROUPS, Recipe
from fcifar.schedules import Schedule
from fcifar.step import Augment, Mix, Preprocess, Reduction, normalize


def _multistep(recipe: Recipe, peak: float | Tensor, warmup: int, rest: int) -> Schedule:
    """Return the steps after the warm-up; milestones are fractions of the run with it."""
    factors: dict[int, float] = {}
    for part in recipe.milestones:
        step = round(part * (warmup + rest)) - warmup
        factors[step] = factors.get(step, 1.0) * recipe.milestone_factor
    return schedules.piecewise_constant_schedule(peak, factors)


# Functions of the recipe, the peak, and the steps of the warm-up and of the rest.
_SCHEDULES: dict[str, Callable[[Recipe, Any, int, int], Schedule]] = {
    "constant": lambda r, peak, warmup, rest: schedules.constant_schedule(peak),
    "linear": lambda r, peak, warmup, rest: schedules.linear_schedule(
        peak, r.final_rate * peak, rest
    ),
    "cosine": lambda r, peak, warmup, rest: schedules.cosine_decay_schedule(
        peak, rest, r.final_rate
    ),
    "multistep": _multistep,
}
aten = torch.ops.aten
_LONGEST = 2**53  # steps; float64 counts up to here exactly


class Hyperparams(NamedTuple):
    """The numbers of a recipe that may be traced, or mapped over, as tensors."""

    learning_rate: float | Tensor
    momentum: float | Tensor
    weight_decay: float | Tensor
    label_smoothing: float | Tensor


def make_hyperparams(recipe: Recipe, values: Mapping[str, Tensor] | None = None) -> Hyperparams:
    """Return the recipe's hyperparameters; ``values`` replaces some of them by 0-d tensors."""
    given = values or {}
    return Hyperparams(*(given.get(name, getattr(recipe, name)) for name in Hyperparams._fields))


def _no_cipher(k0: Tensor, k1: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """For draws whose values do not matter."""
    return x0, x1


def make_model(recipe: Recipe, num_classes: int, axis: Axis = ALONE) -> Model:
    """Return the recipe's model. ``axis`` has the ranks that share a batch."""
    over = axis if recipe.sync_batch_norm else ALONE
    return named_model(recipe.model, recipe.model_options, num_classes, over, recipe.freeze)


def count_flops(recipe: Recipe, num_classes: int = 10) -> float:
    """Return the floating-point operations of one training step over the whole batch.

    Counts convolutions and matrix products: the forward pass, and twice that for the backward pass;
    both twice with SAM.

    >>> recipe = fcifar.recipes.get("blitz")  # 4 images of 1.3 MFLOP
    >>> f"{fcifar.recipes.count_flops(recipe) / 1e6:.1f} MFLOP"
    '15.6 MFLOP'
    """
    model, count = make_model(recipe, num_classes), 2  # batch norm needs more than one image
    key = random.key(0)
    # Not on the meta device, many of whose operations import the compiler.
    with cipher.using(_no_cipher):
        variables = model.init(key)
        with torch.no_grad(), _FlopCounter() as counter:
            model.apply(variables, torch.zeros(count, 3, 32, 32), key=key, train=True)
    passes = 2 if recipe.sam_rho else 1
    return 3 * passes * counter.flops * recipe.batch_size / count


class _FlopCounter(TorchDispatchMode):
    """Counts like ``torch.utils.flop_counter``, which takes a second to import the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import the compiler to keep it from tracing this class

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if func.overloadpacket in _PRODUCTS:
            self.flops += 2 * _PRODUCTS[func.overloadpacket](result, *args)
        return result


# The multiplications of an operation, given its result and its arguments.
_PRODUCTS: dict[Any, Callable[..., int]] = {
    aten.convolution: lambda y, x, weight, *rest: (
        (x if rest[4] else y).numel() * math.prod(weight.shape[1:])  # transposed or not
    ),
    aten.mm: lambda y, a, *_: y.numel() * a.shape[-1],
    aten.bmm: lambda y, a, *_: y.numel() * a.shape[-1],
    aten.addmm: lambda y, c, a, *_: y.numel() * a.shape[-1],
    aten.baddbmm: lambda y, c, a, *_: y.numel() * a.shape[-1],
}


def make_optimizer(
    recipe: Recipe, total_steps: int, numbers: Hyperparams | None = None
) -> Optimizer:
    """Return the recipe's optimizer, with a schedule of ``total_steps``."""
    numbers = numbers or make_hyperparams(recipe)
    parts = [optim.clip_by_global_norm(recipe.clip_norm)] if recipe.clip_norm else []
    if recipe.group_learning_rates or recipe.whiten_epochs or recipe.optimizer == "muon":
        groups = {g: _group_optimizer(recipe, g, total_steps, numbers) for g in GROUPS}
        parts.append(optim.multi_transform(groups, group_of))
    else:
        parts += _common_optimizer(recipe, total_steps, numbers)
    if factors := recipe.learning_rate_factors:
        scales = {pattern: optim.scale(factor) for pattern, factor in factors.items()}
        label = functools.partial(_first_match, list(factors))
        parts.append(optim.multi_transform({**scales, "": optim.scale(1.0)}, label))
    return optim.chain(*parts)


def _first_match(patterns: Sequence[str], name: str, value: Tensor) -> str:
    """Return the first pattern that matches the name of a parameter; empty if none does."""
    return next((p for p in patterns if fnmatch.fnmatchcase(name, p)), "")


def group_of(name: str, value: Tensor) -> str:
    """Return the group of a parameter.

    ``whiten`` is the whitening layer; the others are ``kernel`` (4-d), ``linear`` (2-d) and
    ``vector``.
    """
    if name.startswith("whiten."):
        return "whiten"
    return {4: "kernel", 2: "linear"}.get(value.ndim, "vector")


def _common_optimizer(recipe: Recipe, total_steps: int, numbers: Hyperparams) -> list[Optimizer]:
    """Return the parts of an optimizer that treats all parameters alike."""
    learning_rate = make_schedule(recipe, total_steps, numbers.learning_rate)
    decay = numbers.weight_decay
    if recipe.optimizer == "adamw":
        return [optim.adamw(learning_rate, weight_decay=decay)]
    b1 = recipe.schedule_free_b1
    if recipe.optimizer == "schedule_free":
        return [optim.schedule_free_sgd(learning_rate, b1, weight_decay=decay)]
    if recipe.optimizer == "schedule_free_adamw":
        return [optim.schedule_free_adamw(learning_rate, b1, weight_decay=decay)]
    parts = [optim.add_decayed_weights(decay)] if _is_used(decay) else []
    if recipe.optimizer == "adam":
        return [*parts, optim.adam(learning_rate)]
    if recipe.optimizer in optim.REGISTERED:
        return [*parts, optim.REGISTERED[recipe.optimizer](learning_rate)]
    return [*parts, optim.sgd(learning_rate, _momentum(numbers), nesterov=recipe.nesterov)]


def _group_optimizer(
    recipe: Recipe, group: str, total_steps: int, numbers: Hyperparams
) -> Optimizer:
    peak = recipe.group_learning_rates.get(group, numbers.learning_rate)
    if group == "whiten" and recipe.whiten_epochs:
        steps = math.ceil(total_steps * recipe.whiten_epochs / recipe.epochs)
        steps = min(max(1, steps), _LONGEST)
        learning_rate: float | Tensor | Schedule = schedules.linear_schedule(peak, 0.0, steps)
        ending = [optim.freeze_after(steps)]
    else:
        learning_rate = make_schedule(recipe, total_steps, peak)
        ending = []
    muon = recipe.optimizer == "muon"
    if muon and group == "kernel":
        return optim.muon(learning_rate, numbers.momentum, renormalize=True)
    decay = numbers.weight_decay * numbers.learning_rate / peak if _is_used(peak) else 0.0
    parts = [optim.add_decayed_weights(decay)] if _is_used(decay) else []
    momentum = recipe.group_momentum if muon else _momentum(numbers)
    sgd = optim.sgd(learning_rate, momentum, nesterov=muon or recipe.nesterov)
    return optim.chain(*parts, sgd, *ending)


def _momentum(numbers: Hyperparams) -> float | Tensor | None:
    return numbers.momentum if _is_used(numbers.momentum) else None


def _is_used(number: float | Tensor) -> bool:
    """Whether a number has an effect; a tensor may have one."""
    return isinstance(number, Tensor) or number != 0


def make_schedule(
    recipe: Recipe, total_steps: int, peak: float | Tensor | None = None
) -> float | Tensor | Schedule:
    """Return the learning rate: a number if it is constant, else a function of the step.

    ``peak`` replaces the recipe's learning rate.

    Raises:
        UsageError: the warm-up is as long as the run.

    >>> recipe = fcifar.recipes.get("blitz").replace(schedule="linear", learning_rate=1.0)
    >>> fcifar.recipes.make_schedule(recipe, total_steps=10)(torch.tensor(5))
    tensor(0.5000)
    """
    peak = recipe.learning_rate if peak is None else peak
    warmup = recipe.warmup_steps or round(recipe.warmup_fraction * total_steps)
    if recipe.schedule == "constant" and not warmup:
        return peak
    if warmup >= total_steps:
        raise UsageError(
            f"warmup_steps is {warmup}, but the run has only {total_steps} steps; "
            "warm up for fewer, or train for longer"
        )
    main = _SCHEDULES[recipe.schedule](recipe, peak, warmup, total_steps - warmup)
    if not warmup:
        return main
    return schedules.warmup(main, recipe.initial_rate * peak, peak, warmup)


def tied_to_end(recipe: Recipe) -> list[str]:
    """Return the fields of a recipe whose effect depends on the length of the run.

    Without any, a longer run begins with the steps of the shorter one.

    >>> fcifar.recipes.tied_to_end(fcifar.recipes.get("blitz"))
    []
    >>> fcifar.recipes.tied_to_end(fcifar.recipes.get("speed93"))
    ['schedule', 'whiten_epochs']
    """
    tied = {
        "schedule": recipe.schedule != "constant",
        "warmup_fraction": recipe.warmup_fraction > 0,
        "lookahead_every": recipe.lookahead_every > 0,
        "swa_start": recipe.swa_start > 0,
        "whiten_epochs": recipe.whiten_epochs % 1 > 0,  # rounded to steps of the whole run
        "resolutions": bool(recipe.resolutions),
    }
    return [name for name, is_tied in tied.items() if is_tied]


def make_average(recipe: Recipe, total_steps: int) -> Average:
    """Return the recipe's average of the variables over training.

    SWA has the variables after each epoch, from the first that ends at ``swa_start`` or later on.
    """
    if recipe.ema_decay:
        return averaging.ema(recipe.ema_decay)
    if recipe.swa_start:
        epoch = total_steps // recipe.epochs
        first = math.ceil(round(recipe.swa_start * recipe.epochs, 9))
        return averaging.swa(max(1, first) * epoch, every=epoch)
    if not recipe.lookahead_every:
        return averaging.none()
    final = recipe.lookahead_decay**recipe.lookahead_every
    return averaging.lookahead(
        lambda count: final * (count / total_steps) ** 3, recipe.lookahead_every
    )


def make_class_weights(recipe: Recipe, labels: Tensor, num_classes: int) -> Tensor | None:
    """Return the weight of each class in the loss, float32 [C]; None if all are 1.

    Args:
        labels: int64 [N], of all training images, those held out included.
    """
    balanced = recipe.class_weights == "balanced"
    return losses.balanced_class_weights(labels, num_classes) if balanced else None


def make_loss(
    recipe: Recipe, numbers: Hyperparams | None = None, class_weights: Tensor | None = None
) -> Loss:
    """Return the training loss, with weights from ``make_class_weights``.

    Evaluation always uses cross-entropy.
    """
    return losses.smoothed_cross_entropy((numbers or recipe).label_smoothing, class_weights)


def make_reduction(recipe: Recipe) -> Reduction:
    """Return the reduction of a batch's losses to the objective."""
    return {"mean": torch.mean, "sum": torch.sum}[recipe.loss_reduction]


def make_gradient(recipe: Recipe, axis: Axis = ALONE) -> Gradient:
    """Return the gradient of the objective: of the whole batch or in micro-batches, at perturbed
    parameters (SAM), or clipped per image and noised.

    Args:
        axis: the ranks that share a batch.
    """
    reduction, size = make_reduction(recipe), recipe.micro_batch
    if recipe.dp_clip:
        return privacy.dp_gradient(
            *(recipe.dp_clip, recipe.dp_noise),
            reduction=reduction,
            batch_size=recipe.batch_size if recipe.dp_sampling == "poisson" else None,
            chunk_size=size or None,
            axis=axis,
        )
    gradient = grads.accumulated(size, reduction=reduction) if size else grads.of_batch
    return grads.sam(recipe.sam_rho, gradient=gradient, axis=axis) if recipe.sam_rho else gradient


def make_augment(recipe: Recipe) -> Augment:
    """Return the recipe's augmentations as one, without a mix of images."""
    return augment.chain(*map(named_augment, split_augments(recipe.augment)[0]))


def make_mix(recipe: Recipe, num_classes: int) -> Mix | None:
    """Return the recipe's mix of images and labels, such as mixup; None if it has none."""
    mixes = split_augments(recipe.augment)[1]
    return named_mix(mixes[0], num_classes) if mixes else None


def make_preprocess(recipe: Recipe, size: int = 0) -> Preprocess:
    """Return the recipe's normalisation, then a resize to ``size`` pixels a side unless it is 0."""
    normalized = normalize(tuple(recipe.mean), tuple(recipe.std))
    if not size:
        return normalized
    return lambda images: functional.resize(normalized(images), size)


def make_stages(recipe: Recipe, total_steps: int) -> list[tuple[int, Stage]]:
    """Return the stages of a run, each with the number of steps before it."""
    stages = named_stages(recipe.resolutions)
    ends = [0, *(round(stage.until * total_steps) for stage in stages)]
    return [
        (start, stage)
        for (start, end), stage in zip(itertools.pairwise(ends), stages, strict=True)
        if end > start
    ]


def make_views(recipe: Recipe) -> Views:
    """Return the views of the recipe's test-time augmentation."""
    return tta.VIEWS[recipe.tta]


def steps_per_epoch(recipe: Recipe, size: int) -> int:
    """Return the number of steps in an epoch over ``size`` training images."""
    steps, last = divmod(size, recipe.batch_size)
    return steps if recipe.drop_last or not last else steps + 1


def check_sizes(
    recipe: Recipe, dataset: str, size: int, held_out: int, given: int, processes: int
) -> None:
    """Raise a UsageError unless the recipe fits a data set and a number of processes.

    Args:
        dataset: its name.
        size: number of images to train on.
        held_out: number of training images held out.
        given: number of the data set's own validation images.
        processes: number of processes that share a batch.
    """
    batch_size = recipe.batch_size
    if not size + held_out:
        raise UsageError(
            f"{dataset} is a test set without training images; train on another data set with "
            f"the same classes, then measure with fcifar eval RUN --dataset {dataset}"
        )
    if recipe.valid == "given" and not given:
        raise UsageError(
            f"valid is 'given', but {dataset} has no validation images; give --valid-fraction 0.1 "
            "instead, which holds out training images"
        )
    if batch_size > size:
        raise UsageError(
            f"batch_size is {batch_size:,}, but {dataset} has {size:,} training images; give at "
            "most that"
        )
    if not held_out and (recipe.valid_fraction or recipe.fold):
        name, less = ("fold", "fewer parts") if recipe.fold else ("valid_fraction", "a larger one")
        raise UsageError(
            f"{name} is {getattr(recipe, name)}, which holds out no images ({size} in {dataset}); "
            f"give {less}"
        )
    if batch_size % processes:
        raise UsageError(
            f"batch_size is {batch_size}, which {processes} processes cannot divide equally; give "
            f"a --batch-size that is a multiple of {processes}"
        )
    if recipe.micro_batch > batch_size // processes:
        raise UsageError(
            f"micro_batch is {recipe.micro_batch}, but each of {processes} processes has "
            f"{batch_size // processes} images of a batch; give at most that, or 0"
        )
    if size % batch_size % processes and not recipe.drop_last:
        raise UsageError(
            f"the last batch of an epoch has {size % batch_size} images, which {processes} "
            "processes cannot divide equally; give --drop-last, or another --batch-size"
        )
    if processes > 1 and recipe.dp_sampling == "poisson":
        raise UsageError(
            f"dp_sampling is poisson, which draws a batch in one process, and there are "
            f"{processes}; start one, or give --dp-sampling shuffle"
        )
    if processes > 1 and (mixes := split_augments(recipe.augment)[1]):
        sizes = {batch_size, *(() if recipe.drop_last else (size % batch_size,))}
        if odd := [count for count in sorted(sizes) if count // processes % 2]:
            raise UsageError(
                f"augment {mixes[0]} mixes pairs of images, and {processes} processes divide a "
                f"batch of {odd[0]} into odd parts; give a --batch-size that is a multiple of "
                f"{2 * processes}, and --drop-last"
            )


def check_model(
    recipe: Recipe, policy: Policy, count: int, num_classes: int, total_steps: int, axis: Axis
) -> None:
    """Check that augmentation and model take the batches of a run.

    Models of others are checked on the meta device, which takes no time for large ones, but many of
    whose operations import the compiler.

    Raises:
        UsageError: an augmentation does not take images of 32x32 pixels, or the model does not take
            their size or dtype, or a batch of one image (such as batch norm over features without
            width and height).
    """
    device = "cpu" if is_own(recipe) else "meta"
    model, key = make_model(recipe, num_classes), random.key(0, device=device)
    try:
        with cipher.using(_no_cipher):
            make_augment(recipe)(key, torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=device))
    except ValueError as error:
        raise UsageError(f"augment is {','.join(recipe.augment)}: {error}") from error
    with cipher.using(_no_cipher):
        variables = model.init(key)
    cast = variables._replace(params=precision.cast(variables.params, policy.compute))
    batches = {recipe.batch_size, *(() if recipe.drop_last else (count % recipe.batch_size,))}
    passes = {n for batch in batches for n in _pass_sizes(recipe, batch // axis.size)}
    single = 1 in passes and not (axis.size > 1 and recipe.sync_batch_norm)

    def forward(images: Tensor) -> None:  # the device is for modules that make tensors without one
        with cipher.using(_no_cipher), torch.no_grad(), torch.device(device):
            model.apply(cast, images, key=key, train=True)

    for _, stage in make_stages(recipe, total_steps):
        size = stage.size or 32
        images = torch.zeros(2, 3, size, size, dtype=policy.compute, device=device)
        try:
            forward(images)
        except Exception as error:
            raise UsageError(
                f"the model {recipe.model} does not take images of {size}x{size} pixels in "
                f"{str(policy.compute).removeprefix('torch.')} ({located(error)}); give "
                "--precision fp32, or create its tensors in the dtype of the images"
            ) from error
        try:
            if single:
                forward(images[:1])
        except ValueError as error:
            which, other = f"batches of {recipe.batch_size} of {count} images", "--batch-size"
            if recipe.micro_batch:
                which, other = f"micro-batches of {recipe.micro_batch} images", "--micro-batch"
            drop = "" if recipe.batch_size == axis.size else "--drop-last, or "
            raise UsageError(
                f"{which} leave one image alone, which the model does not train on "
                f"({located(error)}); give {drop}another {other}"
            ) from error


def _pass_sizes(recipe: Recipe, count: int) -> set[int]:
    """Return the numbers of images in the forward passes of a batch of ``count``."""
    size = min(recipe.micro_batch or count, count)
    return {size, count % size} if size else set()
