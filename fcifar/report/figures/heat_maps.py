"""Attributions as heat maps over their images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.analysis.attributions import METHODS
from fcifar.report.figures.canvas import INK
from fcifar.report.figures.grids import image_grid, verdict

if TYPE_CHECKING:
    from PIL.Image import Image

    from fcifar.runs.explain import Explanations

NAMES = {
    "gradient": "gradient",
    "smooth_grad": "SmoothGrad",
    "integrated_gradients": "integrated gradients",
    "grad_cam": "Grad-CAM",
}
_QUANTILE = 0.98  # of the strengths of an image, which is drawn in full colour
_FOR, _AGAINST, _EITHER = (213, 94, 0), (0, 114, 178), (147, 40, 120)
_UNSIGNED = ("gradient", "smooth_grad")  # a gradient says how a pixel matters, not for what
_OPACITY = 0.95
_LIGHT = 0.5  # at least, of the grey image below, so that colours can be told apart


def sheet(
    explanations: "Explanations",
    classes: Sequence[str],
    *,
    heading: str,
) -> "Image":
    """Return a row for each image: the image with its predicted class, then each method's map.

    Args:
        explanations: from ``runs.explain.explain``.
        classes: C names.
        heading: one line above the grid.
    """
    names = [name for name in METHODS if name in explanations.maps]
    overlays = [
        overlay(explanations.images, explanations.maps[name], signed=name not in _UNSIGNED)
        for name in names
    ]
    predicted = [classes[i] for i in explanations.predicted.tolist()]
    known = len(explanations.labels) > 0
    true = [classes[i] for i in explanations.labels.tolist()] if known else predicted
    sums = _sums(explanations)
    images, captions, colors = [], [], []
    for i, guess in enumerate(predicted):
        text, color = verdict(guess, true[i], float(explanations.probability[i]))
        images += [explanations.images[i], *(each[i] for each in overlays)]
        captions += [text, *(sums[i] if name == "integrated_gradients" else "" for name in names)]
        colors += [color if known else INK, *(INK for _ in names)]
    return image_grid(
        torch.stack(images),
        captions,
        colors=colors,
        columns=1 + len(names),
        column_names=["image", *(NAMES[name] for name in names)],
        heading=heading,
    )


def _sums(explanations: "Explanations") -> list[str]:
    """What integrated gradients add up to, and the difference of logits that they should."""
    maps = explanations.maps.get("integrated_gradients")
    if maps is None:
        return []
    totals = maps.flatten(1).double().sum(1).tolist()
    differences = (explanations.logit - explanations.black).tolist()
    return [f"sum {a:.2f}\nof {b:.2f}" for a, b in zip(totals, differences, strict=True)]


def overlay(images: Tensor, maps: Tensor, *, signed: bool = True) -> Tensor:
    """Return the images in grey with their attributions in colour over them, uint8 [N, 3, H, W].

    The strongest fiftieth of an image's pixels is in full colour.

    Args:
        images: uint8 [N, 3, H, W].
        maps: floating [N, 3, H, W] or [N, H, W].
        signed: add up the channels; positive sums are vermilion, negative ones blue. Otherwise the
            largest magnitude of the channels, in purple.
    """
    heat = maps
    if maps.ndim == 4:
        heat = maps.sum(1) if signed else maps.abs().amax(1)
    strongest = heat.abs().flatten(1).quantile(_QUANTILE, dim=1)[:, None, None]
    strength = (heat.abs() / torch.where(strongest > 0, strongest, 1.0)).clamp(max=1)[:, None]
    palette = torch.tensor([_AGAINST, _FOR] if signed else [_EITHER, _EITHER])
    color = palette[(heat > 0).long()].permute(0, 3, 1, 2)
    grey = 255 * _LIGHT + (1 - _LIGHT) * images.float().mean(1, keepdim=True)
    alpha = _OPACITY * strength
    return ((1 - alpha) * grey + alpha * color).round().clamp(0, 255).byte()
