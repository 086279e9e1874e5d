"""Data augmentation: pure functions ``(key, images) -> images`` on batches, on any device.

    augment = chain(random_flip(), random_rotation(10))
    images = augment(random.key(0), images)

Images are uint8 [B, C, H, W] or floating in [0, 1], before normalisation. The result has the same
shape and dtype. Each image has its own draw; the draw of image i depends only on the key and i, not
on the batch size. A strength of zero returns the images unchanged.

Each factory draws parameters and passes them to a function of ``augment.functional``,
``augment.color`` or ``augment.policies``. Arguments out of range raise a ValueError in the factory;
unsuitable images raise one when the result is called.

``augment.mixing`` mixes pairs of images and their labels. ``augment.corruptions`` has those of
CIFAR-10-C, for evaluation.
"""

import math

import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import base, functional, tta  # noqa: F401
from fcifar.augment.base import Augment, identity
from fcifar.augment.corruptions import corrupt  # noqa: F401
from fcifar.augment.functional import Fill
from fcifar.augment.mixing import Mix, cutmix, mixup  # noqa: F401
from fcifar.augment.policies import aug_mix, auto_augment, rand_augment, trivial_augment  # noqa: F401
from fcifar.random import Key

_ERASING_DRAWS = 10


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
    base.check_probability("random_flip", p)

    def flip(key: Key, images: Tensor) -> Tensor:
        return functional.mirror(images, random.bernoulli(key, p, (base.batch_size(images),)))

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
    low, high = base.interval("random_rotation", "degrees", degrees, centre=0.0)
    functional.check_choice("interpolation", interpolation, functional.INTERPOLATIONS)
    functional.check_fill(fill)

    def rotation(key: Key, images: Tensor) -> Tensor:
        angles = base.uniform(key, (base.batch_size(images),), low, high)
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
    base.check_count("random_crop", "padding", padding)
    functional.check_choice("mode", mode, functional.MODES)

    def crop(key: Key, images: Tensor) -> Tensor:
        batch = base.batch_size(images)
        if padding >= min(images.shape[-2:]):
            raise ValueError(
                f"random_crop needs a padding less than the image size {list(images.shape[-2:])}, "
                f"not {padding}"
            )
        down, right = base.random_position(key, batch, 2 * padding + 1, 2 * padding + 1)
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
    base.check_count("cutout", "size", size)
    functional.check_fill(fill)

    def cut(key: Key, images: Tensor) -> Tensor:
        row, column = base.random_position(key, base.batch_size(images), *images.shape[-2:])
        return functional.erase_square(images, row, column, size, fill=fill)

    return cut if size > 0 else identity


def random_erasing(
    p: float = 0.5,
    *,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    fill: Fill = 0.0,
) -> Augment:
    """Erase a random rectangle of each image with probability ``p`` in [0, 1].

    Zhong et al., https://arxiv.org/abs/1708.04896. The area is uniform in ``scale``, as a fraction
    of the image, and the logarithm of height / width is uniform in ``ratio``. Of ten such draws,
    the first one that is smaller than the image in both directions is erased, at a uniform
    position; if none is, the image is unchanged.

    Args:
        scale: bounds in [0, 1].
        ratio: bounds in [0.001, 1000].
        fill: in [0, 1], one value or one per channel. As in torchvision, 0 is black here.

    >>> erase = fcifar.augment.random_erasing(1.0)
    >>> (erase(fcifar.random.key(0), torch.ones(1, 1, 32, 32)) == 0).sum()
    tensor(279)
    """
    base.check_probability("random_erasing", p)
    scale = base.bounds("random_erasing", "scale", scale, 0.0, 1.0)
    ratio = base.bounds("random_erasing", "ratio", ratio, 1e-3, 1e3)
    functional.check_fill(fill)
    low, high = (math.log(end) for end in ratio)

    def erase(key: Key, images: Tensor) -> Tensor:
        shape = (base.batch_size(images), _ERASING_DRAWS)
        side = images.shape[-2:]
        area_key, ratio_key, row_key, column_key, chosen_key = random.split(key, 5)
        area = base.uniform(area_key, shape, *scale) * (side[0] * side[1])
        aspect = torch.exp(base.uniform(ratio_key, shape, low, high))
        sides = torch.round(torch.sqrt(torch.stack([area * aspect, area / aspect])))
        fits = (sides[0] < side[0]) & (sides[1] < side[1])
        chosen = random.bernoulli(chosen_key, p, shape[:1])
        size = [torch.where(chosen, base.first_accepted(x, fits, 0.0), 0.0) for x in sides]
        height, width = (x.to(torch.int64) for x in size)
        top = random.randint(row_key, shape[:1], 0, side[0] - height + 1)
        left = random.randint(column_key, shape[:1], 0, side[1] - width + 1)
        return functional.erase_rectangle(images, top, left, height, width, fill=fill)

    return erase if p > 0 else identity


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
        name: base.interval("color_jitter", name, strength, centre=1.0, least=0.0)
        for name, strength in strengths.items()
    }

    def jitter(key: Key, images: Tensor) -> Tensor:
        batch = base.batch_size(images)
        base.check_rgb("color_jitter", images)
        subkeys = dict(zip(intervals, random.split(key, 3), strict=True))
        factors = {
            name: base.uniform(subkeys[name], (batch,), *bounds)
            for name, bounds in intervals.items()
            if bounds != (1.0, 1.0)
        }
        return functional.adjust_color(images, **factors)

    return jitter if set(intervals.values()) != {(1.0, 1.0)} else identity
