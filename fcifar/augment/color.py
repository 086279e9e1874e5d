"""Operations on grey levels and colours, one parameter per image, as torchvision's on uint8 images.

Most are functions of the grey level alone, given the mean or the histogram of the image: tables of
256 levels for each channel, and one lookup. ``color`` and ``sharpness`` blend an image with its
grey or its smoothed version.

Results are truncated to grey levels as in ``torchvision.transforms.v2.functional``, so that they
equal torchvision's on uint8 images, except for rounding in the blends of ``contrast``, ``color``
and ``sharpness``, which may change a pixel by one level. Floating images in [0, 1] are rounded to
256 levels first.

Images are [B, 1, H, W] or [B, 3, H, W], and parameters are tensors [B].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fcifar.augment.functional import grey, stored

LEVELS = 256


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images by factors >= 0.

    >>> images = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(1, 1, 1, 3)
    >>> fcifar.augment.color.brightness(images, torch.tensor([1.5]))
    tensor([[[[  0, 150, 255]]]], dtype=torch.uint8)
    """
    return _by_table(images, lambda x, t: scale_levels(t, factors, torch.zeros_like(factors)))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference from the mean grey of an image by factors >= 0."""
    return _by_table(images, lambda x, t: scale_levels(t, factors, mean_grey(x)))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of each grey level, integers in [0, 8].

    >>> images = torch.tensor([63, 100, 200], dtype=torch.uint8).reshape(1, 1, 1, 3)
    >>> fcifar.augment.color.posterize(images, torch.tensor([2]))
    tensor([[[[  0,  64, 192]]]], dtype=torch.uint8)
    """
    return _by_table(images, lambda x, t: posterize_levels(t, bits))


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert grey levels from a threshold up, in [0, 1] for black to white.

    >>> images = torch.tensor([0, 100, 200], dtype=torch.uint8).reshape(1, 1, 1, 3)
    >>> fcifar.augment.color.solarize(images, torch.tensor([0.5]))
    tensor([[[[  0, 100,  55]]]], dtype=torch.uint8)
    """
    return _by_table(images, lambda x, t: solarize_levels(t, thresholds))


def autocontrast(images: Tensor) -> Tensor:
    """Stretch the grey levels of each channel to the whole range.

    As in torchvision, the largest level may become 254, because the scale is rounded.

    >>> images = torch.tensor([100, 150, 200], dtype=torch.uint8).reshape(1, 1, 1, 3)
    >>> fcifar.augment.color.autocontrast(images)
    tensor([[[[  0, 127, 254]]]], dtype=torch.uint8)
    """
    return _by_table(images, autocontrast_levels)


def equalize(images: Tensor) -> Tensor:
    """Map the grey levels of each channel so that their histogram becomes as flat as possible."""
    return _by_table(images, lambda x, t: equalize_levels(x, t))


def invert(images: Tensor) -> Tensor:
    """Replace each level v by 255 - v."""
    return _on_levels(images, lambda x: LEVELS - 1 - x)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference from the grey of each pixel by factors >= 0.

    An image of one channel is unchanged.
    """
    return _on_levels(images, lambda x: blend(x, factors, torch.zeros_like(factors) == 0))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the difference from the smoothed image by factors >= 0.

    The smoothed image is the mean of 3 x 3 pixels, with five times the weight for the central one.
    Pixels at the border are unchanged.
    """
    return _on_levels(images, lambda x: blend(x, factors, torch.zeros_like(factors) > 0))


# Blends ------------------------------------------------------------------------------------------


def blend(images: Tensor, factors: Tensor, of_color: Tensor) -> Tensor:
    """Apply ``color`` to the images chosen by bool [B], and ``sharpness`` to the others.

    Args:
        images: uint8 [B, C, H, W].
        factors: [B]; an image with the factor 1 is unchanged.
    """
    factors, of_color = (stored(x)[:, None, None, None] for x in (factors, of_color))
    x = stored(images).to(torch.float32)
    rest = 1 - factors
    colored = x * factors + torch.floor(grey(x)) * rest if x.shape[1] == 3 else x
    sharpened = x + (_smoothed(x) - x) * rest
    return truncated(torch.where(of_color, colored, sharpened))


def _smoothed(x: Tensor) -> Tensor:
    """Return float [B, C, H, W] of grey levels, with the border of the images."""
    height, width = x.shape[-2:]
    if min(height, width) < 3:
        return x
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]
    # The sum is exact, and no multiple of 1/13 is half-way between two levels.
    inner = torch.nn.functional.pad(torch.round(total / 13), (1, 1, 1, 1))
    row = torch.arange(height, device=x.device)[:, None]
    column = torch.arange(width, device=x.device)
    is_inner = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    return torch.where(is_inner, inner, x)


# Tables ------------------------------------------------------------------------------------------
# A table has the new level of each of 256 levels: float32 [B, 1 or C, 256], of whole numbers.


def apply_table(images: Tensor, table: Tensor) -> Tensor:
    """Look up the levels of uint8 images [B, C, H, W]."""
    shape = (*images.shape[:2], LEVELS)
    levels = stored(table.to(torch.uint8)).expand(shape)
    index = images.flatten(2).to(torch.int64)
    return torch.gather(levels, 2, index).reshape(images.shape)


def identity_table(images: Tensor) -> Tensor:
    """Return the table that changes nothing: [B, 1, 256]."""
    line = torch.arange(LEVELS, dtype=torch.float32, device=images.device)
    return line.expand(images.shape[0], 1, LEVELS)


def scale_levels(table: Tensor, factors: Tensor, origin: Tensor) -> Tensor:
    """Multiply the difference from ``origin`` by ``factors``, [B] each."""
    factors, origin = factors[:, None, None], origin[:, None, None]
    return torch.floor((table * factors + origin * (1 - factors)).clamp(0, LEVELS - 1))


def posterize_levels(table: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits``, [B]."""
    step = torch.exp2(8 - bits.to(torch.float32))[:, None, None]
    return torch.floor(table / step) * step


