"""Operations with one parameter per image, against torchvision's on uint8 images."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fcifar import random
from fcifar.augment import color, functional
from fcifar.augment.policies import OPERATIONS, apply_operations
from tests.helpers import twin

COUNT = 24


def noise(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    words = random.bits(random.key(7), (count, channels, height, width))
    return words.to(torch.uint8)


def smooth(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    coarse = random.uniform(random.key(3), (count, channels, 6, 5))
    size = (height, width)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


def structured(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """Two flat levels, one flat level, a ramp, and noise between close levels, in turn."""
    x = noise(count, height, width, channels)
    x[0::4] = torch.where(x[0::4] > 99, 200, 31).to(torch.uint8)
    x[1::4] = x[1::4, :, :1, :1]
    x[2::4] = torch.arange(width).to(torch.uint8)
    x[3::4] = 90 + x[3::4] // 16
    return x


IMAGES: dict[str, Callable[..., Tensor]] = {
    "noise": noise,
    "smooth": smooth,
    "structured": structured,
}
SHAPES = [(32, 32, 3), (31, 20, 3), (2, 5, 3), (32, 32, 1)]


@pytest.fixture(params=IMAGES)
def make_images(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    return IMAGES[request.param]


def assert_levels(result: Tensor, expected: Tensor, share: float = 0.0) -> None:
    """Equal, or with ``share``, within one grey level, and equal but for that share of pixels."""
    assert result.dtype == torch.uint8
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= (1 if share else 0)
    assert (difference > 0).double().mean() <= share


def by_twin(name: str, images: Tensor, values: Sequence[float] | None = None) -> Tensor:
    function = getattr(twin, name)
    if values is None:
        return torch.stack([function(x) for x in images])
    return torch.stack([function(x, v) for x, v in zip(images, values, strict=True)])


FACTORS = torch.linspace(0, 2, COUNT)
BLENDS = {"contrast": "contrast", "color": "saturation", "sharpness": "sharpness"}


@pytest.mark.parametrize("shape", SHAPES)
def test_brightness_is_torchvisions(make_images: Callable[..., Tensor], shape: tuple) -> None:
    images = make_images(COUNT, *shape)
    expected = by_twin("adjust_brightness", images, FACTORS.tolist())
    assert_levels(color.brightness(images, FACTORS), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BLENDS)
def test_blends_are_torchvisions(
    make_images: Callable[..., Tensor], name: str, shape: tuple
) -> None:
    """To one level, where a sum lies at a whole number and is rounded below it."""
    images = make_images(COUNT, *shape)
    expected = by_twin(f"adjust_{BLENDS[name]}", images, FACTORS.tolist())
    assert_levels(getattr(color, name)(images, FACTORS), expected, share=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_levels_are_torchvisions(make_images: Callable[..., Tensor], shape: tuple) -> None:
    images = make_images(COUNT, *shape)
    bits = torch.arange(COUNT) % 9
    assert_levels(color.posterize(images, bits), by_twin("posterize", images, bits.tolist()))
    thresholds = torch.linspace(0, 1, COUNT)
    expected = by_twin("solarize", images, (255 * thresholds).tolist())
    assert_levels(color.solarize(images, thresholds), expected)
    for name in ("autocontrast", "equalize", "invert"):
        assert_levels(getattr(color, name)(images), by_twin(name, images))


def test_floating_images_are_rounded_to_levels() -> None:
    images = smooth(COUNT)
    for name, arguments in {
        "brightness": [FACTORS],
        "sharpness": [FACTORS],
        "equalize": [],
    }.items():
        operation = getattr(color, name)
        result = operation(images / 255, *arguments)
        assert result.dtype == torch.float32
        assert torch.equal(result, operation(images, *arguments) / 255)


# Affine operations -------------------------------------------------------------------------------


def sheared(image: Tensor, slope: float, axis: int) -> Tensor:
    shear = [0.0, 0.0]
    shear[axis] = math.degrees(math.atan(slope))
    return twin.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])


def moved(image: Tensor, pixels: float, axis: int) -> Tensor:
    by = [0, 0]
    by[axis] = int(pixels)
    return twin.affine(image, 0.0, by, 1.0, [0.0, 0.0])


AFFINE: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "shear_x": (lambda x, m: sheared(x, m, 0), 0.99),
    "shear_y": (lambda x, m: sheared(x, m, 1), 0.99),
    "translate_x": (lambda x, m: moved(x, m, 0), 32.0),
    "translate_y": (lambda x, m: moved(x, m, 1), 32.0),
    "rotate": (lambda x, m: twin.rotate(x, m), 135.0),
}


@pytest.mark.parametrize("size", [(32, 32), (31, 20)])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_operations_are_torchvisions(name: str, size: tuple[int, int]) -> None:
    """Nearest pixels: exactly at 32 x 32; elsewhere but for places half-way between two pixels.

    At 31 x 20, these are all places of a rotation by 90 degrees.
    """
    expected_of, top = AFFINE[name]
    magnitudes = torch.cat([torch.linspace(0, top, 31), -torch.linspace(0, top, 31)])
    images = noise(1, *size).expand(62, -1, -1, -1)
    numbers = torch.full((62,), OPERATIONS.index(name))
    result = apply_operations(images, numbers, magnitudes)
    expected = torch.stack(
        [expected_of(x, m) for x, m in zip(images, magnitudes.tolist(), strict=True)]
    )
    share = (result != expected).any(1).double().mean()
    assert share <= (0 if size == (32, 32) else 1e-2)


def test_bilinear_affine_maps_are_torchvisions() -> None:
    images, slopes = smooth(11), torch.linspace(-0.3, 0.3, 11)
    numbers = torch.full((11,), OPERATIONS.index("shear_x"))
    result = apply_operations(images, numbers, slopes, interpolation="bilinear")
    mode = twin.InterpolationMode.BILINEAR
    expected = torch.stack(
        [
            twin.affine(
                *(x, 0.0, [0, 0], 1.0, [math.degrees(math.atan(m)), 0.0]),
                interpolation=mode,
                center=[0, 0],
            )
            for x, m in zip(images, slopes.tolist(), strict=True)
        ]
    )
    assert_levels(result, expected, share=0.01)


@pytest.mark.parametrize("interpolation", functional.INTERPOLATIONS)
def test_the_identity_matrix_changes_nothing(interpolation: str) -> None:
    images = noise(3, 20, 31)
    matrix = torch.eye(2, 3).expand(3, 2, 3)
    assert torch.equal(functional.affine(images, matrix, interpolation=interpolation), images)


def test_an_operation_changes_its_own_images_only() -> None:
    """Each operation beside every other one, as alone."""
    images = smooth(1).expand(len(OPERATIONS), -1, -1, -1)
    numbers, strength = torch.arange(len(OPERATIONS)), torch.full((len(OPERATIONS),), 0.3)
    strength[OPERATIONS.index("translate_x")] = 3.0
    strength[OPERATIONS.index("posterize")] = 2.0
    together = apply_operations(images, numbers, strength)
    assert torch.equal(together[0], images[0])
    for i, name in enumerate(OPERATIONS):
        alone = apply_operations(images[i : i + 1], numbers[i : i + 1], strength[i : i + 1])
        assert torch.equal(together[i], alone[0]), name
    singles = {
        "brightness": color.brightness(images[:1], torch.tensor([1.3])),
        "color": color.color(images[:1], torch.tensor([1.3])),
        "contrast": color.contrast(images[:1], torch.tensor([1.3])),
        "sharpness": color.sharpness(images[:1], torch.tensor([1.3])),
        "posterize": color.posterize(images[:1], torch.tensor([2])),
        "solarize": color.solarize(images[:1], torch.tensor([0.3])),
        "autocontrast": color.autocontrast(images[:1]),
        "equalize": color.equalize(images[:1]),
        "invert": color.invert(images[:1]),
    }
    for name, single in singles.items():
        assert torch.equal(together[OPERATIONS.index(name)], single[0]), name
