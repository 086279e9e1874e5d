"""From the values of a recipe to the parts of a step."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import augment, averaging, losses, optim, precision, privacy, random, schedules
from fcifar.augment import functional, tta
from fcifar.augment.tta import Views
from fcifar.averaging import Average
from fcifar.errors import UsageError, located
from fcifar.grads import Gradient, of_batch
from fcifar.losses import Loss
from fcifar.models import Model
from fcifar.optim import Optimizer
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.recipes.named import Stage, named_augment, named_model, named_stages
from fcifar.recipes.recipe import GROUPS, Recipe
from fcifar.schedules import Schedule
from fcifar.step import Augment, Preprocess, Reduction, normalize

# Of the peak, the part of it that is left at the end, and the steps until then.
_SCHEDULES: dict[str, Callable[[Any, float, int], Schedule]] = {
    "constant": lambda peak, final, steps: schedules.constant_schedule(peak),
    "linear": lambda peak, final, steps: schedules.linear_schedule(peak, final * peak, steps),
    "cosine": lambda peak, final, steps: schedules.cosine_decay_schedule(peak, steps, final),
}
LONGEST = 2**53  # steps, which any number of a schedule can count exactly


class Hyperparams(NamedTuple):
    """The numbers of a recipe that may be tensors: arguments of a compiled step, or mapped over."""

    learning_rate: float | Tensor
    momentum: float | Tensor
    weight_decay: float | Tensor
    label_smoothing: float | Tensor


def make_hyperparams(recipe: Recipe, values: Mapping[str, Tensor] | None = None) -> Hyperparams:
    """The recipe's, but for those that ``values`` gives by name as 0-d tensors."""
    given = values or {}
    return Hyperparams(*(given.get(name, getattr(recipe, name)) for name in Hyperparams._fields))


def make_model(recipe: Recipe, num_classes: int, axis: Axis = ALONE) -> Model:
    """The recipe's network for a data set of ``num_classes`` classes.

    Args:
        axis: the ranks that divide a batch.
    """
    over = axis if recipe.sync_batch_norm else ALONE
    return named_model(recipe.model, recipe.model_options, num_classes, over)


def count_flops(recipe: Recipe, num_classes: int = 10) -> float:
    """Floating-point operations of one training step: products and sums of its convolutions and
    matrix products, forward and twice that backward, over the whole batch.

    >>> recipe = fcifar.recipes.get("blitz")  # 4 images of 1.3 MFLOP
    >>> f"{fcifar.recipes.count_flops(recipe) / 1e6:.1f} MFLOP"
    '15.6 MFLOP'
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = make_model(recipe, num_classes)
    key, count = random.key(0, device="meta"), 2  # batch norm needs more than one image
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.apply(model.init(key), torch.empty(count, 3, 32, 32), key=key, train=True)
    return 3 * counter.get_total_flops() * recipe.batch_size / count


def make_optimizer(
    recipe: Recipe, total_steps: int, numbers: Hyperparams | None = None
) -> Optimizer:
    """The recipe's optimizer with its schedule spread over ``total_steps``."""
    numbers = numbers or make_hyperparams(recipe)
    parts = [optim.clip_by_global_norm(recipe.clip_norm)] if recipe.clip_norm else []
    if recipe.group_learning_rates or recipe.whiten_epochs or recipe.optimizer == "muon":
        groups = {group: _of_group(recipe, group, total_steps, numbers) for group in GROUPS}
        return optim.chain(*parts, optim.multi_transform(groups, group_of))
    return optim.chain(*parts, *_of_all(recipe, total_steps, numbers))


def group_of(name: str, value: Tensor) -> str:
    """Which group a parameter belongs to, by its name and its dimensions.

    ``whiten``, the whitening layer; else ``kernel`` of four dimensions, ``linear`` of two, and
    ``vector`` of one.
    """
    if name.startswith("whiten."):
        return "whiten"
    return {4: "kernel", 2: "linear"}.get(value.ndim, "vector")


def _of_all(recipe: Recipe, total_steps: int, numbers: Hyperparams) -> list[Optimizer]:
    learning_rate = make_schedule(recipe, total_steps, numbers.learning_rate)
    if recipe.optimizer == "adamw":
        return [optim.adamw(learning_rate, weight_decay=numbers.weight_decay)]
    decay = numbers.weight_decay
    parts = [optim.add_decayed_weights(decay)] if _is_used(decay) else []
    if recipe.optimizer == "adam":
        return [*parts, optim.adam(learning_rate)]
    if recipe.optimizer in optim.REGISTERED:
        return [*parts, optim.REGISTERED[recipe.optimizer](learning_rate)]
    return [*parts, optim.sgd(learning_rate, _momentum(numbers), nesterov=recipe.nesterov)]


