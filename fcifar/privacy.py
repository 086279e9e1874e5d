"""DP-SGD: gradients that no single example can change by much.

Abadi et al., "Deep learning with differential privacy", https://arxiv.org/abs/1607.00133,
algorithm 1: the gradient of each example is shrunk to a norm of at most C, the batch's are summed,
and noise of standard deviation sigma C is added to the sum.

    step = make_train_step(model, optimizer, gradient=dp_gradient(1.0, 0.5))

What privacy many such steps give, an accountant says: Opacus's (``opacus.accountants``) or Google's
``dp-accounting``. They assume batches drawn at random for each step, where an epoch of ours is a
shuffle; the batch's metrics have no noise; and the noise is a function of the key, so that
the seed suffices to remove it. So this is for research into what such training costs, not
for the release of a network that was trained on secrets.
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

GRADIENTS = 2**25  # numbers in the gradients that are held at a time: 128 MiB of float32


def clipped_sum(gradients: Tree, max_norm: float | Tensor) -> Tree:
    """The sum over examples of ``g / max(1, |g| / max_norm)``.

    Args:
        gradients: leaves [B, ...], as ``grads.per_example`` gives them.
        max_norm: above 0; |g| is the norm of an example's leaves together.

    Returns:
        Leaves [...].

    >>> fcifar.privacy.clipped_sum(torch.tensor([[3.0, 4.0], [0.5, 0.0]]), max_norm=1.0)
    tensor([1.1000, 0.8000])
    """
    if not tree.leaves(gradients):
        return gradients
    # Not min(1, max_norm / norm): where the norm is 0 that divides by it.
    weights = max_norm / norms(gradients).clamp(min=max_norm)
    return tree.map(
        lambda leaf: (weights.to(leaf.dtype) @ rows(leaf)).reshape(leaf.shape[1:]), gradients
    )


def add_noise(key: Key, values: Tree, std: float | Tensor) -> Tree:
    """Values with Gaussian noise of standard deviation ``std``: one draw, in the leaves' order."""
    leaves, unflatten = tree.flatten(values)
    sizes = [leaf.numel() for leaf in leaves]
    # A draw for each leaf would be a piece of machine code for each: ten of them take the compiler
    # eight times as long.
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
    """For ``make_train_step``: examples one at a time, clipped, summed and noised.

    Of a batch of B that is ``(sum of clipped gradients + noise) / B`` where the losses are
    averaged, and without the division where they are summed. Each example has a key of its own to
    draw from, for dropout, and the noise has another.

    Args:
        max_norm: above 0.
        noise_multiplier: 0 or more; the noise has the standard deviation
            ``noise_multiplier * max_norm``.
        reduction: that of the step.
        chunk_size: examples whose gradients are held at a time; None for as many as have
            ``GRADIENTS`` numbers together (but at least one), in parts of one size.
        axis: that of the step. Each rank adds its share of the one noise.

    Raises:
        ValueError: a number outside its range; when called, a network with buffers, for batch norm
            mixes the examples of a batch and its statistics would get out without noise.

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
                    "dp_gradient needs a model without buffers, for batch norm mixes the "
                    "examples of a batch; take lenet or conv3"
                )
            return losses[0], logits[0]

        of_chunk = vmap(grad_and_value(of_one, has_aux=True), in_dims=(None, 0, 0))

        def of_examples(params: Tree, examples: Tree, key: Key) -> Any:
            draw_key, noise_key = random.split(key)
            count = len(tree.leaves(examples)[0])
            keyed = (examples, random.row_keys(draw_key, count))
            total, outputs = tree.zeros_like(params), []
            for chunk, keys in chunks(keyed, chunk_size or _fitting(params, count)):
                gradients, output = of_chunk(params, chunk, keys)
                total = tree.add(total, clipped_sum(gradients, max_norm))
                outputs.append(output)
            losses, logits = tree.map(lambda *parts: torch.cat(parts), *outputs)
            share = reduction(torch.ones_like(losses)) / count  # what one loss counts
            std = noise_multiplier * max_norm / axis.size
            noised = add_noise(random.common(noise_key), total, std)
            found = tree.map(lambda leaf: leaf * share.to(leaf.dtype), noised)
            return found, (reduction(losses), (losses, logits, {}))

        return of_examples

    return gradient


def _fitting(params: Tree, count: int) -> int:
    """The size of the fewest chunks of ``count`` examples whose gradients are few enough numbers.

    As even as can be: a compiler makes code anew for a chunk of another size.
    """
    most = max(1, GRADIENTS // max(1, sum(leaf.numel() for leaf in tree.leaves(params))))
    parts = -(-count // most)
    return -(-count // parts)
