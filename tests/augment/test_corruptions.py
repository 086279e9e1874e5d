"""Corruptions: each against its method in other libraries or golden values, and their draws."""

import colorsys
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fcifar import augment, random
from fcifar.augment import corruptions
from fcifar.augment.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from tests.golden import make_corruptions as golden

KEY = random.key(3)
DRAWN = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur"),
    *("motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter"),
}
MONOTONE = [  # those of the others by the authors are not, either
    name
    for name in CORRUPTIONS
    if name not in ("glass_blur", "frost", "elastic_transform", "saturate", "spatter")
]


def smooth(count: int, height: int = 32, width: int = 32, seed: int = 5) -> Tensor:
    coarse = random.uniform(random.key(seed), (count, 3, 8, 8))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


IMAGES = torch.cat([smooth(6), random.randint(random.key(1), (2, 3, 32, 32), 0, 256).byte()])


def numpy(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def levels(x: np.ndarray) -> np.ndarray:
    return np.uint8(np.clip(x, 0, 1) * 255)


def check(name: str, severity: int, expected: np.ndarray, *, differing: float = 0.0) -> None:
    """At most a share ``differing`` of the values, by one level, which is where both truncate."""
    found = corrupt(name, severity)(KEY, IMAGES).numpy()
    gap = np.abs(found.astype(int) - expected.astype(int))
    assert gap.max() <= (1 if differing else 0)
    assert (gap > 0).mean() <= differing


def parameters(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "severity"), [(name, severity) for name in names for severity in SEVERITIES]
    )


UNIT = numpy(IMAGES) / 255

# Noise --------------------------------------------------------------------------------------------


@parameters("gaussian_noise", "speckle_noise")
def test_normal_noise(name: str, severity: int) -> None:
    (scale,) = CORRUPTIONS[name].arguments[severity - 1]
    noise = numpy(random.normal(KEY, IMAGES.shape)) * scale
    check(name, severity, levels(UNIT + (noise if name == "gaussian_noise" else UNIT * noise)))


@parameters("shot_noise")
def test_shot_noise_is_the_inverse_of_scipys_distribution(name: str, severity: int) -> None:
    from scipy.stats import poisson

    (photons,) = CORRUPTIONS[name].arguments[severity - 1]
    u = numpy(random.uniform(KEY, IMAGES.shape)) + 2.0**-24
    expected = levels(poisson.ppf(u, UNIT * photons) / photons)
    assert (corrupt(name, severity)(KEY, IMAGES).numpy() == expected).mean() > 0.99999


def test_shot_noise_has_the_variance_of_photons() -> None:
    """That of the truncated levels, whose distribution is known."""
    from scipy.stats import poisson

    grey = torch.full((200, 3, 32, 32), 100, dtype=torch.uint8)
    counts = np.arange(1000)
    for severity, (photons,) in zip(SEVERITIES, CORRUPTIONS["shot_noise"].arguments, strict=True):
        x = numpy(corrupt("shot_noise", severity)(KEY, grey))
        levels = np.floor(np.minimum(counts / photons, 1) * 255)
        likely = poisson.pmf(counts, photons * 100 / 255)
        mean = (likely * levels).sum()
        variance = (likely * (levels - mean) ** 2).sum()
        assert abs(x.mean() - mean) < 5 * np.sqrt(variance / x.size)
        assert x.var() == pytest.approx(variance, rel=0.01)


@parameters("impulse_noise")
def test_impulse_noise(name: str, severity: int) -> None:
    (amount,) = CORRUPTIONS[name].arguments[severity - 1]
    grey = torch.full((300, 3, 32, 32), 100, dtype=torch.uint8)
    values, counts = corrupt(name, severity)(KEY, grey).unique(return_counts=True)
    assert values.tolist() == [0, 100, 255]
    n = grey.numel()
    for count in (counts[0], counts[2]):
        assert abs(count.item() - n * amount / 2) < 5 * (n * amount / 2) ** 0.5


# Blur ---------------------------------------------------------------------------------------------


def gaussian(x: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, 0, sigma, sigma), mode="nearest", truncate=4.0)


@parameters("gaussian_blur")
def test_gaussian_blur(name: str, severity: int) -> None:
    (sigma,) = CORRUPTIONS[name].arguments[severity - 1]
    check(name, severity, levels(gaussian(UNIT, sigma)), differing=1e-3)


