"""Augmentation: pure functions ``(key, images) -> images`` over whole batches, on any device.

    augment = chain(random_flip(), random_rotation(10))
    images = augment(random.key(0), images)

Images are uint8 [B, C, H, W], or floating in [0, 1], as the data set holds them: augmentation comes
before normalisation. What comes out has the same shape and dtype. Every example has a draw of its
own, and example i's depends on the key and on i alone, never on how many examples there are.
A strength of zero gives the images as they are.

The functions that need no key (``rotate``, ``translate``, ``erase_square``) do the work and stand
on their own; the factories draw and call them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fcifar import random
from fcifar.random import Key

Augment = Callable[[Key, Tensor], Tensor]
Fill = float | Sequence[float]  # in [0, 1], whatever the dtype of the images; or one a channel


def chain(*augments: Augment) -> Augment:
    """One after the other, augmentation i with key i of a split.

    Another augmentation at the end leaves the draws of those before it as they were.
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
    """
    if not 0 <= p <= 1:
        raise ValueError(f"random_flip needs a probability in [0, 1], not {p}")

    def flip(key: Key, images: Tensor) -> Tensor:
        return mirror(images, random.bernoulli(key, p, (_batch_size(images),)))

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
        ValueError: a negative number, a pair out of order, or an unknown interpolation or fill.
    """
    low, high = _interval("random_rotation", "degrees", degrees, centre=0.0)
    _check_choice("random_rotation", "interpolation", interpolation, INTERPOLATIONS)
    _check_fill("random_rotation", fill)

    def rotation(key: Key, images: Tensor) -> Tensor:
        angles = _uniform(key, _batch_size(images), low, high)
        return rotate(images, angles, interpolation=interpolation, fill=fill)

    return rotation if low != 0 or high != 0 else _unchanged


def random_crop(padding: int, *, mode: str = "zeros") -> Augment:
    """Pad each side by ``padding`` pixels, then cut the original size out at a random place.

    That is a translation by up to ``padding`` pixels along each axis, all (2 padding + 1)**2 of
    them equally likely; some recipes know it by that name. ``mode`` is "zeros" (black) or "reflect"
    (mirrored about the border pixel, which is not repeated).

    Raises:
        ValueError: ``padding`` is no integer from 0 up, or an unknown mode; when called, a
            reflecting ``padding`` that is not less than the image's height and width.
    """
    _check_count("random_crop", "padding", padding)
    _check_choice("random_crop", "mode", mode, MODES)

    def crop(key: Key, images: Tensor) -> Tensor:
        batch = _batch_size(images)
        if mode == "reflect" and padding >= min(images.shape[-2:]):
            raise ValueError(
                f"random_crop can reflect fewer pixels than the {list(images.shape[-2:])} of the "
                f"images, not {padding}"
            )
        down, right = _place(key, batch, 2 * padding + 1, 2 * padding + 1)
        return translate(images, down - padding, right - padding, mode=mode)

    return crop if padding > 0 else _unchanged


