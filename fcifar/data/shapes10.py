"""The built-in data set: ten shapes, 32x32 RGB, drawn from a key.

Each image has one shape (its class) at a random position, size, stretch and rotation, in a random
colour and texture, over a random background with clutter, and often with a bar across it.
Position, colour and texture are independent of the class, so a classifier has to see the form.

All arithmetic is on integers: the images are the same bits on every machine, for any number of
threads and in any version of torch. Lengths are in 1/16 pixel, sines and cosines in 1/1024, and a
shape has coordinates in which its radius is about 1024.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random
from fcifar.random import Key

NAME = "shapes10"
SOURCE = "drawn by fcifar from a key: textured shapes on cluttered backgrounds"

SIDE = 32  # pixels
PIXEL = 16  # units of length in a pixel
ONE = 1024  # fixed-point 1 of cosines, and the radius of a shape
TURN = 256  # units of angle in a turn
CHUNK = 500  # images drawn together: a compromise of speed and memory

COSINES = tuple(round(ONE * math.cos(2 * math.pi * i / TURN)) for i in range(TURN))


class Images(NamedTuple):
    """Images uint8 [N, 3, 32, 32], labels int64 [N] in [0, 10)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def generate(key: Key | None = None, *, train_size: int = 20_000, test_size: int = 5_000) -> Images:
    """Draw the data set of ``key``; the default is the published one.

    The numbers of images of two classes differ by at most one, and their order is random. The two
    splits come from independent keys.
    """
    train_key, test_key = random.split(random.key(10) if key is None else key)
    return Images(*_draw_split(train_key, train_size), *_draw_split(test_key, test_size))


def _draw_split(key: Key, size: int) -> tuple[Tensor, Tensor]:
    order_key, image_key = random.split(key)
    labels = random.permutation(order_key, torch.arange(size, device=key.device) % len(CLASSES))
    images = torch.empty(size, 3, SIDE, SIDE, dtype=torch.uint8, device=key.device)
    for label, shape in enumerate(SHAPES.values()):
        class_key = random.fold_in(image_key, label)
        for i, rows in enumerate(torch.nonzero(labels == label).flatten().split(CHUNK)):
            images[rows] = _draw_images(random.fold_in(class_key, i), shape, len(rows))
    return images, labels


# The ten shapes ----------------------------------------------------------------------------------
# Each maps int32 coordinates (u to the right, v downwards) to whether the point is inside. All have
# about the same area, so that the mean colour of an image does not reveal the class.

Shape = Callable[[Tensor, Tensor], Tensor]


def _disc(u: Tensor, v: Tensor, radius: int = 760) -> Tensor:
    return u * u + v * v < radius * radius


def _square(u: Tensor, v: Tensor) -> Tensor:
    return (u.abs() < 680) & (v.abs() < 680)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    across, along = torch.minimum(u.abs(), v.abs()), torch.maximum(u.abs(), v.abs())
    return (across < 275) & (along < 980)


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Five lines make a pentagram; points inside are beyond at most one of them.
    beyond = torch.zeros_like(u)
    for i in range(5):
        angle = 2 * math.pi * i / 5
        x, y = round(ONE * math.sin(angle)), round(ONE * math.cos(angle))
        beyond = beyond + (u * x + v * y > 385 * ONE)
    return beyond <= 1


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    head = (v < 100) & (5 * u.abs() < 4 * (v + 1050))
    shaft = (v >= 100) & (v < 1000) & (u.abs() < 300)
    return head | shaft


SHAPES: dict[str, Shape] = {
    "disc": _disc,
    "ring": lambda u, v: _disc(u, v, 960) & ~_disc(u, v, 580),
    "crescent": lambda u, v: _disc(u - 100, v, 1000) & ~_disc(u - 650, v, 780),
    "square": _square,
    "triangle": lambda u, v: (v < 620) & (7 * u.abs() < 4 * (v + 1170)),  # sqrt(3) is about 7/4
    "cross": _cross,
    "star": _star,
    # A square on its corner, and a disc at the middle of each upper side.
    "heart": lambda u, v: (u.abs() + (v - 50).abs() < 715) | _disc(u.abs() - 357, v + 307, 505),
    "arrow": _arrow,
    "hourglass": lambda u, v: (v.abs() < 900) & (4 * u.abs() < 3 * v.abs() + 540),
}
CLASSES = tuple(SHAPES)


# One image, back to front -------------------------------------------------------------------------
# Images are int32 [n, 3, 32, 32], values of a pixel int32 [n, 1, 32, 32], and values of an image
# int32 [n, 1, 1, 1], so that everything broadcasts.


def _draw_images(key: Key, shape: Shape, n: int) -> Tensor:
    keys = iter(random.split(key, 15))  # one for each random draw
    ground = _colours(next(keys), n) * 5 >> 3  # mostly darker than the foreground
    image = ground + _clouds(next(keys), n) + _texture(next(keys), n)
    for form in (_disc, _square):
        image = _blend(image, _oblong(next(keys), form, n), _colours(next(keys), n))
    paint = _contrasting(next(keys), ground) + _texture(next(keys), n)
    image = _blend(image, _placed(next(keys), shape, n), paint)
    image = _blend(image, _oblong(next(keys), _disc, n), _colours(next(keys), n))
    image = _blend(image, _bar(next(keys), n), _colours(next(keys), n))
    return (image + _noise(next(keys), n)).clamp(0, 255).to(torch.uint8)


def _blend(image: Tensor, coverage: Tensor, paint: Tensor) -> Tensor:
    """``paint`` over ``image``, by ``coverage`` in quarters of a pixel."""
    return image + ((paint - image) * coverage >> 2)