def solarize_levels(table: Tensor, thresholds: Tensor) -> Tensor:
    """Invert levels from ``255 * thresholds`` up, [B]."""
    least = ((LEVELS - 1) * thresholds)[:, None, None]
    return torch.where(table >= least, LEVELS - 1 - table, table)


def autocontrast_levels(images: Tensor, table: Tensor) -> Tensor:
    """Stretch the levels between the least and the largest of each channel of uint8 images."""
    x = images.flatten(2)
    low, high = (end(-1, keepdim=True).to(torch.float32) for end in (x.amin, x.amax))
    is_flat = high == low
    scale = torch.where(is_flat, 1.0, (high - low) * (1 / (LEVELS - 1)))
    low = torch.where(is_flat, 0.0, low)
    return torch.floor(((table - low) / scale).clamp(0, LEVELS - 1))


def equalize_levels(images: Tensor, table: Tensor) -> Tensor:
    """Equalise the histogram of each channel of uint8 images.

    As in Pillow: with ``step`` the number of pixels, without those of the brightest level present,
    divided by 255, level v becomes ``(pixels below v + step // 2) // step``; a channel whose
    ``step`` is 0 is unchanged. The divisions are of whole numbers below 2**24, whose quotients
    float32 rounds down exactly.
    """
    x = images.flatten(2).to(torch.int64)
    zeros = torch.zeros((*x.shape[:2], LEVELS), dtype=torch.int32, device=x.device)
    counts = zeros.scatter_add(2, x, torch.ones_like(x, dtype=torch.int32))
    below = (counts.cumsum(-1, dtype=torch.int32) - counts).to(torch.float32)
    brightest = x.amax(-1, keepdim=True)
    step = torch.floor(below.gather(2, brightest) / (LEVELS - 1))
    level = torch.floor((below + torch.floor(step / 2)) / step.clamp(min=1))
    return torch.where(step > 0, level.clamp(max=LEVELS - 1), table)


def mean_grey(images: Tensor) -> Tensor:
    """Return the mean grey level of uint8 images: float32 [B]."""
    x = images.to(torch.float32)
    gray = torch.floor(grey(x)) if x.shape[1] == 3 else x
    return gray.mean((1, 2, 3))


def _by_table(images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    def changed(levels: Tensor) -> Tensor:
        return apply_table(levels, change(levels, identity_table(levels)))

    return _on_levels(images, changed)


def _on_levels(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return from_levels(function(to_levels(images)), images.dtype)


def to_levels(images: Tensor) -> Tensor:
    """Return floating images in [0, 1] as uint8, rounded; uint8 images as they are."""
    if not images.is_floating_point():
        return images
    return torch.round(images.to(torch.float32) * (LEVELS - 1)).to(torch.uint8)


def from_levels(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uint8 images in a dtype, floating ones in [0, 1]."""
    if not dtype.is_floating_point:
        return levels
    wide = torch.promote_types(dtype, torch.float32)
    return (levels.to(wide) / (LEVELS - 1)).to(dtype)


def truncated(x: Tensor) -> Tensor:
    """Return floating levels as uint8, rounded down."""
    return x.clamp(0, LEVELS - 1).to(torch.uint8)
