"""Common corruptions: the fifteen of CIFAR-10-C, and the four that it keeps for validation.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", https://arxiv.org/abs/1903.12261. Methods and severities are those of the authors'
``make_cifar_c.py`` (https://github.com/hendrycks/robustness), as far as the images allow. What
differs:

* ``frost`` blends with photographs that are not part of this package. Here a texture is drawn.
* ``spatter`` takes the exact distance from the edges of drops of water, not a chamfer distance, and
  only edges that Canny's detector finds at its upper threshold. An image without drops is
  unchanged; theirs becomes black.
* ``elastic_transform`` does not round positions to 1/32 of a pixel, as OpenCV did before version 5.
* Draws are keyed, and not those of NumPy.

Apart from that, with the same draws, the levels are those of the authors' method up to rounding:
one level, in 5 % of the values at most.

Each corruption is a function ``(key, images, ...) -> images`` of uint8 images [B, 3, H, W], for any
H and W of 4 or more; sizes given in pixels are for 32x32. The draws of image i depend on the key
and on i, not on the batch (see ``random.from_row``), and so do the bits of the result: sums are
elementwise, in a fixed order. Levels are truncated, not rounded, where the authors' are.
``CORRUPTIONS`` has each function with its arguments for severities 1 to 5, and ``corrupt`` makes an
augmentation of one.
"""

import io
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import layers, random
from fcifar.augment import base, color, filters
from fcifar.augment.base import Augment
from fcifar.random import Key

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 4  # pixels of a side


class Corruption(NamedTuple):
    """A corruption with its arguments by severity."""

    function: Callable[..., Tensor]  # (key, images, *arguments) -> images
    arguments: tuple[tuple[Any, ...], ...]  # for severities 1 to 5


def corrupt(name: str, severity: int) -> Augment:
    """Return a corruption of ``CORRUPTIONS`` as an augmentation ``(key, images) -> images``.

    Args:
        name: such as "fog".
        severity: from 1 to 5.

    Raises:
        ValueError: there is no such corruption or severity. The result raises one for images that
            are not [B, 3, H, W] with sides of 4 pixels or more.

    >>> images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    >>> fcifar.augment.corrupt("brightness", 2)(fcifar.random.key(0), images).unique()
    tensor([125], dtype=torch.uint8)
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}, only {', '.join(CORRUPTIONS)}")
    base.check_count("corrupt", "severity", severity, 1, len(SEVERITIES))
    function, arguments = CORRUPTIONS[name]

    def augment(key: Key, images: Tensor) -> Tensor:
        base.check_rgb(name, images)
        if min(images.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"{name} needs images of {SMALLEST} x {SMALLEST} pixels or more, not "
                f"{list(images.shape[-2:])}"
            )
        result = function(key, color.to_levels(images), *arguments[severity - 1])
        return color.from_levels(result, images.dtype)

    return augment


# Noise -------------------------------------------------------------------------------------------


def gaussian_noise(key: Key, images: Tensor, scale: float) -> Tensor:
    """Add normal noise of standard deviation ``scale``, of the range of grey levels."""
    return _levels(filters.unit(images) + scale * random.normal(key, images.shape))


def shot_noise(key: Key, images: Tensor, photons: float) -> Tensor:
    """Replace x in [0, 1] by Poisson(x * photons) / photons.

    There are 256 grey levels, and thus as many Poisson distributions. Their distribution functions
    one above the other are one increasing table, in which each draw is looked up.
    """
    x = filters.unit(images)
    most = math.ceil(photons + 10 * math.sqrt(photons)) + 10  # beyond is less likely than 2**-24
    count = torch.arange(most, dtype=x.dtype, device=x.device)
    rate = torch.arange(1, 256, dtype=x.dtype, device=x.device)[:, None] * (photons / 255)
    density = torch.exp(count * torch.log(rate) - rate - torch.lgamma(count + 1))
    # A product, because a sum along an axis may have any order on a GPU.
    below = density @ torch.ones(most, most, dtype=x.dtype, device=x.device).triu()
    below = torch.cat([torch.ones_like(below[:1]), below])
    # As whole numbers: uniform draws are multiples of 2**-23, and float32 would lose them.
    steps = torch.floor(below.clamp(max=1) * 2.0**23).to(torch.int64)
    table = (steps + (torch.arange(256, device=x.device) << 24)[:, None]).flatten()
    drawn = (random.uniform(key, images.shape) * 2.0**23).to(torch.int64)
    level = images.to(torch.int64)
    found = torch.searchsorted(table, drawn + (level << 24), right=True) - level * most
    return _levels(found.to(x.dtype) / photons)


def impulse_noise(key: Key, images: Tensor, amount: float) -> Tensor:
    """Make a share ``amount`` of the values 0 or 255, with equal probability."""
    u = random.uniform(key, images.shape)
    images = torch.where(u < amount / 2, 0, images)
    return torch.where(u >= 1 - amount / 2, 255, images)


def speckle_noise(key: Key, images: Tensor, scale: float) -> Tensor:
    """Add normal noise whose standard deviation is ``scale`` times the value."""
    x = filters.unit(images)
    return _levels(x + x * (scale * random.normal(key, images.shape)))


# Blur --------------------------------------------------------------------------------------------


def gaussian_blur(key: Key, images: Tensor, sigma: float) -> Tensor:
    """Blur by a normal density of standard deviation ``sigma``, in pixels."""
    return _levels(filters.blur(filters.unit(images), sigma))


def glass_blur(key: Key, images: Tensor, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blur, replace each pixel by one up to ``reach`` up and to the left, and blur again.

    The authors mean to swap pixels. As their pixels are views of one array, the first assignment
    of the swap changes what the second one reads, and only the pixel further down and to the right
    changes. They visit it before those that it may be read from, so that all change at once.
    """
    x = _levels(filters.blur(filters.unit(images), sigma))
    batch, _, height, width = images.shape
    rows, columns = filters.positions(images)
    is_inner = (rows > reach) & (rows <= height - reach) & (columns > reach)
    is_inner = is_inner & (columns <= width - reach)
    for subkey in random.split(key, rounds):
        move = random.randint(subkey, (batch, 2, height, width), -reach, reach)
        down, right = torch.where(is_inner, move, 0).unbind(1)
        x = filters.look_up(x, rows + down, columns + right)
    return _levels(filters.blur(filters.unit(x), sigma))