@parameters("glass_blur")
def test_glass_blur_copies_pixels_one_after_the_other(name: str, severity: int) -> None:
    sigma, reach, rounds = CORRUPTIONS[name].arguments[severity - 1]
    x = np.moveaxis(levels(gaussian(UNIT, sigma)), 1, -1).copy()
    for key in random.split(KEY, rounds):
        moves = random.randint(key, (len(x), 2, 32, 32), -reach, reach).numpy()
        for image, move in zip(x, moves, strict=True):
            for row in range(32 - reach, reach, -1):
                for column in range(32 - reach, reach, -1):
                    down, right = move[:, row, column]
                    there = row + down, column + right
                    # NumPy's views make this no swap.
                    image[row, column], image[there] = image[there], image[row, column]
    x = np.moveaxis(x, -1, 1)
    check(name, severity, levels(gaussian(x / 255, sigma)), differing=1e-3)


@parameters("zoom_blur")
def test_zoom_blur(name: str, severity: int) -> None:
    from scipy.ndimage import zoom

    end = (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1]
    total, factors = UNIT.copy(), np.arange(1, end, 0.01)
    for factor in factors:
        kept = int(np.ceil(32 / factor))
        part = slice((32 - kept) // 2, (32 - kept) // 2 + kept)
        x = zoom(UNIT[..., part, part], (1, 1, factor, factor), order=1)
        trim = (x.shape[-1] - 32) // 2
        total += x[..., trim : trim + 32, trim : trim + 32]
    check(name, severity, levels(total / (len(factors) + 1)), differing=3e-3)


@pytest.mark.parametrize("name", golden.NAMES)
def test_libraries_that_are_not_needed(name: str) -> None:
    """OpenCV truncates after float32 arithmetic, and ImageMagick after that of 16 bits."""
    recorded = json.loads(Path(golden.__file__).with_name("corruptions.json").read_text())
    image = torch.from_numpy(golden.image()).permute(2, 0, 1)[None]
    for severity, text in recorded[name].items():
        found = corrupt(name, int(severity))(random.key(golden.SEED), image)
        gap = found[0].permute(1, 2, 0).numpy().astype(int) - golden.decode(text).astype(int)
        assert np.abs(gap).max() <= 1
        assert (gap != 0).mean() < 0.04


# Weather ------------------------------------------------------------------------------------------


def plasma(noise: np.ndarray, decay: float) -> np.ndarray:
    """Diamond-square, one point after the other, on a torus."""
    size = len(noise)
    field, step, amplitude = np.zeros((size, size)), size, 1.0
    while step > 1:
        half = step // 2
        centres = [(i, j) for i in range(half, size, step) for j in range(half, size, step)]
        middles = [
            (i, j)
            for i in range(0, size, half)
            for j in range(0, size, half)
            if (i + j) // half % 2 == 1
        ]
        for points, around in (
            (centres, ((half, half), (half, -half), (-half, half), (-half, -half))),
            (middles, ((half, 0), (-half, 0), (0, half), (0, -half))),
        ):
            for i, j in points:
                mean = sum(field[(i + k) % size, (j + m) % size] for k, m in around) / 4
                field[i, j] = mean + amplitude * noise[i, j]
        step, amplitude = half, amplitude / decay**2
    field -= field.min()
    return field / field.max()


@parameters("fog")
def test_fog(name: str, severity: int) -> None:
    strength, decay = CORRUPTIONS[name].arguments[severity - 1]
    noise = numpy(random.uniform(KEY, (len(IMAGES), 32, 32), -1.0, 1.0))
    brightest = UNIT.max((1, 2, 3), keepdims=True)
    clouds = np.stack([plasma(x, decay) for x in noise])[:, None]
    expected = (UNIT + strength * clouds) * brightest / (brightest + strength)
    check(name, severity, levels(expected), differing=1e-3)


def in_hsv(x: np.ndarray, change) -> np.ndarray:
    pixels = np.moveaxis(x, 1, -1).reshape(-1, 3)
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return np.moveaxis(np.reshape(changed, np.moveaxis(x, 1, -1).shape), -1, 1)


@parameters("brightness", "saturate")
def test_hsv(name: str, severity: int) -> None:
    a, b = (*CORRUPTIONS[name].arguments[severity - 1], 0.0)[:2]
    if name == "brightness":
        expected = in_hsv(UNIT, lambda h, s, v: (h, s, min(v + a, 1.0)))
    else:
        expected = in_hsv(UNIT, lambda h, s, v: (h, min(s * a + b, 1.0), v))
    check(name, severity, levels(expected), differing=0.06)


def test_hsv_of_grey_and_black() -> None:
    grey = torch.tensor([0, 100, 255], dtype=torch.uint8).expand(1, 3, 1, 3).repeat(1, 1, 4, 2)
    bright = corrupt("brightness", 5)(KEY, grey)[0, :, 0, :3]
    assert torch.equal(bright, torch.tensor([76, 176, 255], dtype=torch.uint8).expand(3, 3))
    reddish = corrupt("saturate", 5)(KEY, grey)[0, :, 0, :3].tolist()
    assert reddish == [[0, 100, 255], [0, 80, 204], [0, 80, 204]]


@parameters("frost")
def test_frost_is_a_bright_texture(name: str, severity: int) -> None:
    share, strength = CORRUPTIONS[name].arguments[severity - 1]
    texture = numpy(corruptions.frost(KEY, torch.zeros_like(IMAGES), 0.0, 1.0)) / 255
    assert 0.5 < texture.mean() < 0.75
    assert texture.std() > 0.1
    assert (texture[:, 2] >= texture[:, 0]).all()  # bluish
    found = numpy(corrupt(name, severity)(KEY, IMAGES))
    expected = np.clip(share * UNIT + strength * texture, 0, 1) * 255
    assert np.abs(found - expected).max() <= 1 + strength


# Digital ------------------------------------------------------------------------------------------


@parameters("contrast")
def test_contrast(name: str, severity: int) -> None:
    (factor,) = CORRUPTIONS[name].arguments[severity - 1]
    mean = UNIT.mean((2, 3), keepdims=True)
    check(name, severity, levels((UNIT - mean) * factor + mean), differing=1e-3)


@parameters("pixelate", "jpeg_compression")
def test_pillow(name: str, severity: int) -> None:
    (argument,) = CORRUPTIONS[name].arguments[severity - 1]
    expected = []
    for x in IMAGES.permute(0, 2, 3, 1).contiguous().numpy():
        image = Image.fromarray(x)
        if name == "pixelate":
            small = image.resize((int(32 * argument),) * 2, Image.Resampling.BOX)
            image = small.resize((32, 32), Image.Resampling.BOX)
        else:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=argument)
            image = Image.open(file)
        expected.append(np.asarray(image).transpose(2, 0, 1))
    check(name, severity, np.stack(expected))


