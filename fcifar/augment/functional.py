"""Transforms of whole batches of images, each example by a parameter of its own; no randomness.

Images are uint8 [B, C, H, W], or floating in [0, 1]; what comes out has the same shape and dtype.
Parameters are tensors [B]. ``augment`` draws them.

Geometry is a look-up: each pixel of the result finds the place it came from and reads it. A chain
of look-ups in integer coordinates fuses into one under ``torch.compile``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Fill = float | Sequence[float]  # in [0, 1], whatever the dtype of the images; or one a channel


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """The ``chosen`` images (bool [B]) mirrored left to right, the others as they are.

    >>> images = torch.arange(3).to(torch.uint8).expand(2, 1, 1, 3)
    >>> fcifar.augment.functional.mirror(images, torch.tensor([True, False]))[:, 0, 0]
    tensor([[2, 1, 0],
            [0, 1, 2]], dtype=torch.uint8)
    """
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

    Args:
        images: uint8 or floating [B, C, H, W]; so is what comes out.
        angles: [B], in degrees.
        interpolation: "nearest" or "bilinear".
        fill: in [0, 1], for all channels or for each.

    Raises:
        ValueError: an unknown interpolation, or a fill that is not a colour.
    """
    check_interpolation(interpolation)
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
    upper = _mix(look_up(top, left), look_up(top, left + 1), right)
    lower = _mix(look_up(top + 1, left), look_up(top + 1, left + 1), right)
    return _to_dtype(_mix(upper, lower, down), images.dtype)


def translate(images: Tensor, down: Tensor, right: Tensor, *, mode: str = "zeros") -> Tensor:
    """Images moved by whole pixels, integers [B]: content goes down and to the right.

    What comes in at the border is black, or with ``mode="reflect"`` mirrored, for moves of less
    than the image's size.

    Raises:
        ValueError: an unknown mode.

    >>> images, by = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2), torch.tensor([1])
    >>> fcifar.augment.functional.translate(images, by, torch.tensor([0]))
    tensor([[[[0., 0.],
              [1., 2.]]]])
    """
    check_mode(mode)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - _stored(down)[:, None, None]
    columns = torch.arange(width, device=images.device) - _stored(right)[:, None, None]
    if mode == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    return _look_up(images, rows, columns, _colour(0.0, images))


def resize(images: Tensor, size: int) -> Tensor:
    """Images [..., H, W] made ``size`` pixels high and wide.

    Each pixel of the result is a mean over a tent as wide as two of its pixels: bilinear, with
    antialiasing where it makes images smaller, as torchvision's ``resize`` has it. Unlike there it
    is two products with a matrix, on any device and through ``vmap``.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"resize needs a size from 1 up, not {size}")
    if tuple(images.shape[-2:]) == (size, size):
        return images
    x = _float(images)
    down, right = (_tents(side, size, x) for side in images.shape[-2:])
    return _to_dtype(down @ x @ right.T, images.dtype)


def _tents(side: int, size: int, like: Tensor) -> Tensor:
    """The matrix [size, side] of a resampling, in the dtype of ``like``; rows add up to 1."""
    ratio = side / size
    source = torch.arange(side, dtype=like.dtype, device=like.device) + 0.5
    centre = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * ratio
    weight = (1 - (source - centre[:, None]).abs() / max(ratio, 1.0)).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


def erase_square(
    images: Tensor, row: Tensor, column: Tensor, size: int, *, fill: Fill = 0.0
) -> Tensor:
    """Images with ``fill`` in a ``size`` x ``size`` square about pixel (row, column), integers [B].

    A square of an even size reaches one pixel further up and to the left than down and to the
    right.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None] - _stored(row)[:, None, None]
    x = torch.arange(width, device=images.device) - _stored(column)[:, None, None]
    y, x = y + size // 2, x + size // 2
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    return torch.where(inside[:, None], _colour(fill, images), images)


