"""What a trained network takes pictures for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar.runs.runtime import Runtime
from fcifar.runs.trained import Trained, examine
from fcifar.step import Batch


class Guess(NamedTuple):
    """A class, and how likely the network finds it."""

    name: str
    probability: float  # in [0, 1]; NaN if the network's outputs are not finite


def predict(network: Trained, runtime: Runtime, images: Tensor) -> Tensor:
    """The logits of a network for any number of images.

    They are computed as an evaluation computes them, in batches of its size, for the last bits of
    a matrix product depend on the number of its rows. So an image has the same logits here, bit
    for bit, as in the evaluation of any data set that holds it.

    Args:
        images: uint8 [N, 3, 32, 32].

    Returns:
        [N, C] on the CPU.
    """
    if not len(images):
        raise ValueError("predict needs at least one image")
    labels = torch.zeros(len(images), dtype=torch.int64)  # not known, and not looked at
    return examine(network, runtime, Batch(images, labels)).logits


def best_guesses(logits: Tensor, classes: Sequence[str], count: int = 5) -> list[list[Guess]]:
    """The most likely classes of each image, the likeliest first and equals in class order.

    Args:
        logits: [N, C].
        classes: C names.
        count: how many of them at most.
    """
    probabilities, order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    return [
        [Guess(classes[i], p) for i, p in zip(numbers[:count], row, strict=False)]
        for numbers, row in zip(order.tolist(), probabilities.tolist(), strict=True)
    ]