def defocus_blur(key: Key, images: Tensor, radius: float, alias_blur: float) -> Tensor:
    """Convolve with a disk of ``radius`` pixels, itself blurred by ``alias_blur`` at its edge."""
    half = int(radius) + 1
    reach, near = range(-half, half + 1), (-1, 0, 1)
    disk = {(i, j): float(i * i + j * j <= radius**2) for i in reach for j in reach}
    side = math.exp(-0.5 / alias_blur**2)
    taps = {k: (side if k else 1.0) / (1 + 2 * side) for k in near}
    soft = {
        (i, j): sum(taps[k] * taps[m] * disk.get((i + k, j + m), 0.0) for k in near for m in near)
        for i, j in disk
    }
    weights = {at: weight / sum(disk.values()) for at, weight in soft.items()}
    return _levels(filters.correlate(filters.unit(images), weights, filters.mirror))


def motion_blur(key: Key, images: Tensor, radius: float, sigma: float) -> Tensor:
    """Blur along a line whose angle is uniform in [-45, 45] degrees."""
    angles = base.uniform(key, images.shape[:1], -45.0, 45.0)
    return filters.line_blur(images, angles, radius, sigma)


def zoom_blur(key: Key, images: Tensor, zooms: int) -> Tensor:
    """Average the image, and the image magnified by 1, 1.01, 1.02, ... (``zooms`` of them)."""
    x = filters.unit(images)
    step = 1.01 - 1  # not 0.01: NumPy's arange, by which the authors count, rounds like this
    factors = [1 + step * i for i in range(zooms)]
    sizes = [tuple(filters.zoomed_size(n, f) for n in images.shape[-2:]) for f in factors]
    total = x
    for size, count in Counter(sizes).items():
        total = total + count * filters.zoom(x, factors[sizes.index(size)])
    return _levels(total / (zooms + 1))