def _colours(key: Key, n: int) -> Tensor:
    """One colour an image: int32 [n, 3, 1, 1]."""
    return _integers(key, (n, 3, 1, 1), (20, 236))[0]


def _contrasting(key: Key, ground: Tensor) -> Tensor:
    """Colours in contrast to ``ground``, each channel by its own amount."""
    n = ground.shape[0]
    strength_key, distance_key = random.split(key)
    (strength,) = _integers(strength_key, (n, 1, 1, 1), (7, 17))
    (distance,) = _integers(distance_key, (n, 3, 1, 1), (60, 160))
    return ground + torch.where(ground < 128, 1, -1) * (distance * strength >> 4)


def _clouds(key: Key, n: int) -> Tensor:
    """Smooth light and shade: random values on a lattice of 8 pixels, interpolated."""
    cell = 8
    (lattice,) = _integers(key, (n, 3, SIDE // cell + 1, SIDE // cell + 1), (-28, 29))
    index = torch.arange(SIDE, device=key.device)
    low, part = index // cell, (index % cell).to(torch.int32)
    rows = lattice[:, :, low] * (cell - part)[:, None] + lattice[:, :, low + 1] * part[:, None]
    field = rows[..., low] * (cell - part) + rows[..., low + 1] * part
    return field >> 6


def _texture(key: Key, n: int) -> Tensor:
    """Stripes or checks of random period, angle and strength (often zero)."""
    strength, checked, period, angle, phase = _integers(
        key, (n, 1, 1, 1), (-24, 25), (0, 2), (36, 100), (0, TURN), (0, 512)
    )
    x, y = _pixel_centres(key.device)
    cos, sin = _cos(angle), _cos(angle - TURN // 4)
    u = ((x * cos + y * sin) // ONE + phase) // period
    v = ((y * cos - x * sin) // ONE + phase) // period
    dark = (u + v * checked) & 1
    return (2 * dark - 1) * strength.clamp(min=0)


def _noise(key: Key, n: int) -> Tensor:
    """Grain with a triangular distribution, whose strength varies by image."""
    strength_key, grain_key = random.split(key)
    (strength,) = _integers(strength_key, (n, 1, 1, 1), (2, 20))
    words = random.bits(grain_key, (n, 1, SIDE, SIDE))
    # Two numbers of 5 bits for each of the three channels, in a word of 32 bits.
    shifts = 10 * torch.arange(3, device=key.device)[:, None, None]
    grain = (words >> shifts & 31) + (words >> shifts + 5 & 31) - 31
    return grain.to(torch.int32) * strength >> 4


# Positions ---------------------------------------------------------------------------------------


def _placed(key: Key, shape: Shape, n: int) -> Tensor:
    """The shape, large and near the middle, slightly rotated and stretched."""
    x, y, radius, stretch, angle = _integers(
        key, (n, 1, 1, 1), (192, 321), (192, 321), (130, 215), (-2, 3), (-18, 19)
    )
    width, height = radius * (16 + stretch) >> 4, radius * (16 - stretch) >> 4
    return _coverage(shape, x, y, width, height, angle)


def _oblong(key: Key, form: Shape, n: int) -> Tensor:
    """A small stretched square or disc, anywhere."""
    x, y, width, height, angle = _integers(
        key, (n, 1, 1, 1), (0, 513), (0, 513), (24, 56), (48, 160), (0, TURN)
    )
    return _coverage(form, x, y, width, height, angle)


def _bar(key: Key, n: int) -> Tensor:
    """A bar from edge to edge, in half of the images."""
    present, x, y, width, angle = _integers(
        key, (n, 1, 1, 1), (0, 2), (128, 385), (128, 385), (16, 40), (0, TURN)
    )
    return _coverage(_square, x, y, width, torch.full_like(width, 1024), angle) * present


def _coverage(
    shape: Shape, x: Tensor, y: Tensor, width: Tensor, height: Tensor, angle: Tensor
) -> Tensor:
    """Coverage of each pixel in quarters, int32 [n, 1, 32, 32], by centre and two radii."""
    across, down = _pixel_centres(x.device)
    cos, sin = _cos(angle), _cos(angle - TURN // 4)
    # From lengths to the shape's coordinates: 1/64 of (cos, sin; -sin, cos) over the radii.
    a, b = 64 * cos // width, 64 * sin // width
    c, d = -64 * sin // height, 64 * cos // height
    covered = torch.zeros((), dtype=torch.int32, device=x.device)
    for step_x in (-PIXEL // 4, PIXEL // 4):
        for step_y in (-PIXEL // 4, PIXEL // 4):
            dx, dy = across + step_x - x, down + step_y - y
            covered = covered + shape((dx * a + dy * b) >> 6, (dx * c + dy * d) >> 6)
    return covered


def _pixel_centres(device: torch.device) -> tuple[Tensor, Tensor]:
    """Lengths from the left, int32 [1, 32], and from the top, int32 [32, 1]."""
    along = PIXEL * torch.arange(SIDE, dtype=torch.int32, device=device) + PIXEL // 2
    return along[None, :], along[:, None]


def _cos(angle: Tensor) -> Tensor:
    table = torch.tensor(COSINES, dtype=torch.int32, device=angle.device)
    return table[angle % TURN]


def _integers(key: Key, shape: tuple[int, ...], *ranges: tuple[int, int]) -> Tensor:
    """Draw ``shape`` in [low, high) for each range: int32 [len(ranges), *shape]."""
    words = random.bits(key, (len(ranges), *shape))
    ends = torch.tensor(ranges, device=key.device).reshape(-1, 2, *(1 for _ in shape))
    low, high = ends.unbind(1)
    return (low + (words * (high - low) >> 32)).to(torch.int32)
