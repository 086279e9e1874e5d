"""DP-SGD: training with per-example gradient clipping and noise.

Abadi et al., "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133, algorithm
1: each example's gradient is clipped to norm C, the gradients of the batch are summed, and noise of
standard deviation sigma C is added to the sum.

    step = make_train_step(model, optimizer, gradient=dp_gradient(1.0, 0.5))

This module has no privacy accountant; Opacus (``opacus.accountants``) and Google's
``dp-accounting`` compute the guarantee of a number of steps. They assume that batches are sampled
independently, whereas epochs here are shuffled. The batch's metrics have no noise, and the seed is
enough to remove the noise of the gradients. The module is meant for research into the cost of
private training, not for the release of models trained on secrets.
"""

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
    chunk_size: int | None = None,
    axis: Axis = ALONE,
) -> Gradient:
    """The ``gradient`` of ``make_train_step`` for DP-SGD.

    For a batch of B, ``(sum of clipped gradients + noise) / B`` if the reduction is a mean, without
    the division if it is a sum. Each example has its own key, for dropout, and the noise has
    another.

    Args:
        max_norm: clipping norm, above 0.
        noise_multiplier: 0 or more; the noise has standard deviation ``noise_multiplier *
            max_norm``.
        reduction: the reduction of the step.
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
            share = reduction(torch.ones_like(losses)) / count  # weight of one loss
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