# Weather -----------------------------------------------------------------------------------------


def snow(
    key: Key,
    images: Tensor,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    share: float,
) -> Tensor:
    """Whiten the image, and add flakes: magnified normal noise above ``threshold``, blurred.

    The flakes fall along a line, at an angle uniform in [-135, -45] degrees, and are added once
    more turned by 180 degrees.
    """
    x = filters.unit(images)
    noise_key, angle_key = random.split(key)
    flakes = mean + scale * random.normal(noise_key, _one_channel(images)).to(x.dtype)
    flakes = filters.zoom(flakes, zoom)
    flakes = _levels(torch.where(flakes < threshold, 0.0, flakes))
    angles = base.uniform(angle_key, images.shape[:1], -135.0, -45.0)
    flakes = filters.unit(filters.line_blur(flakes, angles, radius, sigma))
    white = torch.maximum(x, _grey(x) * 1.5 + 0.5)
    return _levels(share * x + (1 - share) * white + flakes + flakes.flip(-2, -1))


def frost(key: Key, images: Tensor, share: float, strength: float) -> Tensor:
    """Return ``share * image + strength * texture``.

    The texture is bluish white needles in two directions on a cloud, drawn from the key. The
    authors cut it out of six photographs of ice.
    """
    batch, _, height, width = images.shape
    cloud_key, angle_key, *needle_keys = random.split(key, 4)
    ice = 0.6 * _cloud(cloud_key, images, 2.0) - 0.1
    first = base.uniform(angle_key, (batch,), 0.0, 360.0)
    for i, subkey in enumerate(needle_keys):
        seeds = random.uniform(subkey, (batch, 1, height, width)) > 0.92
        needles = filters.unit(filters.line_blur(255 * seeds.byte(), first + 60 * i, 8, 4))
        ice = ice + needles / needles.amax((-2, -1), keepdim=True).clamp(min=1 / 255)
    dark, light = (_color(rgb, ice) for rgb in ((60, 90, 120), (235, 245, 255)))
    texture = dark + (light - dark) * ice.clamp(0, 1)
    return _levels(share * filters.unit(images) + strength * texture)


def fog(key: Key, images: Tensor, strength: float, decay: float) -> Tensor:
    """Add ``strength`` times a cloud, and scale to the brightest value of the image."""
    x = filters.unit(images)
    brightest = x.amax((1, 2, 3), keepdim=True)
    x = x + strength * _cloud(key, images, decay)
    return _levels(x * brightest / (brightest + strength))


def brightness(key: Key, images: Tensor, amount: float) -> Tensor:
    """Add ``amount`` to the value V of HSV colours, with the same hue and saturation."""
    x = filters.unit(images)
    value = x.amax(1, keepdim=True)
    share = torch.where(value > 0, x / value, 1.0)
    return _levels((value + amount).clamp(max=1) * share)


def spatter(
    key: Key,
    images: Tensor,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    strength: float,
    is_mud: bool,
) -> Tensor:
    """Splash water, which brightens, or mud, which covers, where blurred normal noise is high.

    The relief of drops of water is the distance to their edges, at most 20 pixels, smoothed,
    equalised, and filtered as if lit from the upper left. ``strength`` is its largest value for
    water, and for mud the standard deviation of the blur of its edges, in pixels.
    """
    x = filters.unit(images)
    drops = mean + scale * random.normal(key, _one_channel(images)).to(x.dtype)
    drops = filters.blur(drops, sigma)
    is_drop = drops >= threshold
    if is_mud:
        covered = filters.blur((drops > threshold).to(x.dtype), strength)
        covered = torch.where(covered < 0.8, 0.0, covered)
        return _levels(x * (1 - covered) + _color((63, 42, 20), x) * covered)
    drops = torch.where(is_drop, torch.floor((drops * 255).clamp(max=255)), 0.0)
    relief = filters.mean3(filters.distance(filters.edges(drops), 20))
    relief = filters.equalize(torch.floor(relief), 20)
    relief = filters.filter3(relief, _LIGHT, filters.mirror).clamp(0, 255)
    relief = torch.round(filters.mean3(relief))
    water = drops * relief
    water = strength * water / water.amax((-2, -1), keepdim=True).clamp(min=1e-9)
    return _levels(x + water * _color((175, 238, 238), x))