def adjust_color(
    images: Tensor,
    *,
    brightness: Tensor | None = None,
    contrast: Tensor | None = None,
    saturation: Tensor | None = None,
) -> Tensor:
    """RGB images with brightness, then contrast, then saturation multiplied by factors from 0 up.

    A factor mixes the image with black, with its mean grey, or each pixel with its own grey; 1 is
    the image as it is, 0 the other. Each result is clamped to [0, 1]. The factors mean what they
    mean in torchvision; unlike there, uint8 images are rounded, and only at the end.
    """
    x = _float(images) if images.is_floating_point() else _float(images) / 255
    if brightness is not None:
        x = _scale_from(torch.zeros_like(x), x, brightness)
    if contrast is not None:
        x = _scale_from(_grey(x).mean((-3, -2, -1), keepdim=True), x, contrast)
    if saturation is not None:
        x = _scale_from(_grey(x), x, saturation)
    return _from_unit(x, images.dtype)


# Misuse ------------------------------------------------------------------------------------------


def check_images(images: Tensor) -> None:
    """Raise ValueError unless this is a batch of images."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "images are uint8 or floating tensors [B, C, H, W], "
            f"not {images.dtype} {list(images.shape)}"
        )


def check_interpolation(interpolation: str) -> None:
    """Raise ValueError unless ``rotate`` knows this interpolation."""
    if interpolation not in ("nearest", "bilinear"):
        raise ValueError(f"interpolation is 'nearest' or 'bilinear', not {interpolation!r}")


def check_mode(mode: str) -> None:
    """Raise ValueError unless ``translate`` knows this mode."""
    if mode not in ("zeros", "reflect"):
        raise ValueError(f"mode is 'zeros' or 'reflect', not {mode!r}")


def check_fill(fill: Fill) -> None:
    """Raise ValueError unless this is a colour."""
    values = _channels(fill)
    if not values or not all(0 <= v <= 1 for v in values):
        raise ValueError(f"fill is a number in [0, 1], or one for each channel, not {fill}")


# Parts -------------------------------------------------------------------------------------------


def _look_up(images: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """``images[b, :, rows[b], columns[b]]``, and ``outside`` beyond the border.

    ``rows`` and ``columns`` are integers that broadcast to [B, H, W].
    """
    height, width = images.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # Worked out once for all channels, not anew in each.
    index = _stored(torch.where(inside, rows * width + columns, -1))[:, None]
    index = index.expand(-1, images.shape[1], -1, -1)
    place = index.clamp(min=0).to(torch.int64)
    found = torch.gather(images.flatten(2), 2, place.flatten(2)).reshape(images.shape)
    return torch.where(index >= 0, found, outside)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """``a`` and ``b`` with a share of b in [0, 1]; a itself, to the bit, where that is 0."""
    a, b = _float(a), _float(b)
    return a + share * (b - a)


def _reflect(index: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - index.abs()).abs()


def _scale_from(origin: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    factors = _stored(factors)[:, None, None, None]
    return (images * factors + origin * (1 - factors)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]  # torchvision's weights


def _stored(x: Tensor) -> Tensor:
    """``x`` itself, which the compiler keeps in memory from here on.

    It would rather compute a draw anew for every pixel that uses it; a view with explicit strides
    of a result needs that result in memory.
    """
    x = x.contiguous()
    return torch.as_strided(x, x.shape, x.stride())


def _float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _from_unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _to_dtype(x if dtype.is_floating_point else x * 255, dtype)


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if dtype.is_floating_point else torch.round(x).to(dtype)


def _colour(fill: Fill, images: Tensor) -> Tensor:
    """``fill`` in the units of the images: [1, 1, 1], or [C, 1, 1]."""
    values = _channels(fill)
    if len(values) not in (1, images.shape[1]):
        raise ValueError(
            f"fill is one number, or one for each of {images.shape[1]} channels, not {fill}"
        )
    x = torch.tensor(values, dtype=torch.float32, device=images.device)
    return _from_unit(x, images.dtype)[:, None, None]


def _channels(fill: Fill) -> list[float]:
    return [float(v) for v in ([fill] if isinstance(fill, float | int) else fill)]
