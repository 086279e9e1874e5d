"""Test-time augmentation: the logits of several views of an image are averaged."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import layers
from fcifar.augment.functional import reflect


class Views(NamedTuple):
    """Views of an image and their weights."""

    weights: tuple[float, ...]  # V weights with sum 1
    of: Callable[[Tensor], Tensor]  # maps a preprocessed image [3, H, W] to [V, 3, H, W]


def combine(views: Views, logits: Tensor) -> Tensor:
    """Return the weighted mean [C] of the logits [V, C] of the views.

    >>> views = fcifar.augment.tta.MIRROR
    >>> images = views.of(torch.tensor([1.0, 2.0]).expand(3, 1, 2))  # [2, 3, 1, 2]
    >>> fcifar.augment.tta.combine(views, images[:, 0, 0])
    tensor([1.5000, 1.5000])
    """
    if len(views.weights) == 1:
        return logits[0]
    weights = layers.constant(views.weights, logits)
    return (weights[:, None] * logits).sum(0)


def _mirrored(image: Tensor) -> Tensor:
    return torch.stack([image, image.flip(-1)])


def _translated(image: Tensor) -> Tensor:
    return torch.cat([_mirrored(_shifted(image, by)) for by in (0, -1, 1)])


def _shifted(image: Tensor, by: int) -> Tensor:
    """Shift an image down and to the right, reflected at the border."""
    rows, columns = (reflect(torch.arange(n, device=image.device) - by, n) for n in image.shape[1:])
    return image[:, rows][:, :, columns]


NONE = Views((1.0,), lambda image: image[None])
"""Only the image."""

MIRROR = Views((0.5, 0.5), _mirrored)
"""The image and its mirror image."""

TRANSLATE = Views((0.25, 0.25, 0.125, 0.125, 0.125, 0.125), _translated)
"""The image and its mirror image: unshifted (weight 1/2 together), shifted by one pixel up and left
(1/4) and down and right (1/4), reflected at the border.

Jordan, https://arxiv.org/abs/2404.00498, "multi-crop".
"""

VIEWS = {"none": NONE, "mirror": MIRROR, "translate": TRANSLATE}
