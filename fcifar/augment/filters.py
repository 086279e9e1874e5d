"""Filters and resampling for ``augment.corruptions``, each as in the library that it names.

Images are [B, C, H, W]. The result of an image does not depend on the others of its batch, bit for
bit: sums are elementwise, in a fixed order, or of whole numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fcifar.augment import color

_SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))

Border = Callable[[Tensor, int], Tensor]
"""``(index, size) -> index`` in [0, size)."""


def unit(images: Tensor) -> Tensor:
    """Return grey levels as numbers in [0, 1], float64 where the device has it.

    Levels that are truncated after a computation then are those that NumPy gives.
    """
    return images.to(torch.float32 if images.is_mps else torch.float64) / 255


# Positions ---------------------------------------------------------------------------------------


def mirror(index: Tensor, size: int) -> Tensor:
    """Continue abcd as dcb|abcd|cba."""
    index = index % (2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)


def reflect(index: Tensor, size: int) -> Tensor:
    """Continue abcd as dcba|abcd|dcba."""
    index = index % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def nearest(index: Tensor, size: int) -> Tensor:
    """Continue abcd as aaaa|abcd|dddd."""
    return index.clamp(0, size - 1)


def positions(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [H, 1] and columns [W] of the pixels."""
    height, width = images.shape[-2:]
    device = images.device
    return torch.arange(height, device=device)[:, None], torch.arange(width, device=device)


