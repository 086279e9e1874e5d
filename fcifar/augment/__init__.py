"""Data augmentation: pure functions ``(key, images) -> images`` on batches, on any device.

    augment = chain(random_flip(), random_rotation(10))
    images = augment(random.key(0), images)

Images are uint8 [B, C, H, W] or floating in [0, 1], before normalisation. The result has the same
shape and dtype. Each image has its own draw; the draw of image i depends only on the key and i, not
on the batch size. A strength of zero returns the images unchanged.

Each factory draws parameters and passes them to a function of ``augment.functional``. Arguments out
of range raise a ValueError in the factory; unsuitable images raise one when the result is called.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import functional, tta  # noqa: F401
from fcifar.augment.functional import Fill
from fcifar.errors import shown
from fcifar.random import Key

Augment = Callable[[Key, Tensor], Tensor]

LARGEST_STRENGTH = 1e6  # degrees or colour factor, in float32
LARGEST_SIZE = 10_000  # pixels; the number of crop positions must fit in 32 bits


def identity(key: Key, images: Tensor) -> Tensor:
    """Return the images unchanged."""
    return images


def chain(*augments: Augment) -> Augment:
    """Apply augmentations in order, the i-th with key i of a split.

    Appending an augmentation does not change the draws of those before it.

    >>> augment = fcifar.augment.chain(fcifar.augment.random_crop(4), fcifar.augment.cutout(8))
    >>> augment(fcifar.random.key(0), torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """

    def augment(key: Key, images: Tensor) -> Tensor:
        for each, subkey in zip(augments, random.split(key, len(augments)), strict=True):
            images = each(subkey, images)
        return images

    return augment


def random_flip(p: float = 0.5) -> Augment:
    """Mirror each image left to right with probability ``p`` in [0, 1].

    >>> images = torch.arange(3.0).expand(4, 1, 1, 3)
    >>> fcifar.augment.random_flip()(fcifar.random.key(0), images)[:, 0, 0]
    tensor([[0., 1., 2.],
            [0., 1., 2.],
            [2., 1., 0.],
            [2., 1., 0.]])
    """
    if not 0 <= p <= 1:
        raise ValueError(f"random_flip needs a probability in [0, 1], not {shown(p)}")

    def flip(key: Key, images: Tensor) -> Tensor:
        return functional.mirror(images, random.bernoulli(key, p, (_batch_size(images),)))

    return flip if p > 0 else identity


def random_rotation(
    degrees: float | tuple[float, float], *, interpolation: str = "nearest", fill: Fill = 0.0
) -> Augment:
    """Rotate each image by an angle uniform in [-degrees, degrees], or in [low, high] of a pair.

    Angles are at most 1e6. See ``functional.rotate`` for the geometry, interpolation and fill.

    >>> turn = fcifar.augment.random_rotation((180, 180))
    >>> turn(fcifar.random.key(0), torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[3., 2.],
              [1., 0.]]]])
    """
    low, high = _interval("random_rotation", "degrees", degrees, centre=0.0)
    functional.check_choice("interpolation", interpolation, functional.INTERPOLATIONS)
    functional.check_fill(fill)

    def rotation(key: Key, images: Tensor) -> Tensor:
        angles = _uniform(key, _batch_size(images), low, high)
        return functional.rotate(images, angles, interpolation=interpolation, fill=fill)

    return rotation if low != 0 or high != 0 else identity


def random_crop(padding: int, *, mode: str = "zeros") -> Augment:
    """Pad each side by ``padding`` pixels and crop at a random position to the original size.

    This is a translation by up to ``padding`` pixels along each axis, uniform over all such
    translations.

    Args:
        padding: 0 or more, and less than the image size.
        mode: "zeros" (black) or "reflect" (mirrored at the border pixel, which is not repeated).

    >>> crop = fcifar.augment.random_crop(1)
    >>> crop(fcifar.random.key(3), torch.arange(1.0, 5.0).reshape(1, 1, 2, 2))
    tensor([[[[0., 0.],
              [2., 0.]]]])
    """
    _check_count("random_crop", "padding", padding)
    functional.check_choice("mode", mode, functional.MODES)

    def crop(key: Key, images: Tensor) -> Tensor:
        batch = _batch_size(images)
        if padding >= min(images.shape[-2:]):
            raise ValueError(
                f"random_crop needs a padding less than the image size {list(images.shape[-2:])}, "
                f"not {padding}"
            )
        down, right = _random_position(key, batch, 2 * padding + 1, 2 * padding + 1)
        return functional.translate(images, down - padding, right - padding, mode=mode)

    return crop if padding > 0 else identity


def cutout(size: int, *, fill: Fill = 0.0) -> Augment:
    """Erase a ``size`` x ``size`` square (size in [0, 10000]) around a random pixel of each image.

    The centre is uniform over the pixels, and the square is clipped at the border, as in DeVries
    and Taylor, https://arxiv.org/abs/1708.04552. They erase with zeros after normalisation, that
    is, with the mean of the data set. Here 0 is black; pass the mean as ``fill`` for the same
    result.

    >>> cut = fcifar.augment.cutout(2, fill=0.5)(fcifar.random.key(0), torch.ones(1, 1, 4, 4))
    >>> (cut == 0.5).sum()
    tensor(4)
    """
    _check_count("cutout", "size", size)
    functional.check_fill(fill)

    def cut(key: Key, images: Tensor) -> Tensor:
        row, column = _random_position(key, _batch_size(images), *images.shape[-2:])
        return functional.erase_square(images, row, column, size, fill=fill)

    return cut if size > 0 else identity


def color_jitter(
    brightness: float | tuple[float, float] = 0.0,
    contrast: float | tuple[float, float] = 0.0,
    saturation: float | tuple[float, float] = 0.0,
) -> Augment:
    """Change brightness, contrast and saturation of RGB images, in this order, by random factors.

    A factor is uniform in [max(0, 1 - strength), 1 + strength], or in [low, high] of a pair within
    [0, 1e6], with the same meaning as in torchvision: brightness scales towards black, contrast
    towards the mean grey of the image, saturation towards the grey of each pixel. Unlike in
    torchvision, the order is fixed and uint8 images are rounded once, at the end.

    >>> darken = fcifar.augment.color_jitter(brightness=(0.5, 0.5))
    >>> darken(fcifar.random.key(0), torch.full((1, 3, 1, 1), 200, dtype=torch.uint8)).flatten()
    tensor([100, 100, 100], dtype=torch.uint8)
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    intervals = {
        name: _interval("color_jitter", name, strength, centre=1.0, least=0.0)
        for name, strength in strengths.items()
    }

    def jitter(key: Key, images: Tensor) -> Tensor:
        batch = _batch_size(images)
        if images.shape[1] != 3:
            raise ValueError(f"color_jitter needs images [B, 3, H, W], not {list(images.shape)}")
        subkeys = dict(zip(intervals, random.split(key, 3), strict=True))
        factors = {
            name: _uniform(subkeys[name], batch, *interval)
            for name, interval in intervals.items()
            if interval != (1.0, 1.0)
        }
        return functional.adjust_color(images, **factors)

    return jitter if set(intervals.values()) != {(1.0, 1.0)} else identity


