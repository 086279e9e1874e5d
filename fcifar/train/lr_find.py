"""A search for the learning rate: short trainings with each rate of a range.

Smith, "Cyclical learning rates for training neural networks", https://arxiv.org/abs/1506.01186,
increases the rate during one run. Here each rate trains for a few steps of its own, from the same
initialisation and on the same batches, so that a rate does not inherit what others have done.

    rates = make_rates(recipe.learning_rate / 30, 30 * recipe.learning_rate, 11)
    result = find(make_config(prepare(recipe, steps, size), dataset), dataset, rates, steps)
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fcifar import io, recipes, tree
from fcifar.data import Dataset
from fcifar.errors import UsageError
from fcifar.recipes import Recipe
from fcifar.recipes.checks import check_count
from fcifar.step_transforms import shard, stack
from fcifar.train.config import RunConfig
from fcifar.train.runtime import activate
from fcifar.train.setup import Training, make_trainings, stage_at

MOST_RATES = 1000
FEWEST_STEPS = 100  # by default, if an epoch has as many
_PART = 4  # the loss is that of the last quarter of the steps

Progress = Callable[[str, int, int], None]


def make_rates(lowest: float, highest: float, count: int) -> list[float]:
    """Return ``count`` learning rates, each the same multiple of the one before.

    They have three significant digits, and begin and end at the limits.

    Raises:
        UsageError: a limit is not above 0, the range is empty, or ``count`` is out of range.

    >>> from fcifar.train.lr_find import make_rates
    >>> make_rates(0.001, 0.1, 5)
    [0.001, 0.00316, 0.01, 0.0316, 0.1]
    """
    check_count("--rates", count, 2, MOST_RATES)
    if not 0 < lowest < highest < math.inf:
        raise UsageError(
            f"the range of rates is {lowest:g} to {highest:g}; --lowest must be above 0 and below "
            "--highest"
        )
    factor = (highest / lowest) ** (1 / (count - 1))
    rates = [float(f"{lowest * factor**i:.3g}") for i in range(count)]
    if len(set(rates)) < count:
        raise UsageError(
            f"{count} rates between {lowest:g} and {highest:g} are too close to each other; give "
            "fewer --rates, or a larger range"
        )
    return rates


def default_steps(recipe: Recipe, size: int) -> int:
    """Return a tenth of an epoch over ``size`` images, at least 100 steps, at most an epoch."""
    epoch = recipes.steps_per_epoch(recipe, size)
    return max(1, min(epoch, max(FEWEST_STEPS, epoch // 10)))


def prepare(recipe: Recipe, steps: int, size: int) -> Recipe:
    """Return the recipe for short trainings with a constant rate.

    Without warm-up and schedule, growing images, averages and validation, and with batches of one
    size; long enough for ``steps`` steps over ``size`` images.

    Raises:
        UsageError: ``steps`` is out of range.
    """
    check_count("--steps", steps, 1)
    return recipe.replace(
        epochs=math.ceil(steps / max(recipes.steps_per_epoch(recipe, size), 1)),
        dp_sampling="shuffle",
        schedule="constant",
        warmup_steps=0,
        warmup_fraction=0.0,
        resolutions=(),
        lookahead_every=0,
        ema_decay=0.0,
        swa_start=0.0,
        valid="fraction",
        valid_fraction=0.0,
        stratify=False,
        fold="",
        patience=0,
        restore_best=False,
        tta="none",
    )


def find(
    config: RunConfig,
    dataset: Dataset,
    rates: Sequence[float],
    steps: int,
    *,
    method: str = "loop",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Train for some steps with each rate, and suggest one of them.

    The loss of a rate is the mean over the last quarter of its steps, each on a batch before the
    parameters are updated with it: within an epoch these are images that it has not seen. The test
    images are not read.

    Args:
        config: of a recipe from ``prepare``.
        rates: ascending, see ``make_rates``.
        steps: of each rate.
        method: ``loop`` for one rate after another, or ``vmap`` for all at once, as in a sweep.
        progress: called with what is done, and how many steps of how many.

    Returns:
        JSON-serializable values: ``rates``, each with its ``loss``, None if it is not finite, and
        the standard error of the mean; the ``suggestion``, and its ``reason`` as a sentence.

    Raises:
        UsageError: the recipe does not fit the data set, or no rate has a finite loss.
    """
    nothing = dataset.train_images[:0], dataset.train_labels[:0]
    dataset = dataset._replace(test_images=nothing[0], test_labels=nothing[1])
    tried = [config.recipe.replace(learning_rate=rate) for rate in rates]
    is_vmap = method == "vmap"
    config = config.replace(
        recipe=tried[0], traced_hparams=("learning_rate",), vmap_size=len(rates) * is_vmap
    )
    with activate(config.runtime):
        make = make_trainings(config, dataset)
        trainings = [make(recipe, config.seed) for recipe in tried]
        groups = [trainings] if is_vmap else [[training] for training in trainings]
        total = steps * len(groups)
        parts = []
        for before, group in enumerate(groups):
            done = before * steps

            def advance(step: int, done: int = done) -> None:
                progress("training", done + step, total)

            parts.append(_losses(group, steps, compiled=config.compile, advance=advance))
        losses = torch.cat(parts)
    last = losses[:, -max(1, steps // _PART) :]
    chosen, reason = suggest(rates, last)
    means, errors = last.mean(1).tolist(), _standard_error(last).tolist()
    return io.finite(
        {
            "rates": [
                {"rate": rate, "loss": mean, "standard_error": error}
                for rate, mean, error in zip(rates, means, errors, strict=True)
            ],
            "steps": steps,
            "averaged_steps": last.shape[1],
            "method": method,
            "suggestion": rates[chosen],
            "reason": reason,
        }
    )


def _losses(
    group: Sequence[Training], steps: int, *, compiled: bool, advance: Callable[[int], None]
) -> Tensor:
    """Return the mean loss of each batch, float64 [R, steps], of trainings mapped together."""
    first, is_vmap = group[0], len(group) > 1
    stages = first.vmap_stages if is_vmap else first.stages
    state = stack([training.init() for training in group]) if is_vmap else first.init()
    each = [training.inputs(0) for training in group]
    inputs = map(stack, zip(*each, strict=True)) if is_vmap else each[0]
    if compiled:
        for function, arguments in first.first_calls(state):
            function(*arguments)
    found = []
    for step, one in enumerate(itertools.islice(inputs, steps)):
        state, _ = stage_at(stages, step)(state, shard(one, 0, 1))
        totals = state.totals
        found.append((totals.loss / totals.count).clone())
        tree.map(lambda total: total.zero_(), totals)
        advance(step + 1)
    return torch.stack(found, -1).reshape(len(group), -1).cpu().double()


def suggest(rates: Sequence[float], losses: Tensor) -> tuple[int, str]:
    """Return the index of the rate to use, and the reason as a sentence.

    It is the largest rate whose mean loss is at most one standard error above the lowest. The error
    is that of the rate with the lowest loss: larger rates vary more, which must not excuse them.

    Args:
        rates: R of them, ascending.
        losses: floating [R, n], of n batches.

    Raises:
        UsageError: no rate has finite losses.

    >>> from fcifar.train.lr_find import suggest
    >>> losses = torch.tensor([[2.0, 2.2], [1.5, 1.7], [1.9, 2.1]])
    >>> suggest([0.01, 0.1, 1.0], losses)
    (1, '0.1 has the lowest loss, 1.600; the next larger rate has 2.000')
    """
    means = losses.mean(1)
    finite = [i for i in range(len(rates)) if means[i].isfinite()]
    if not finite:
        raise UsageError(
            f"no rate from {rates[0]:g} to {rates[-1]:g} has a finite loss; give a smaller --lowest"
        )
    best = min(finite, key=lambda i: means[i].item())
    lowest = f"{means[best].item():.3f}"
    margin = _standard_error(losses)[best].item()
    chosen = max(i for i in finite if i == best or means[i] - means[best] <= margin)
    if chosen != best:
        found = means[chosen].item()
        reason = (
            f"{rates[chosen]:g} is the largest rate whose loss, {found:.3f}, is within the noise "
            f"({margin:.3f}) of the lowest, {lowest} with {rates[best]:g}"
        )
    else:
        reason = f"{rates[best]:g} has the lowest loss, {lowest}"
        if best + 1 < len(rates):
            following = means[best + 1].item()
            known = f"has {following:.3f}" if math.isfinite(following) else "diverges"
            reason += f"; the next larger rate {known}"
    if chosen in (0, len(rates) - 1):
        edge, option = ("smallest", "--lowest") if chosen == 0 else ("largest", "--highest")
        reason += f"; it is the {edge} that was tried, so search on with another {option}"
    return chosen, reason


def _standard_error(values: Tensor) -> Tensor:
    """Return the standard error of the mean of each row; 0 of a single value."""
    count = values.shape[1]
    return values.std(1) / math.sqrt(count) if count > 1 else torch.zeros(len(values))
