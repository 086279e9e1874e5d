"""DP-SGD: training with per-example gradient clipping and noise.

Abadi et al., "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133, algorithm
1: each example's gradient is clipped to norm C, the gradients of the batch are summed, and noise of
standard deviation sigma C is added to the sum.

    step = make_train_step(model, optimizer, gradient=dp_gradient(1.0, 0.5, batch_size=500))
    rows, present = poisson_sample(key, 50_000, 500)  # a batch, with 719 rows, of which some count
    state, metrics = step(state, Sampled(images[rows], labels[rows], present))

``poisson_sample`` takes each image into each batch independently, as the analysis of DP-SGD with
amplification by sampling assumes (``fcifar train --dp-sampling poisson``). Shuffled epochs do not
have that guarantee: Chua et al., "How private are DP-SGD implementations?",
https://arxiv.org/abs/2403.17673. ``train.accounting`` computes epsilon for both.

What epsilon is about: two sets of training images that differ by one image, which is there or not,
and an adversary who sees the parameters after every step. It does not cover the metrics of the
batches, which have no noise; the number of images; and what was chosen by looking at the same
images, such as hyperparameters. It assumes that the seed is secret, since the seed determines
sample and noise (a run directory contains it), exact arithmetic, and random numbers that cannot be
predicted, which threefry with a key of 64 bits is not meant for. The module is for research into
the cost of private training, not for the release of models trained on secrets.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fcifar import random, tree
from fcifar.grads import Gradient, Objective, chunks, norms, rows
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key
from fcifar.tree import Tree

GRADIENTS = 2**25  # elements of per-example gradients held at a time: 128 MiB of float32
OVERFLOW = 1e-20  # most probability that a sampled batch has more images than rows
_WORDS = 2**32


# Poisson sampling --------------------------------------------------------------------------------


def sampling_probability(size: int, batch_size: int) -> float:
    """Return ``batch_size / size``, rounded to a multiple of 2**-32, as ``poisson_sample`` has it.

    Raises:
        ValueError: not ``1 <= batch_size <= size``.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(f"a batch has 1 to {size} of {size} images, not {batch_size}")
    return max(1, round(_WORDS * batch_size / size)) / _WORDS


def overflow_probability(size: int, probability: float, rows: int) -> float:
    """Return the probability that more than ``rows`` of ``size`` images are sampled.

    The upper tail of the binomial distribution, as a sum of its terms, to a relative error of about
    1e-9.

    >>> round(fcifar.privacy.overflow_probability(3, 0.5, 2), 9)
    0.125
    """
    if probability >= 1 or rows >= size:
        return 1.0 if rows < size else 0.0
    log_odds = math.log(probability) - math.log1p(-probability)
    constant = math.lgamma(size + 1) + size * math.log1p(-probability)
    terms: list[float] = []
    for count in range(rows + 1, size + 1):
        log_ways = constant - math.lgamma(count + 1) - math.lgamma(size - count + 1)
        terms.append(math.exp(log_ways + count * log_odds))
        if count > probability * size and terms[-1] < 1e-17 * terms[0]:
            break
    return math.fsum(terms)


@functools.cache
def capacity(size: int, batch_size: int) -> int:
    """Return the number of rows of a sampled batch: the least that overflows with a probability of
    at most ``OVERFLOW``.

    About 10 standard deviations more than ``batch_size``.

    >>> [fcifar.privacy.capacity(50_000, batch_size) for batch_size in (4, 64, 500, 50_000)]
    [34, 151, 719, 50000]
    """
    probability = sampling_probability(size, batch_size)
    too_few, enough = batch_size - 1, size
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if overflow_probability(size, probability, middle) <= OVERFLOW:
            enough = middle
        else:
            too_few = middle
    return enough


