"""Batched image transforms with one parameter per image, without randomness.

Images are uint8 [B, C, H, W] or floating in [0, 1]; the result has the same shape and dtype.
Parameters are tensors [B], drawn by ``augment``. Invalid arguments raise a ValueError.

Geometric transforms compute the source position of each output pixel and read it. A chain of such
reads in integer coordinates fuses into one under ``torch.compile``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcifar import layers

INTERPOLATIONS = ("nearest", "bilinear")
MODES = ("zeros", "reflect")
Fill = float | Sequence[float]  # in [0, 1] for any dtype of images; one, or one per channel


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the ``chosen`` images (bool [B]) left to right.

    >>> images = torch.arange(3).to(torch.uint8).expand(2, 1, 1, 3)
    >>> fcifar.augment.functional.mirror(images, torch.tensor([True, False]))[:, 0, 0]
    tensor([[2, 1, 0],
            [0, 1, 2]], dtype=torch.uint8)
    """
    width = images.shape[-1]
    column = torch.arange(width, device=images.device)
    columns = torch.where(stored(chosen)[:, None], width - 1 - column, column)
    return torch.gather(images, 3, columns[:, None, None].expand(images.shape))


def rotate(
    images: Tensor, angles: Tensor, *, interpolation: str = "nearest", fill: Fill = 0.0
) -> Tensor:
    """Rotate images counter-clockwise about their centres.

    The centre lies between the pixels if a side is even. Each output pixel is read from the nearest
    pixel at its source position, or is the bilinear mean of the four pixels around it; ``fill``
    lies outside the image. The geometry is that of torchvision's ``rotate`` on tensors.

    Args:
        images: uint8 or floating [B, C, H, W].
        angles: [B], in degrees.
        interpolation: "nearest" or "bilinear".
        fill: in [0, 1], one value or one per channel.
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    height, width = images.shape[-2:]
    radians = angles.to(torch.float32) * (math.pi / 180)
    # Stored, because the compiler would otherwise recompute them for each pixel.
    cos, sin = stored(torch.stack([torch.cos(radians), torch.sin(radians)]))[:, :, None, None]
    dy = torch.arange(height, device=images.device, dtype=torch.float32)[:, None] - (height - 1) / 2
    dx = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = sin * dx + cos * dy + (height - 1) / 2
    x = cos * dx - sin * dy + (width - 1) / 2
    return _sample(images, y, x, interpolation, fill)


def affine(
    images: Tensor, matrix: Tensor, *, interpolation: str = "nearest", fill: Fill = 0.0
) -> Tensor:
    """Read each output pixel at ``matrix @ (x, y, 1)``, in pixels from the centre of the image.

    x counts to the right and y down. The interpolation is as in ``rotate``. The geometry is that of
    torchvision's ``affine`` on tensors, of which this takes the inverse matrix.

    Args:
        images: uint8 or floating [B, C, H, W].
        matrix: float32 [B, 2, 3].
        interpolation: "nearest" or "bilinear".
        fill: in [0, 1], one value or one per channel.

    >>> images = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> matrix = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # from one pixel to the right
    >>> fcifar.augment.functional.affine(images, matrix)
    tensor([[[[1., 0.],
              [3., 0.]]]])
    """
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    height, width = images.shape[-2:]
    dy = torch.arange(height, device=images.device, dtype=torch.float32)[:, None] - (height - 1) / 2
    dx = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    of_x, of_y = stored(matrix)[..., None, None].unbind(1)  # [B, 3, 1, 1] each
    x, y = (row[:, 0] * dx + row[:, 1] * dy + row[:, 2] for row in (of_x, of_y))
    return _sample(images, y + (height - 1) / 2, x + (width - 1) / 2, interpolation, fill)


def translate(images: Tensor, down: Tensor, right: Tensor, *, mode: str = "zeros") -> Tensor:
    """Shift images down and to the right by whole pixels, integers [B].

    The border is black, or mirrored with ``mode="reflect"``, for shifts less than the image size.

    >>> images, by = torch.arange(1.0, 5.0).reshape(1, 1, 2, 2), torch.tensor([1])
    >>> fcifar.augment.functional.translate(images, by, torch.tensor([0]))
    tensor([[[[0., 0.],
              [1., 2.]]]])
    """
    check_choice("mode", mode, MODES)
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - stored(down)[:, None, None]
    columns = torch.arange(width, device=images.device) - stored(right)[:, None, None]
    if mode == "reflect":
        rows, columns = reflect(rows, height), reflect(columns, width)
    return _look_up(images, rows, columns, _colour(0.0, images))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images [..., H, W] to ``size`` x ``size`` pixels, with ``size`` >= 1.

    Bilinear, with antialiasing when shrinking, as torchvision's ``resize``. It is computed as two
    matrix products, which work on any device and under ``vmap``.
    """
    if size < 1:
        raise ValueError(f"resize needs a size from 1 up, not {size}")
    if tuple(images.shape[-2:]) == (size, size):
        return images
    x = _float(images)
    down, right = (_resize_matrix(side, size, x) for side in images.shape[-2:])
    return _to_dtype(down @ x @ right.T, images.dtype)