# Draws and checks --------------------------------------------------------------------------------


def _batch_size(images: Tensor) -> int:
    functional.check_images(images)
    return images.shape[0]


def _uniform(key: Key, size: int, low: float, high: float) -> Tensor:
    if low == high:
        return torch.full((size,), low, dtype=torch.float32, device=key.device)
    return random.uniform(key, (size,), low, high)


def _random_position(key: Key, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw rows in [0, height) and columns in [0, width), uniform over the grid: int64 [size]."""
    index = random.randint(key, (size,), 0, height * width)
    return index // width, index % width


def _interval(
    where: str,
    name: str,
    value: float | tuple[float, float],
    *,
    centre: float,
    least: float = -LARGEST_STRENGTH,
) -> tuple[float, float]:
    """Return the interval of a strength around ``centre``, or a pair of bounds as it is."""
    if isinstance(value, float | int):
        valid = 0 <= value <= LARGEST_STRENGTH
        ends = [max(least, centre - value), centre + value] if valid else []
    else:
        ends = list(value)
        valid = len(ends) == 2 and least <= ends[0] <= ends[1] <= LARGEST_STRENGTH
    if not valid:
        most = f"{LARGEST_STRENGTH:,.0f}"
        raise ValueError(
            f"{where} needs {name} as a number from 0 to {most}, or as (low, high) with "
            f"{least:,.0f} <= low <= high <= {most}, not {shown(value)}"
        )
    return float(ends[0]), float(ends[1])


def _check_count(where: str, name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_SIZE:
        raise ValueError(
            f"{where} needs {name} as an integer from 0 to {LARGEST_SIZE:,}, not {shown(value)}"
        )
