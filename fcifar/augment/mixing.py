"""Augmentations that mix pairs of images and their labels: mixup and CutMix.

    mix = mixup(0.2, num_classes=10)
    images, targets = mix(random.key(0), images, labels)

A mix is a pure function ``(key, images, labels) -> (images, targets)``, where ``targets`` are
probabilities of the classes, float32 [B, C], for ``fcifar.losses``. ``labels`` are int64 [B], or
targets of an earlier mix. Images are as in ``fcifar.augment``.

Images 2k and 2k + 1 are partners, and the last of an odd number is its own partner: in a shuffled
batch, neighbours are random pairs. Each image has its own weight, drawn from Beta(alpha, alpha), as
with ``mode="elem"`` in timm. The result for an image depends only on the key, its row and the pair,
so that shards of a batch with an even number of rows are mixed like the whole batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import base, functional
from fcifar.random import Key

Mix = Callable[[Key, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(key, images [B, C, H, W], labels [B]) -> (images, targets [B, C])``."""


def mixup(alpha: float, num_classes: int = 10) -> Mix:
    """Mix each image with its partner: ``weight * image + (1 - weight) * partner``.

    Zhang, Cisse, Dauphin and Lopez-Paz, https://arxiv.org/abs/1710.09412. Targets are mixed
    likewise. The mixture of uint8 images is float32 in [0, 1]; floating images keep their dtype.

    Args:
        alpha: from 0.001 (one image or the other) to 1000 (halves of both); the weight is uniform
            for 1.

    >>> mix = fcifar.augment.mixup(1.0, num_classes=2)
    >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    >>> mixed, targets = mix(fcifar.random.key(0), images, torch.tensor([0, 1]))
    >>> torch.equal(mixed.flatten(), targets[:, 1])
    True
    """
    base.check_alpha("mixup", alpha)

    def mix(key: Key, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        weight = base.beta(key, alpha, base.batch_size(images))
        x = images if images.is_floating_point() else images.to(torch.float32) / 255
        share = functional.stored(weight).to(x.dtype)[:, None, None, None]
        mixed = share * x + (1 - share) * partners(x)
        return mixed, _mixed_targets(labels, weight, num_classes)

    return mix


def cutmix(alpha: float, num_classes: int = 10) -> Mix:
    """Replace a rectangle of each image by its partner's pixels.

    Yun et al., https://arxiv.org/abs/1905.04899. The rectangle has the shape of the image and the
    area ``1 - weight``; its centre is uniform over the pixels, and it is clipped at the border. The
    weight of a label is the part of the image that is kept. Images keep their dtype.

    Args:
        alpha: from 0.001 to 1000; the weight is uniform for 1, the paper's.

    >>> mix = fcifar.augment.cutmix(1.0, num_classes=2)
    >>> images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    >>> mixed, targets = mix(fcifar.random.key(0), images, torch.tensor([0, 1]))
    >>> torch.equal(mixed.mean((1, 2, 3)), targets[:, 1])
    True
    """
    base.check_alpha("cutmix", alpha)

    def mix(key: Key, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        size = base.batch_size(images)
        weight_key, centre_key = random.split(key)
        half = torch.sqrt(1 - base.beta(weight_key, alpha, size)) / 2
        ends, length = [], []
        for centre, side in zip(
            base.random_position(centre_key, size, *images.shape[-2:]),
            images.shape[-2:],
            strict=True,
        ):
            reach = (half * side).to(torch.int64)
            first = (centre - reach).clamp(min=0)
            ends.append(first)
            length.append((centre + reach).clamp(max=side) - first)
        inside = functional.in_rectangle(images, *ends, *length)
        weight = 1 - (length[0] * length[1]) / (images.shape[-2] * images.shape[-1])
        mixed = torch.where(inside, partners(images), images)
        return mixed, _mixed_targets(labels, weight, num_classes)

    return mix


def partners(rows: Tensor) -> Tensor:
    """Return the partner of each row: rows 1, 0, 3, 2, ....

    >>> fcifar.augment.mixing.partners(torch.arange(5))
    tensor([1, 0, 3, 2, 4])
    """
    index = torch.arange(rows.shape[0], device=rows.device) ^ 1
    return rows[index.clamp(max=rows.shape[0] - 1)]


def as_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels int64 [B] as float32 [B, C], 1 for the label; targets as they are."""
    if labels.is_floating_point():
        return labels
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[:, None] == classes).to(torch.float32)


def _mixed_targets(labels: Tensor, weight: Tensor, num_classes: int) -> Tensor:
    targets = as_targets(labels, num_classes)
    weight = weight[:, None].to(targets.dtype)
    return weight * targets + (1 - weight) * partners(targets)