def _of_group(recipe: Recipe, group: str, total_steps: int, numbers: Hyperparams) -> Optimizer:
    peak = recipe.group_learning_rates.get(group, numbers.learning_rate)
    if group == "whiten" and recipe.whiten_epochs:
        steps = math.ceil(total_steps * recipe.whiten_epochs / recipe.epochs)
        steps = min(max(1, steps), LONGEST)
        learning_rate: float | Tensor | Schedule = schedules.linear_schedule(peak, 0.0, steps)
        ending = [optim.freeze_after(steps)]
    else:
        learning_rate = make_schedule(recipe, total_steps, peak)
        ending = []
    muon = recipe.optimizer == "muon"
    if muon and group == "kernel":
        return optim.muon(learning_rate, numbers.momentum, renormalize=True)
    decay = numbers.weight_decay * numbers.learning_rate / peak if _is_used(peak) else 0.0
    return optim.chain(
        *([optim.add_decayed_weights(decay)] if _is_used(decay) else []),
        optim.sgd(
            learning_rate,
            recipe.group_momentum if muon else _momentum(numbers),
            nesterov=muon or recipe.nesterov,
        ),
        *ending,
    )


def _momentum(numbers: Hyperparams) -> float | Tensor | None:
    return numbers.momentum if _is_used(numbers.momentum) else None


def _is_used(number: float | Tensor) -> bool:
    """Whether a number has an effect; a tensor counts as one that may have."""
    return isinstance(number, Tensor) or number != 0


def make_schedule(
    recipe: Recipe, total_steps: int, peak: float | Tensor | None = None
) -> float | Tensor | Schedule:
    """The learning rate: a number where it is constant, else a function of the step.

    Its ``peak`` is the recipe's learning rate, unless another is given.

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
    main = _SCHEDULES[recipe.schedule](peak, recipe.final_rate, total_steps - warmup)
    if not warmup:
        return main
    return schedules.warmup(main, recipe.initial_rate * peak, peak, warmup)


def tied_to_end(recipe: Recipe) -> list[str]:
    """Fields of a recipe that spread something over the whole run, so that a longer run is another
    run from the first step on. Without any, it begins with the steps of the shorter one.

    >>> fcifar.recipes.tied_to_end(fcifar.recipes.get("blitz"))
    []
    >>> fcifar.recipes.tied_to_end(fcifar.recipes.get("speed94"))
    ['schedule', 'whiten_epochs']
    """
    spread = {
        "schedule": recipe.schedule != "constant",
        "warmup_fraction": recipe.warmup_fraction > 0,
        "lookahead_every": recipe.lookahead_every > 0,
        "whiten_epochs": recipe.whiten_epochs % 1 > 0,  # rounded to steps of the whole run
        "resolutions": bool(recipe.resolutions),
    }
    return [name for name, is_spread in spread.items() if is_spread]


def make_average(recipe: Recipe, total_steps: int) -> Average:
    """The average of the variables over training that the recipe ends with."""
    if recipe.ema_decay:
        return averaging.ema(recipe.ema_decay)
    if not recipe.lookahead_every:
        return averaging.none()
    final = recipe.lookahead_decay**recipe.lookahead_every
    return averaging.lookahead(
        lambda count: final * (count / total_steps) ** 3, recipe.lookahead_every
    )


def make_class_weights(recipe: Recipe, labels: Tensor, num_classes: int) -> Tensor | None:
    """The weight of each class in the loss: float32 [C], or None where all weigh 1.

    Args:
        labels: int64 [N], of the training images, those held out included.
    """
    balanced = recipe.class_weights == "balanced"
    return losses.balanced_class_weights(labels, num_classes) if balanced else None


def make_loss(
    recipe: Recipe, numbers: Hyperparams | None = None, class_weights: Tensor | None = None
) -> Loss:
    """The loss that the recipe trains with; it is always measured with cross-entropy.

    Args:
        class_weights: from ``make_class_weights``.
    """
    return losses.smoothed_cross_entropy((numbers or recipe).label_smoothing, class_weights)


def make_reduction(recipe: Recipe) -> Reduction:
    """From the losses of a batch to what is descended."""
    return {"mean": torch.mean, "sum": torch.sum}[recipe.loss_reduction]


def make_gradient(recipe: Recipe, axis: Axis = ALONE) -> Gradient:
    """The gradient that the recipe descends: the batch's, or its images' clipped and noised.

    Args:
        axis: the ranks that divide a batch.
    """
    if not recipe.dp_clip:
        return of_batch
    reduction = make_reduction(recipe)
    return privacy.dp_gradient(recipe.dp_clip, recipe.dp_noise, reduction=reduction, axis=axis)


def make_augment(recipe: Recipe) -> Augment:
    """The recipe's augmentations, one after the other."""
    return augment.chain(*map(named_augment, recipe.augment))