# Digital -----------------------------------------------------------------------------------------


def contrast(key: Key, images: Tensor, factor: float) -> Tensor:
    """Multiply the difference from the mean of each channel by ``factor``."""
    x = filters.unit(images)
    pixels = images.shape[-2] * images.shape[-1]
    mean = images.sum((-2, -1), keepdim=True).to(x.dtype) / (255 * pixels)
    return _levels((x - mean) * factor + mean)


def elastic_transform(
    key: Key, images: Tensor, displacement: float, sigma: float, corner: float
) -> Tensor:
    """Move three points by up to ``corner``, then each pixel by smooth noise; both bilinear.

    The arguments are parts of the side: the amplitude of the noise, the standard deviation of its
    blur, and the largest move of the points, which determine an affine map.
    """
    x = filters.unit(images)
    batch, _, height, width = images.shape
    side = min(height, width)
    corner_key, noise_key = random.split(key)
    moves = base.uniform(corner_key, (batch, 3, 2), -side * corner, side * corner).to(x.dtype)
    reach = side // 3
    corners = [(width // 2 + reach * i, height // 2 + reach * j) for i, j in _CORNERS]
    moved = moves + layers.constant([n for c in corners for n in c], x, x.dtype).reshape(3, 2)
    # The affine map from the corners to where they are moved has these columns. Each pixel is read
    # at its image under the inverse.
    down, across = ((moved[:, i] - moved[:, i + 1]) / (2 * reach) for i in (0, 1))
    determinant = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]
    rows, columns = (position.to(x.dtype) for position in filters.positions(images))
    a, b, c, d, e, f, g = (
        value[:, None, None]
        for value in (*across.unbind(1), *down.unbind(1), *moved[:, 1].unbind(1), determinant)
    )
    right, below = columns - e, rows - f
    source_column = (d * right - c * below) / g + corners[1][0]
    source_row = (a * below - b * right) / g + corners[1][1]
    x = filters.bilinear(x, source_row, source_column, filters.mirror)
    noise = random.uniform(noise_key, (batch, 2, height, width), -1.0, 1.0).to(x.dtype)
    shift = filters.blur(noise, side * sigma, filters.reflect, truncate=3.0) * (side * displacement)
    return _levels(filters.bilinear(x, rows + shift[:, 1], columns + shift[:, 0], filters.reflect))


def pixelate(key: Key, images: Tensor, share: float) -> Tensor:
    """Shrink to ``share`` of each side and back, by Pillow's box filter."""
    height, width = images.shape[-2:]
    small = filters.box_resize(images.float(), int(height * share), int(width * share))
    return filters.box_resize(small, height, width).to(torch.uint8)


def jpeg_compression(key: Key, images: Tensor, quality: int) -> Tensor:
    """Encode as JPEG of ``quality``, 1 to 95, and decode, by Pillow."""
    from PIL import Image

    height, width = images.shape[-2:]
    decoded = [torch.empty(0, height, width, 3, dtype=torch.uint8)]
    for pixels in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.frombytes("RGB", (width, height), pixels.tobytes()).save(
            file, "JPEG", quality=quality
        )
        with Image.open(file) as image:
            levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        decoded.append(levels.reshape(1, height, width, 3))
    return torch.cat(decoded).permute(0, 3, 1, 2).contiguous().to(images.device)


def saturate(key: Key, images: Tensor, factor: float, offset: float) -> Tensor:
    """Replace the saturation S of HSV colours by ``factor * S + offset``.

    Grey has the hue of red, as usual, so that an offset makes it reddish.
    """
    x = filters.unit(images)
    value = x.amax(1, keepdim=True)
    chroma = value - x.amin(1, keepdim=True)
    saturation = torch.where(value > 0, chroma / value, 0.0)
    hue = torch.where(chroma > 0, (value - x) / chroma, _color((0, 255, 255), x))
    return _levels(value - value * (saturation * factor + offset).clamp(0, 1) * hue)


CORRUPTIONS = {
    name: Corruption(function, tuple(a if isinstance(a, tuple) else (a,) for a in arguments))
    for name, function, *arguments in (
        ("gaussian_noise", gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
        ("shot_noise", shot_noise, 500, 250, 100, 75, 50),
        ("impulse_noise", impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
        ("defocus_blur", defocus_blur, (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        (
            *("glass_blur", glass_blur),
            *((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ),
        ("motion_blur", motion_blur, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ("zoom_blur", zoom_blur, 7, 12, 16, 21, 26),
        (
            *("snow", snow, (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9)),
            *((0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        ("frost", frost, (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ("fog", fog, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ("brightness", brightness, 0.05, 0.1, 0.15, 0.2, 0.3),
        ("contrast", contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
        (
            *("elastic_transform", elastic_transform, (0, 0, 0.08), (0.05, 0.2, 0.07)),
            *((0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ),
        ("pixelate", pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
        ("jpeg_compression", jpeg_compression, 80, 65, 58, 50, 40),
        ("speckle_noise", speckle_noise, 0.06, 0.1, 0.12, 0.16, 0.2),
        ("gaussian_blur", gaussian_blur, 0.4, 0.6, 0.7, 0.8, 1),
        (
            *("spatter", spatter, (0.62, 0.1, 0.7, 0.7, 0.5, False)),
            *((0.65, 0.1, 0.8, 0.7, 0.5, False), (0.65, 0.3, 1, 0.69, 0.5, False)),
            *((0.65, 0.1, 0.7, 0.69, 0.6, True), (0.65, 0.1, 0.5, 0.68, 0.6, True)),
        ),
        ("saturate", saturate, (0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    )
}
"""Corruptions by name: first the fifteen of the benchmark, in the order of the paper."""
BENCHMARK = tuple(CORRUPTIONS)[:15]
"""Corruptions over which the mean corruption error is taken."""
EXTRA = tuple(CORRUPTIONS)[15:]
"""Corruptions that the authors keep for validation."""

_CORNERS = ((1, 1), (1, -1), (-1, -1))  # right and down from the middle
_LIGHT = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


# Levels ------------------------------------------------------------------------------------------


def _levels(x: Tensor) -> Tensor:
    return color.truncated(x.clamp(0, 1) * 255)


def _color(rgb: tuple[int, int, int], like: Tensor) -> Tensor:
    return layers.constant([v / 255 for v in rgb], like, like.dtype)[:, None, None]


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _one_channel(images: Tensor) -> tuple[int, int, int, int]:
    return images.shape[0], 1, images.shape[2], images.shape[3]


# Textures ----------------------------------------------------------------------------------------


def _cloud(key: Key, images: Tensor, decay: float) -> Tensor:
    """Draw plasma fractals by the diamond-square algorithm: [B, 1, H, W] in [0, 1].

    Squares of half the side at each step have their centres and the middles of their sides at the
    mean of four neighbours, plus noise that ``decay`` squared makes smaller from step to step.
    """
    batch, _, height, width = images.shape
    size = 1 << (max(height, width) - 1).bit_length()
    dtype = filters.unit(images[:0]).dtype
    noise = random.uniform(key, (batch, size, size), -1.0, 1.0).to(dtype)
    field = torch.zeros_like(noise)
    step, amplitude = size, 1.0
    while step >= 2:
        whole, half = slice(0, None, step), slice(step // 2, None, step)

        def fill(rows: slice, columns: slice, total: Tensor, amplitude: float = amplitude) -> None:
            field[:, rows, columns] = total / 4 + amplitude * noise[:, rows, columns]

        corners = field[:, whole, whole]
        total = corners + corners.roll(-1, 1)
        fill(half, half, total + total.roll(-1, 2))
        centres = field[:, half, half]
        fill(whole, half, centres + centres.roll(1, 1) + (corners + corners.roll(-1, 2)))
        fill(half, whole, centres + centres.roll(1, 2) + (corners + corners.roll(-1, 1)))
        step, amplitude = step // 2, amplitude / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    field = field / field.amax((1, 2), keepdim=True)
    return field[:, None, :height, :width]