def cutout(size: int, *, fill: Fill = 0.0) -> Augment:
    """Erase a ``size`` x ``size`` square about a random pixel of each image.

    The centre is uniform over the pixels, and what of the square lies outside the image is lost, as
    in DeVries and Taylor, https://arxiv.org/abs/1708.04552. They erase with zeros after
    normalisation, which is the data set's mean; here, before it, zero is black. Give the mean
    as ``fill`` to do as they did.

    Raises:
        ValueError: ``size`` is no integer from 0 up, or an unknown fill.
    """
    _check_count("cutout", "size", size)
    _check_fill("cutout", fill)

    def cut(key: Key, images: Tensor) -> Tensor:
        row, column = _place(key, _batch_size(images), *images.shape[-2:])
        return erase_square(images, row, column, size, fill=fill)

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
        ValueError: a negative number, or a pair out of order; when called, images without three
            channels.
    """
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    intervals = [
        _interval("color_jitter", name, value, centre=1.0, least=0.0)
        for name, value in strengths.items()
    ]

    def jitter(key: Key, images: Tensor) -> Tensor:
        batch = _batch_size(images)
        if images.shape[1] != 3:
            raise ValueError(f"color_jitter needs images [B, 3, H, W], not {list(images.shape)}")
        x = _to_unit(images)
        for subkey, (low, high), towards in zip(
            random.split(key, 3), intervals, (_black, _mean_grey, _grey), strict=True
        ):
            if low != 1 or high != 1:
                x = _blend(x, towards(x), _uniform(subkey, batch, low, high))
        return _from_unit(x, images.dtype)

    return jitter if any(interval != (1.0, 1.0) for interval in intervals) else _unchanged


# What needs no key -------------------------------------------------------------------------------

INTERPOLATIONS = ("nearest", "bilinear")
MODES = ("zeros", "reflect")


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """The ``chosen`` images (bool [B]) mirrored left to right, the others as they are."""
    width = images.shape[-1]
    column = torch.arange(width, device=images.device)
    columns = torch.where(_stored(chosen)[:, None], width - 1 - column, column)
    return torch.gather(images, 3, columns[:, None, None].expand(images.shape))


def rotate(
    images: Tensor, angles: Tensor, *, interpolation: str = "nearest", fill: Fill = 0.0
) -> Tensor:
    """Images turned counter-clockwise about their centres by ``angles``, in degrees [B].

    The centre is the middle of the image, between the pixels where a side is even. Each pixel of
    the result looks up where it came from, in the nearest pixel or in the bilinear mean of the four
    around that place; outside the image lies ``fill``. This is the geometry of torchvision's
    ``rotate`` of tensors.
    """
    _check_choice("rotate", "interpolation", interpolation, INTERPOLATIONS)
    height, width = images.shape[-2:]
    radians = angles.to(torch.float32) * (math.pi / 180)
    # The compiler would compute them anew for each pixel, did it not have to store them.
    cos, sin = _stored(torch.stack([torch.cos(radians), torch.sin(radians)]))[:, :, None, None]
    dy = torch.arange(height, device=images.device, dtype=torch.float32)[:, None] - (height - 1) / 2
    dx = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = sin * dx + cos * dy + (height - 1) / 2
    x = cos * dx - sin * dy + (width - 1) / 2
    outside = _colour(fill, images)

    def look_up(row: Tensor, column: Tensor) -> Tensor:
        return _look_up(images, row.to(torch.int32), column.to(torch.int32), outside)

    if interpolation == "nearest":
        return look_up(torch.round(y), torch.round(x))
    top, left = torch.floor(y), torch.floor(x)
    down, right = (y - top)[:, None], (x - left)[:, None]
    upper = torch.lerp(_float(look_up(top, left)), _float(look_up(top, left + 1)), right)
    lower = torch.lerp(_float(look_up(top + 1, left)), _float(look_up(top + 1, left + 1)), right)
    return _to_dtype(torch.lerp(upper, lower, down), images.dtype)


def translate(images: Tensor, down: Tensor, right: Tensor, *, mode: str = "zeros") -> Tensor:
    """Images moved by whole pixels, integers [B]: content goes down and to the right.

    What comes in at the border is black, or with ``mode="reflect"`` mirrored, for moves of less
    than the image's size.
    """
    _check_choice("translate", "mode", mode, MODES)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - _stored(down)[:, None, None]
    columns = torch.arange(width, device=images.device) - _stored(right)[:, None, None]
    if mode == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    return _look_up(images, rows, columns, _colour(0.0, images))


def erase_square(
    images: Tensor, rows: Tensor, columns: Tensor, size: int, *, fill: Fill = 0.0
) -> Tensor:
    """Images without a ``size`` x ``size`` square about the pixels (rows, columns), integers [B].

    A square of an even size reaches one pixel further up and to the left than down and to the
    right. ``fill`` takes its place.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None] - _stored(row)[:, None, None]
    x = torch.arange(width, device=images.device) - _stored(column)[:, None, None]
    y, x = y + size // 2, x + size // 2
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    return torch.where(inside[:, None], _colour(fill, images), images)


