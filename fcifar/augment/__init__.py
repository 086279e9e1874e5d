"""Augmentation: pure functions ``(key, images) -> images`` over whole batches, on any device.

    augment = chain(random_flip(), random_rotation(10))
    images = augment(random.key(0), images)

Images are uint8 [B, C, H, W], or floating in [0, 1], as the data set holds them: augmentation comes
before normalisation. What comes out has the same shape and dtype. Every example has a draw of its
own, and example i's depends on the key and on i alone, never on how many examples there are.
A strength of zero gives the images as they are.

Each factory here draws parameters and hands them to a function of ``augment.functional``.
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

LARGEST_STRENGTH = 1e6  # of degrees and of colours, which are float32
LARGEST_SIZE = 10_000  # pixels; all the places of a crop are numbered in 32 bits


def chain(*augments: Augment) -> Augment:
    """One after the other, augmentation i with key i of a split.

    Another augmentation at the end leaves the draws of those before it as they were.

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

    Raises:
        ValueError: ``p`` is outside [0, 1].

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

    return flip if p > 0 else _unchanged


def random_rotation(
    degrees: float | tuple[float, float],
    *,
    interpolation: str = "nearest",
    fill: Fill = 0.0,
) -> Augment:
    """Rotate each image by an angle uniform in [-degrees, degrees], or in [low, high] of a pair.

    See ``rotate`` for the geometry.

    Raises:
        ValueError: a number outside [0, 1e6], a pair out of order or outside [-1e6, 1e6], or an
            unknown interpolation or fill.

    >>> turn = fcifar.augment.random_rotation((180, 180))
    >>> turn(fcifar.random.key(0), torch.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[3., 2.],
              [1., 0.]]]])
    """
    low, high = _interval("random_rotation", "degrees", degrees, centre=0.0)
    functional.check_interpolation(interpolation)
    functional.check_fill(fill)

    def rotation(key: Key, images: Tensor) -> Tensor:
        angles = _uniform(key, _batch_size(images), low, high)
        return functional.rotate(images, angles, interpolation=interpolation, fill=fill)

    return rotation if low != 0 or high != 0 else _unchanged


def random_crop(padding: int, *, mode: str = "zeros") -> Augment:
    """Pad each side by ``padding`` pixels, then cut the original size out at a random place.

    That is a translation by up to ``padding`` pixels along each axis, all (2 padding + 1)**2 of
    them equally likely; some recipes know it by that name. ``mode`` is "zeros" (black) or "reflect"
    (mirrored about the border pixel, which is not repeated).

    Raises:
        ValueError: ``padding`` is not an integer from 0 to 10,000, or the mode is unknown; when
            called, a reflecting ``padding`` that is not less than the image's height and width.

    >>> crop = fcifar.augment.random_crop(1)
    >>> crop(fcifar.random.key(3), torch.arange(1.0, 5.0).reshape(1, 1, 2, 2))
    tensor([[[[0., 0.],
              [2., 0.]]]])
    """
    _check_count("random_crop", "padding", padding)
    functional.check_mode(mode)

    def crop(key: Key, images: Tensor) -> Tensor:
        batch = _batch_size(images)
        if mode == "reflect" and padding >= min(images.shape[-2:]):
            raise ValueError(
                f"random_crop can reflect fewer pixels than the {list(images.shape[-2:])} of the "
                f"images, not {padding}"
            )
        down, right = _place(key, batch, 2 * padding + 1, 2 * padding + 1)
        return functional.translate(images, down - padding, right - padding, mode=mode)

    return crop if padding > 0 else _unchanged


def cutout(size: int, *, fill: Fill = 0.0) -> Augment:
    """Erase a ``size`` x ``size`` square about a random pixel of each image.

    The centre is uniform over the pixels, and what of the square lies outside the image is lost, as
    in DeVries and Taylor, https://arxiv.org/abs/1708.04552. They erase with zeros after
    normalisation, which is the data set's mean; here, before it, zero is black. Give the mean
    as ``fill`` to do as they did.

    Raises:
        ValueError: ``size`` is not an integer from 0 to 10,000, or an unknown fill.

    >>> cut = fcifar.augment.cutout(2, fill=0.5)(fcifar.random.key(0), torch.ones(1, 1, 4, 4))
    >>> (cut == 0.5).sum()
    tensor(4)
    """
    _check_count("cutout", "size", size)
    functional.check_fill(fill)

    def cut(key: Key, images: Tensor) -> Tensor:
        row, column = _place(key, _batch_size(images), *images.shape[-2:])
        return functional.erase_square(images, row, column, size, fill=fill)

    return cut if size > 0 else _unchanged


def color_jitter(
    brightness: float | tuple[float, float] = 0.0,
    contrast: float | tuple[float, float] = 0.0,
    saturation: float | tuple[float, float] = 0.0,
) -> Augment:
    """Change brightness, then contrast, then saturation of RGB images, each by its own factor.

    A factor is uniform in [max(0, 1 - strength), 1 + strength], or in [low, high] of a pair, and
    means what it means in torchvision: brightness scales towards black, contrast towards the
    image's mean grey, saturation towards each pixel's grey. Unlike torchvision the order is fixed,
    and uint8 images are rounded once, at the end.

    Raises:
        ValueError: a number outside [0, 1e6], or a pair out of order or outside it; when called,
            images without three channels.

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
        factors = {
            name: _uniform(subkey, batch, low, high)
            for (name, (low, high)), subkey in zip(
                intervals.items(), random.split(key, 3), strict=True
            )
            if low != 1 or high != 1
        }
        return functional.adjust_color(images, **factors)

    return jitter if any(interval != (1.0, 1.0) for interval in intervals.values()) else _unchanged


# Draws and intervals -----------------------------------------------------------------------------


def _unchanged(key: Key, images: Tensor) -> Tensor:
    return images


def _batch_size(images: Tensor) -> int:
    functional.check_images(images)
    return images.shape[0]


def _uniform(key: Key, size: int, low: float, high: float) -> Tensor:
    if low == high:
        return torch.full((size,), low, dtype=torch.float32, device=key.device)
    return random.uniform(key, (size,), low, high)


def _place(key: Key, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows below ``height`` and columns below ``width``, int64 [size], uniform over the grid."""
    place = random.randint(key, (size,), 0, height * width)
    return place // width, place % width


def _interval(
    where: str,
    name: str,
    value: float | tuple[float, float],
    *,
    centre: float,
    least: float = -LARGEST_STRENGTH,
) -> tuple[float, float]:
    """The interval that a strength, or a pair of bounds, asks for."""
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