def _resize_matrix(side: int, size: int, like: Tensor) -> Tensor:
    """Return the resampling matrix [size, side] in the dtype of ``like``; rows sum to 1."""
    ratio = side / size
    source = torch.arange(side, dtype=like.dtype, device=like.device) + 0.5
    centre = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * ratio
    weight = (1 - (source - centre[:, None]).abs() / max(ratio, 1.0)).clamp(min=0)
    return weight / weight.sum(1, keepdim=True)


def erase_square(
    images: Tensor, row: Tensor, column: Tensor, size: int, *, fill: Fill = 0.0
) -> Tensor:
    """Fill a ``size`` x ``size`` square around pixel (row, column), integers [B].

    A square of even size extends one pixel further up and left than down and right.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device)[:, None] - stored(row)[:, None, None]
    x = torch.arange(width, device=images.device) - stored(column)[:, None, None]
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
    """Multiply brightness, contrast and saturation of RGB images, in this order, by factors >= 0.

    A factor interpolates between black (brightness), the mean grey of the image (contrast) or the
    grey of each pixel (saturation) at 0 and the image at 1. Each result is clamped to [0, 1].
    Factors have the same meaning as in torchvision; unlike there, uint8 images are rounded only
    once, at the end.
    """
    x = _float(images) if images.is_floating_point() else _float(images) / 255
    if brightness is not None:
        x = _scale_from(torch.zeros_like(x), x, brightness)
    if contrast is not None:
        x = _scale_from(grey(x).mean((-3, -2, -1), keepdim=True), x, contrast)
    if saturation is not None:
        x = _scale_from(grey(x), x, saturation)
    return _from_unit(x, images.dtype)


def erase_rectangle(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    height: Tensor,
    width: Tensor,
    *,
    fill: Fill = 0.0,
) -> Tensor:
    """Fill the rectangle of ``height`` x ``width`` pixels from (top, left) on, integers [B].

    >>> one = torch.tensor([1])
    >>> fcifar.augment.functional.erase_rectangle(torch.ones(1, 1, 2, 3), one, one, one, 2 * one)
    tensor([[[[1., 1., 1.],
              [1., 0., 0.]]]])
    """
    inside = in_rectangle(images, top, left, height, width)
    return torch.where(inside, _colour(fill, images), images)


def in_rectangle(
    images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Return which pixels lie in the rectangles of ``erase_rectangle``: bool [B, 1, H, W]."""
    top, left, height, width = (stored(x)[:, None, None] for x in (top, left, height, width))
    y = torch.arange(images.shape[-2], device=images.device)[:, None] - top
    x = torch.arange(images.shape[-1], device=images.device) - left
    return ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]


# Checks ------------------------------------------------------------------------------------------


def check_images(images: Tensor) -> None:
    """Raise a ValueError unless ``images`` is a batch of images."""
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "images are uint8 or floating tensors [B, C, H, W], "
            f"not {images.dtype} {list(images.shape)}"
        )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, not {value!r}")


def check_fill(fill: Fill) -> None:
    """Raise a ValueError unless ``fill`` is a colour."""
    values = _channels(fill)
    if not values or not all(0 <= v <= 1 for v in values):
        raise ValueError(f"fill is a number in [0, 1], or one for each channel, not {fill}")


# Helpers -----------------------------------------------------------------------------------------


def _sample(images: Tensor, y: Tensor, x: Tensor, interpolation: str, fill: Fill) -> Tensor:
    """Read images at positions [B, H, W], in pixels from the first one."""
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


def _look_up(images: Tensor, rows: Tensor, columns: Tensor, outside: Tensor) -> Tensor:
    """Return ``images[b, :, rows[b], columns[b]]``, and ``outside`` beyond the border.

    ``rows`` and ``columns`` are integers that broadcast to [B, H, W].
    """
    height, width = images.shape[-2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    # Computed once for all channels.
    index = stored(torch.where(inside, rows * width + columns, -1))[:, None]
    index = index.expand(-1, images.shape[1], -1, -1)
    clamped = index.clamp(min=0).to(torch.int64)
    pixels = torch.gather(images.flatten(2), 2, clamped.flatten(2)).reshape(images.shape)
    return torch.where(index >= 0, pixels, outside)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Interpolate from ``a`` to ``b``; bit-equal to ``a`` where ``share`` is 0."""
    a, b = _float(a), _float(b)
    return a + share * (b - a)


def reflect(index: Tensor, size: int) -> Tensor:
    """Mirror indices at the borders 0 and ``size - 1``, which are not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _scale_from(origin: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    factors = stored(factors)[:, None, None, None]
    return (images * factors + origin * (1 - factors)).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Return the grey of floating RGB images: [B, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]  # torchvision's weights


def stored(x: Tensor) -> Tensor:
    """Return ``x``, and make the compiler store it in memory.

    Otherwise the compiler recomputes a draw for every pixel that uses it. A view with explicit
    strides requires its base in memory.
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
    """Return ``fill`` in the units of the images: [1, 1, 1] or [C, 1, 1]."""
    values = _channels(fill)
    if len(values) not in (1, images.shape[1]):
        raise ValueError(
            f"fill is one number, or one for each of {images.shape[1]} channels, not {fill}"
        )
    x = layers.constant(values, images, torch.float32)
    return _from_unit(x, images.dtype)[:, None, None]


def _channels(fill: Fill) -> list[float]:
    return [float(v) for v in ([fill] if isinstance(fill, float | int) else fill)]