def _look_up(images: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """``images[b, :, rows[b], columns[b]]``, and ``outside`` where that is no pixel.

    ``rows`` and ``columns`` are integers that broadcast to [B, H, W].
    """
    height, width = images.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = index.to(torch.int64).flatten(1)[:, None].expand(-1, images.shape[1], -1)
    found = torch.gather(images.flatten(2), 2, index).reshape(images.shape)
    return torch.where(inside[:, None], found, outside)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """``a`` and ``b`` with a share of b in [0, 1]; a itself, to the bit, where that is 0."""
    a, b = _to_float(a), _to_float(b)
    return a + share * (b - a)


def _reflect(index: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()


def _blend(images: Tensor, towards: Tensor, factors: Tensor) -> Tensor:
    factors = _over_pixels(factors)
    return (images * factors + towards * (1 - factors)).clamp(0, 1)


def _black(images: Tensor) -> Tensor:
    return torch.zeros_like(images)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _mean_grey(images: Tensor) -> Tensor:
    return _grey(images).mean((-3, -2, -1), keepdim=True)


# Draws, dtypes, misuse ---------------------------------------------------------------------------


def _unchanged(key: Key, images: Tensor) -> Tensor:
    return images


def _batch_size(images: Tensor) -> int:
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "augmentation takes images [B, C, H, W], uint8 or floating, "
            f"not {images.dtype} {list(images.shape)}"
        )
    return images.shape[0]


def _uniform(key: Key, size: int, low: float, high: float) -> Tensor:
    if low == high:
        return torch.full((size,), low, dtype=torch.float32, device=key.device)
    return random.uniform(key, (size,), low, high)


def _place(key: Key, size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows below ``height`` and columns below ``width``, int64 [size], uniform over the grid."""
    place = random.randint(key, (size,), 0, height * width)
    return place // width, place % width


def _over_pixels(values: Tensor) -> Tensor:
    """One value an example, [B], as [B, 1, 1, 1]."""
    return _stored(values)[:, None, None, None]


def _stored(x: Tensor) -> Tensor:
    """``x`` itself, which the compiler keeps in memory from here on.

    It would rather compute a draw anew for every pixel that uses it; a view with explicit strides
    of a result needs that result in memory.
    """
    x = x.contiguous()
    return torch.as_strided(x, x.shape, x.stride())


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _to_unit(images: Tensor) -> Tensor:
    x = _float(images)
    return x if images.is_floating_point() else x / 255


def _from_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _to_dtype(x if dtype.is_floating_point else x * 255, dtype)


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if dtype.is_floating_point else torch.round(x).to(dtype)


def _colour(fill: Fill, images: Tensor) -> Tensor:
    """``fill`` in the units of the images: [1, 1, 1], or [C, 1, 1]."""
    values = [fill] if isinstance(fill, float | int) else list(fill)
    x = torch.tensor(values, dtype=torch.float32, device=images.device)
    return _from_unit(x, images.dtype)[:, None, None]


def _interval(
    where: str,
    name: str,
    value: float | tuple[float, float],
    *,
    centre: float,
    least: float = -math.inf,
) -> tuple[float, float]:
    """The interval that a strength, or a pair of bounds, asks for."""
    if isinstance(value, float | int):
        valid = 0 <= value < math.inf
        low, high = max(least, centre - value), centre + value
    else:
        low, high = value
        valid = least <= low <= high and all(map(math.isfinite, value))
    if not valid:
        bounds = "low <= high" if least == -math.inf else f"{least} <= low <= high"
        raise ValueError(
            f"{where} needs {name} as a number from 0 up, or as (low, high) with {bounds}, "
            f"not {value}"
        )
    return float(low), float(high)


def _check_count(where: str, name: str, value: int) -> None:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{where} needs {name} as an integer from 0 up, not {value}")


def _check_choice(where: str, name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{where} knows {name} {' and '.join(choices)}, not {value!r}")


def _check_fill(where: str, fill: Fill) -> None:
    values = [fill] if isinstance(fill, float | int) else list(fill)
    if not values or not all(0 <= v <= 1 for v in values):
        raise ValueError(
            f"{where} needs fill in [0, 1], one number or one for each channel, not {fill}"
        )