def poisson_sample(key: Key, size: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Draw a batch that has each of ``size`` images independently, ``batch_size`` on average.

    Its number of images is random, and its number of rows is fixed, ``capacity(size, batch_size)``.
    Images beyond it, which a batch has with a probability of at most ``OVERFLOW``, are left out:
    those of the highest numbers.

    Args:
        size: number of images.
        batch_size: expected number of images, from 1 to ``size``. Each is in the batch with
            probability ``sampling_probability(size, batch_size)``.

    Returns:
        The numbers of the images in rising order, int64 [R], then 0 in the rows that are left; and
        which rows have an image, bool [R].

    >>> rows, present = fcifar.privacy.poisson_sample(fcifar.random.key(0), 1000, 10)
    >>> rows[present], len(rows)
    (tensor([134, 288, 303, 420, 428, 526, 561, 699, 954]), 51)
    """
    limit = round(_WORDS * sampling_probability(size, batch_size))
    rows = capacity(size, batch_size)
    is_drawn = random.bits(key, (size,)) < limit
    count = is_drawn.cumsum(0)
    place = torch.where(is_drawn & (count <= rows), count - 1, rows)  # the last is thrown away
    numbers = torch.zeros(rows + 1, dtype=torch.int64, device=key.device)
    numbers = numbers.scatter(0, place, torch.arange(size, device=key.device))
    return numbers[:rows], torch.arange(rows, device=key.device) < count[-1]


# Clipping and noise ------------------------------------------------------------------------------


def clipped_sum(gradients: Tree, max_norm: float | Tensor) -> Tree:
    """Sum per-example gradients after clipping: ``g / max(1, |g| / max_norm)``.

    Args:
        gradients: leaves [B, ...], as returned by ``grads.per_example``.
        max_norm: above 0; |g| is the norm over all leaves of an example.

    Returns:
        Leaves [...].

    >>> fcifar.privacy.clipped_sum(torch.tensor([[3.0, 4.0], [0.5, 0.0]]), max_norm=1.0)
    tensor([1.1000, 0.8000])
    """
    if not tree.leaves(gradients):
        return gradients
    # Not min(1, max_norm / norm), which divides by 0 if the norm is 0.
    weights = max_norm / norms(gradients).clamp(min=max_norm)
    return tree.map(
        lambda leaf: (weights.to(leaf.dtype) @ rows(leaf)).reshape(leaf.shape[1:]), gradients
    )


def add_noise(key: Key, values: Tree, std: float | Tensor) -> Tree:
    """Add Gaussian noise of standard deviation ``std``, drawn once in the order of the leaves."""
    leaves, unflatten = tree.flatten(values)
    sizes = [leaf.numel() for leaf in leaves]
    # One draw for all leaves: with ten separate draws, compilation takes eight times as long.
    noise = (std * random.normal(key, (sum(sizes),))).split(sizes)
    return unflatten(
        [leaf + n.reshape(leaf.shape).to(leaf.dtype) for leaf, n in zip(leaves, noise, strict=True)]
    )


def dp_gradient(
    max_norm: float | Tensor,
    noise_multiplier: float | Tensor,
    *,
    reduction: Callable[[Tensor], Tensor] = torch.mean,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    axis: Axis = ALONE,
) -> Gradient:
    """The ``gradient`` of ``make_train_step`` for DP-SGD.

    For a batch of B, ``(sum of clipped gradients + noise) / B`` if the reduction is a mean, without
    the division if it is a sum. Each example has its own key, for dropout, and the noise has
    another.

    For batches of a random size (``step.Sampled``), give ``batch_size``: B is then that, not the
    number of rows. The sum may not be divided by the number of images of the batch, because noise
    of a known deviation would then reveal it.

    Args:
        max_norm: clipping norm, above 0.
        noise_multiplier: 0 or more; the noise has standard deviation ``noise_multiplier *
            max_norm``.
        reduction: the reduction of the step.
        batch_size: expected number of examples of a batch; None for the number of its rows.
        chunk_size: number of examples whose gradients are held at a time. None chooses equal chunks
            of at most ``GRADIENTS`` elements (but at least one example).
        axis: the axis of the step. Each rank adds its share of the noise.

    Raises:
        ValueError: a number is out of range; or, when called, the model has buffers: batch norm
            mixes the examples of a batch, and its statistics would be released without noise.

    >>> model, optimizer = fcifar.models.lenet(), fcifar.optim.sgd(0.1)
    >>> private = fcifar.privacy.dp_gradient(max_norm=1.0, noise_multiplier=0.5)
    >>> step = fcifar.make_train_step(model, optimizer, gradient=private)
    >>> state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    >>> step(state, fcifar.Batch(torch.zeros(2, 3, 32, 32), torch.arange(2)))[0].step
    tensor(1)
    """
    if not isinstance(max_norm, Tensor) and not max_norm > 0:
        raise ValueError(f"dp_gradient needs a norm above 0, not {max_norm}")
    if not isinstance(noise_multiplier, Tensor) and not noise_multiplier >= 0:
        raise ValueError(f"dp_gradient needs noise of 0 or more, not {noise_multiplier}")

    def gradient(objective: Objective) -> Callable[[Tree, Tree, Key], Any]:
        def of_one(params: Tree, example: Tree, key: Key) -> tuple[Tensor, Tensor]:
            batch = tree.map(lambda leaf: leaf[None], example)
            _, (losses, logits, buffers) = objective(params, batch, key)
            if tree.leaves(buffers):
                raise ValueError(
                    "dp_gradient needs a model without buffers, because batch norm mixes the "
                    "examples of a batch; use lenet or conv3"
                )
            return losses[0], logits[0]

        of_chunk = vmap(grad_and_value(of_one, has_aux=True), in_dims=(None, 0, 0))

        def of_examples(params: Tree, examples: Tree, key: Key) -> Any:
            draw_key, noise_key = random.split(key)
            count = len(tree.leaves(examples)[0])
            keyed = (examples, random.row_keys(draw_key, count))
            total, outputs = tree.zeros_like(params), []
            for chunk, keys in chunks(keyed, chunk_size or _chunk_size(params, count)):
                gradients, output = of_chunk(params, chunk, keys)
                total = tree.add(total, clipped_sum(gradients, max_norm))
                outputs.append(output)
            losses, logits = tree.map(lambda *parts: torch.cat(parts), *outputs)
            of = losses.new_ones(batch_size or count)
            share = reduction(of) / len(of)  # weight of one loss
            std = noise_multiplier * max_norm / axis.size
            noised = add_noise(random.common(noise_key), total, std)
            grads = tree.map(lambda leaf: leaf * share.to(leaf.dtype), noised)
            return grads, (reduction(losses), (losses, logits, {}))

        return of_examples

    return gradient


def _chunk_size(params: Tree, count: int) -> int:
    """Return the size of the fewest chunks of ``count`` examples within ``GRADIENTS`` elements.

    Chunks are as equal as possible, because each distinct size is compiled separately.
    """
    most = max(1, GRADIENTS // max(1, sum(leaf.numel() for leaf in tree.leaves(params))))
    parts = -(-count // most)
    return -(-count // parts)