# All ----------------------------------------------------------------------------------------------


def test_there_are_fifteen_and_four_with_five_severities() -> None:
    assert (len(BENCHMARK), len(EXTRA), len(CORRUPTIONS)) == (15, 4, 19)
    assert all(len(each.arguments) == 5 for each in CORRUPTIONS.values())
    assert augment.corrupt is corrupt


@pytest.mark.parametrize("name", MONOTONE)
def test_a_higher_severity_changes_images_more(name: str) -> None:
    texture = random.randint(random.key(1), (24, 3, 32, 32), 0, 64).byte()
    images = smooth(24) // 4 * 3 + texture
    changes = [
        (numpy(corrupt(name, severity)(KEY, images)) - numpy(images)) ** 2
        for severity in SEVERITIES
    ]
    means = [change.mean() for change in changes]
    assert all(b > 0.99 * a for a, b in itertools.pairwise(means)), means
    assert means[-1] > 1.3 * means[0] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_are_of_the_key_and_the_row(name: str) -> None:
    function, before = corrupt(name, 4), IMAGES.clone()
    whole = function(KEY, IMAGES)
    assert (whole.dtype, whole.shape) == (torch.uint8, IMAGES.shape)
    assert torch.equal(IMAGES, before)
    assert torch.equal(function(KEY, IMAGES), whole)
    assert torch.equal(function(random.from_row(KEY, 3), IMAGES[3:4]), whole[3:4])
    assert torch.equal(function(random.skip_rows(KEY, 5), IMAGES[5:]), whole[5:])
    assert torch.equal(function(KEY, IMAGES[:3]), whole[:3])
    assert torch.equal(function(random.key(4), IMAGES), whole) == (name not in DRAWN)
    one = IMAGES[:1].expand(8, -1, -1, -1)
    assert (len(function(KEY, one).unique(dim=0)) == 1) == (name not in DRAWN)
    assert len(function(KEY, IMAGES[:0])) == 0


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(4, 4), (33, 20)])
def test_other_sizes_and_floats(name: str, size: tuple[int, int]) -> None:
    images = smooth(3, *size)
    for severity in (1, 3, 5):
        found = corrupt(name, severity)(KEY, images)
        assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    floats = corrupt(name, 5)(KEY, images.double() / 255)
    assert floats.dtype == torch.float64
    assert torch.equal((floats * 255).round().to(torch.uint8), found)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="there is no corruption 'smoke', only gaussian_noise, "):
        corrupt("smoke", 1)
    for severity in (0, 6, True):
        with pytest.raises(ValueError, match="corrupt needs severity as an integer from 1 to 5"):
            corrupt("fog", severity)
    with pytest.raises(ValueError, match=r"fog needs images \[B, 3, H, W\]"):
        corrupt("fog", 1)(KEY, IMAGES[:, :1])
    with pytest.raises(
        ValueError, match=r"fog needs images of 4 x 4 pixels or more, not \[3, 32\]"
    ):
        corrupt("fog", 1)(KEY, IMAGES[:, :, :3])