def look_up(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``x[b, :, rows[b], columns[b]]`` for integers that broadcast to [B, H, W]."""
    index = (rows * x.shape[-1] + columns)[:, None].expand(x.shape)
    return x.flatten(2).gather(2, index.flatten(2)).reshape(x.shape)


def extend(x: Tensor, reach: int, border: Border, axis: int) -> Tensor:
    """Continue images beyond both ends of an axis, -2 or -1, by ``reach`` pixels."""
    size = x.shape[axis]
    index = border(torch.arange(-reach, size + reach, device=x.device), size)
    return x[..., index, :] if axis == -2 else x[..., index]


def correlate(x: Tensor, weights: Mapping[tuple[int, int], float], border: Border) -> Tensor:
    """Sum the pixels (down, right) of each, with weights."""
    height, width = x.shape[-2:]
    reach = max(abs(n) for place in weights for n in place)
    wide = extend(extend(x, reach, border, -2), reach, border, -1)
    result = torch.zeros_like(x)
    for (down, right), weight in weights.items():
        part = wide.narrow(-2, reach + down, height).narrow(-1, reach + right, width)
        result = result + weight * part
    return result


def bilinear(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """Interpolate at positions [B, H, W], in pixels from the first one."""
    top, left = torch.floor(rows), torch.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    top, left = top.to(torch.int64), left.to(torch.int64)

    def at(i: int, j: int) -> Tensor:
        return look_up(x, border(top + i, x.shape[-2]), border(left + j, x.shape[-1]))

    upper = at(0, 0) * (1 - right) + at(0, 1) * right
    return upper * (1 - down) + (at(1, 0) * (1 - right) + at(1, 1) * right) * down


# Filters -----------------------------------------------------------------------------------------


def blur(x: Tensor, sigma: float, border: Border = nearest, truncate: float = 4.0) -> Tensor:
    """Convolve with a normal density, cut off at ``truncate`` standard deviations.

    The sums are in the order of SciPy's ``gaussian_filter``, from the outer pixels to the inner.
    """
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return x
    weights = [math.exp(-0.5 * k * k / sigma**2) for k in range(radius + 1)]
    total = sum(weights[:0:-1]) + sum(weights)
    for axis in (-2, -1):
        size, wide = x.shape[axis], extend(x, radius, border, axis)
        x = x * (weights[0] / total)
        for k in range(radius, 0, -1):
            pair = wide.narrow(axis, radius - k, size) + wide.narrow(axis, radius + k, size)
            x = x + pair * (weights[k] / total)
    return x


def line_blur(images: Tensor, angles: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur along the ray at ``angles``, [B] in degrees, as ImageMagick's ``MotionBlurImage``.

    Weight i of ``2 * ceil(radius) + 1`` is a normal density at i pixels, and its pixel the nearest
    one on the ray. Images are uint8, and so is the result, whose levels are truncated.
    """
    x = unit(images)
    radians = torch.deg2rad(angles.to(x.dtype))
    across, down = torch.cos(radians), torch.sin(radians)
    rows, columns = positions(images)
    width = 2 * math.ceil(radius) + 1
    weights = [math.exp(-0.5 * i * i / sigma**2) for i in range(width)]
    result = torch.zeros_like(x)
    for i, weight in enumerate(weights):
        row, column = (
            torch.ceil(i * part - 0.5).to(torch.int64)[:, None, None] for part in (down, across)
        )
        near = (nearest(rows + row, x.shape[-2]), nearest(columns + column, x.shape[-1]))
        result = result + (weight / sum(weights)) * look_up(x, *near)
    return color.truncated(result * 255)


def zoom(x: Tensor, factor: float) -> Tensor:
    """Magnify the middle of images by a factor of 1 or more: SciPy's ``zoom`` with ``order=1``.

    Of each side, the middle 1 / ``factor`` is kept, rounded up, and magnified to a whole number of
    pixels, whose middle is the result. Thus many factors have the same result.
    """
    for size in x.shape[-2:]:  # an axis that is not the last is read several times as fast
        kept, magnified = zoomed_size(size, factor)
        position = torch.arange(size, device=x.device) + (magnified - size) // 2
        position = position.to(x.dtype) * ((kept - 1) / (magnified - 1))
        low = torch.floor(position).clamp(max=kept - 2)
        share = (position - low)[:, None]
        low = low.to(torch.int64) + (size - kept) // 2
        x = (x.index_select(-2, low) * (1 - share) + x.index_select(-2, low + 1) * share).mT
        x = x.contiguous()
    return x


def zoomed_size(size: int, factor: float) -> tuple[int, int]:
    """Return how many pixels of a side ``zoom`` keeps, and to how many it magnifies them."""
    kept = math.ceil(size / factor)
    return kept, round(kept * factor)


def box_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Resize float32 grey levels by means of whole pixels, columns first, rounded half up twice."""
    for axis, size in ((-1, width), (-2, height)):
        side = x.shape[axis]
        scale = side / size
        reach = max(scale, 1.0) / 2
        centre = (torch.arange(size, device=x.device) + 0.5) * scale
        first, last = (torch.floor(centre + end + 0.5)[:, None] for end in (-reach, reach))
        pixel = torch.arange(side, device=x.device)
        matrix = ((pixel >= first) & (pixel < last)).to(x.dtype)
        # Sums of whole numbers are exact in any order.
        total = x @ matrix.T if axis == -1 else matrix @ x
        count = matrix.sum(1) if axis == -1 else matrix.sum(1)[:, None]
        x = torch.floor(total / count + 0.5)
    return x


def filter3(x: Tensor, rows: Sequence[Sequence[float]], border: Border) -> Tensor:
    """Apply a 3 x 3 filter, whose rows go down and whose columns go right."""
    weights = {(i - 1, j - 1): float(w) for i, row in enumerate(rows) for j, w in enumerate(row)}
    return correlate(x, weights, border)


def mean3(x: Tensor) -> Tensor:
    """Return the mean of the 3 x 3 pixels around each."""
    return filter3(x, [[1] * 3] * 3, mirror) / 9


def edges(x: Tensor) -> Tensor:
    """Find the edges of grey levels as Canny, but only those of a gradient above 150: bool.

    A pixel is one if its gradient is the largest of three in its direction, a multiple of 45
    degrees.
    """
    across = filter3(x, _SOBEL, nearest)
    down = filter3(x, [*zip(*_SOBEL, strict=True)], nearest)
    size = across.abs() + down.abs()
    padded = torch.nn.functional.pad(size, (1, 1, 1, 1))

    def beside(i: int, j: int) -> Tensor:
        height, width = size.shape[-2:]
        return padded[..., 1 + i : 1 + i + height, 1 + j : 1 + j + width]

    slope = math.tan(math.pi / 8)
    horizontal = (size > beside(0, -1)) & (size >= beside(0, 1))
    vertical = (size > beside(-1, 0)) & (size >= beside(1, 0))
    falling = (size > beside(-1, -1)) & (size > beside(1, 1))
    rising = (size > beside(-1, 1)) & (size > beside(1, -1))
    is_largest = torch.where(across * down >= 0, falling, rising)
    is_largest = torch.where(down.abs() > across.abs() / slope, vertical, is_largest)
    is_largest = torch.where(down.abs() < across.abs() * slope, horizontal, is_largest)
    return is_largest & (size > 150)


def distance(is_edge: Tensor, most: float) -> Tensor:
    """Return the distance to the nearest edge, at most ``most`` pixels: float64 [B, 1, H, W]."""
    rows, columns = positions(is_edge)
    squares = torch.where(is_edge, 0, int(most**2))
    for axis, position in ((-1, columns), (-2, rows[:, 0])):
        gaps = (position[:, None] - position) ** 2
        lines = squares.movedim(axis, -1)
        squares = (lines[..., None, :] + gaps).amin(-1).movedim(-1, axis)
    return torch.sqrt(squares.to(unit(is_edge).dtype)).clamp(max=most)


def equalize(x: Tensor, most: int) -> Tensor:
    """Equalise the histogram of whole numbers in [0, most] as OpenCV: [B, 1, H, W] in [0, 255].

    The lowest number present becomes 0, and an image that has no other is unchanged.
    """
    counts = [(x <= v).sum((-2, -1), keepdim=True) for v in range(most + 1)]
    up_to = sum(torch.where(x == v, count, 0) for v, count in enumerate(counts))
    up_to = torch.as_tensor(up_to).to(x.dtype)
    first = up_to.amin((-2, -1), keepdim=True)
    rest = x.shape[-2] * x.shape[-1] - first
    return torch.where(rest > 0, torch.round((up_to - first) * (255 / rest.clamp(min=1))), x)
