"""Test-time augmentation: several views of an image, whose logits are averaged."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Views(NamedTuple):
    """Views of an image, and how much each counts."""

    weights: tuple[float, ...]  # V of them, which add up to 1
    of: Callable[[Tensor], Tensor]  # an image as the model sees it, [3, H, W], to [V, 3, H, W]


def combine(views: Views, logits: Tensor) -> Tensor:
    """The weighted mean [C] of the views' logits [V, C].

    >>> views = fcifar.augment.tta.MIRROR
    >>> images = views.of(torch.tensor([1.0, 2.0]).expand(3, 1, 2))  # [2, 3, 1, 2]
    >>> fcifar.augment.tta.combine(views, images[:, 0, 0])
    tensor([1.5000, 1.5000])
    """
    if len(views.weights) == 1:
        return logits[0]
    weights = torch.tensor(views.weights, dtype=logits.dtype, device=logits.device)
    return (weights[:, None] * logits).sum(0)


def _mirrored(image: Tensor) -> Tensor:
    return torch.stack([image, image.flip(-1)])


def _translated(image: Tensor) -> Tensor:
    return torch.cat([_mirrored(_moved(image, by)) for by in (0, -1, 1)])


def _moved(image: Tensor, by: int) -> Tensor:
    """Content moved down and to the right, reflected at the border."""
    rows, columns = (_reflected(side, by, image.device) for side in image.shape[-2:])
    return image[:, rows][:, :, columns]


def _reflected(side: int, by: int, device: torch.device) -> Tensor:
    place = (torch.arange(side, device=device) - by).abs()
    return side - 1 - (side - 1 - place).abs()


NONE = Views((1.0,), lambda image: image[None])
"""The image itself."""

MIRROR = Views((0.5, 0.5), _mirrored)
"""The image and its mirror image."""

TRANSLATE = Views((0.25, 0.25, 0.125, 0.125, 0.125, 0.125), _translated)
"""The image and its mirror image where they are, for a half, and for a quarter each moved by one
pixel: up and to the left, and down and to the right. What comes in at the border is reflected.

Jordan, https://arxiv.org/abs/2404.00498, "multi-crop".
"""

VIEWS = {"none": NONE, "mirror": MIRROR, "translate": TRANSLATE}