def make_preprocess(recipe: Recipe, size: int = 0) -> Preprocess:
    """The recipe's normalisation, and images of ``size`` pixels a side; 0 for as they are."""
    normalized = normalize(tuple(recipe.mean), tuple(recipe.std))
    if not size:
        return normalized
    return lambda images: functional.resize(normalized(images), size)


def make_stages(recipe: Recipe, total_steps: int) -> list[tuple[int, Stage]]:
    """The stages of a run, and the step before which each begins."""
    stages = named_stages(recipe.resolutions)
    ends = [round(stage.until * total_steps) for stage in stages]
    starts = [0, *ends[:-1]]
    return [
        (start, stage)
        for start, end, stage in zip(starts, ends, stages, strict=True)
        if end > start
    ]


def make_views(recipe: Recipe) -> Views:
    """The recipe's test-time augmentation."""
    return tta.VIEWS[recipe.tta]


def steps_per_epoch(recipe: Recipe, size: int) -> int:
    """How many steps an epoch over ``size`` training images has."""
    steps, last = divmod(size, recipe.batch_size)
    return steps if recipe.drop_last or not last else steps + 1


def check_sizes(
    recipe: Recipe, dataset: str, size: int, held_out: int, given: int, processes: int
) -> None:
    """Make sure that the recipe fits a data set, and so many processes.

    Args:
        dataset: its name.
        size: the number of images to train on.
        held_out: of training images held out.
        given: of validation images that the data set has of its own.

    Raises:
        UsageError: it does not.
    """
    batch_size = recipe.batch_size
    if not size + held_out:
        raise UsageError(
            f"{dataset} is a test set without training images; train on another data set with "
            f"the same classes, then measure with fcifar eval RUN --dataset {dataset}"
        )
    if recipe.valid == "given" and not given:
        raise UsageError(
            f"valid is given, and {dataset} has no validation images of its own; hold some "
            "out of the training images with --valid-fraction 0.1 in place of it"
        )
    if batch_size > size:
        raise UsageError(f"batch_size is {batch_size}, but {dataset} has {size} training images")
    if recipe.valid_fraction and not held_out:
        raise UsageError(
            f"valid_fraction is {recipe.valid_fraction}, which holds out no images ({size} in "
            f"{dataset}); use a larger fraction"
        )
    if batch_size % processes:
        raise UsageError(
            f"batch_size is {batch_size}, which {processes} processes cannot divide equally; give "
            f"a --batch-size that is a multiple of {processes}"
        )
    if size % batch_size % processes and not recipe.drop_last:
        raise UsageError(
            f"the last batch of an epoch has {size % batch_size} images, which {processes} "
            "processes cannot divide equally; give --drop-last, or another --batch-size"
        )


def check_model(
    recipe: Recipe, policy: Policy, count: int, num_classes: int, total_steps: int, axis: Axis
) -> None:
    """Make sure that the model takes what it is given: on the meta device, where it is cheap.

    Raises:
        UsageError: it does not compute in a dtype; or does not train on a batch of one image, as
            under batch norm of features without width and height, and there is one.
    """
    model, key = make_model(recipe, num_classes), random.key(0, device="meta")
    variables = model.init(key)
    cast = variables._replace(params=precision.cast(variables.params, policy.compute))
    batches = {recipe.batch_size, *(() if recipe.drop_last else (count % recipe.batch_size,))}
    single = axis.size in batches and not (axis.size > 1 and recipe.sync_batch_norm)

    def forward(images: Tensor) -> None:
        with torch.device("meta"):  # where modules that name no device make their tensors, too
            model.apply(cast, images, key=key, train=True)

    for _, stage in make_stages(recipe, total_steps):
        size = stage.size or 32
        images = torch.empty(2, 3, size, size, dtype=policy.compute, device="meta")
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
            other = "" if recipe.batch_size == axis.size else "--drop-last, or "
            raise UsageError(
                f"batches of {recipe.batch_size} of {count} images leave one image alone, which "
                f"the model does not train on ({located(error)}); give {other}another --batch-size"
            ) from error
