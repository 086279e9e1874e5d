"""Augmentation: its draws, its geometry against torchvision's, and what every one promises."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fcifar import random
from fcifar.augment import (
    Augment,
    aug_mix,
    auto_augment,
    chain,
    color_jitter,
    cutout,
    functional,
    rand_augment,
    random_crop,
    random_erasing,
    random_flip,
    random_rotation,
    trivial_augment,
)
from tests.helpers import twin

AUGMENTS: dict[str, Augment] = {
    "flip": random_flip(),
    "rotation": random_rotation(15),
    "rotation-bilinear": random_rotation((-180, 180), interpolation="bilinear", fill=0.3),
    "crop": random_crop(4),
    "crop-reflect": random_crop(4, mode="reflect"),
    "cutout": cutout(8, fill=(0.5, 0.4, 0.3)),
    "color": color_jitter(0.4, 0.4, 0.4),
    "chain": chain(random_flip(), random_rotation(10), random_crop(2), cutout(5)),
    "rand-augment": rand_augment(1, 9),
    "trivial-augment": trivial_augment(),
    "auto-augment": auto_augment(),
    "aug-mix": aug_mix(3, width=1),
    "erasing": random_erasing(1.0),
}
DEAR = ("aug-mix", "auto-augment")  # to compile; their operations are those of rand-augment


@pytest.fixture(params=AUGMENTS)
def each(request: pytest.FixtureRequest) -> Augment:
    return AUGMENTS[request.param]


def noise(size: int, height: int = 32, width: int = 32, seed: int = 7) -> Tensor:
    """Uniform uint8 images: no two pixels alike for long."""
    return random.bits(random.key(seed), (size, 3, height, width)).to(torch.uint8)


def smooth(size: int) -> Tensor:
    """Noise with some structure, as photographs have: float [size, 3, 32, 32] in [0, 1]."""
    coarse = random.uniform(random.key(3), (size, 3, 8, 8))
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear", align_corners=False)


def coordinates(size: int) -> Tensor:
    """Images whose channels say which row and which column a pixel came from, plus one of ones."""
    line = torch.arange(32, dtype=torch.float32)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 32)]) / 32
    return image.expand(size, -1, -1, -1)


def levels(a: Tensor, b: Tensor) -> Tensor:
    """Differences of uint8 images in grey levels."""
    return (a.to(torch.int32) - b.to(torch.int32)).abs()


def assert_uniform(draws: Tensor, low: float, high: float) -> None:
    """Kolmogorov and Smirnov's test at one in a thousand. Keys are fixed, so it never flickers."""
    n = len(draws)
    expected = (draws.double().sort().values - low) / (high - low)
    distance = (expected - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance < 1.95 / math.sqrt(n)


def assert_evenly(draws: Tensor, kinds: int) -> None:
    """Pearson's chi-square of counts that should be equal, within five standard deviations."""
    counts = torch.bincount(draws.long(), minlength=kinds).double()
    assert len(counts) == kinds
    expected = len(draws) / kinds
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - (kinds - 1)) < 5 * math.sqrt(2 * (kinds - 1))


# What every augmentation promises ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_keeps_shape_dtype_range_and_its_input(each: Augment, dtype: torch.dtype) -> None:
    images = noise(6, 20, 28)
    images = images if dtype == torch.uint8 else (images / 255).to(dtype)
    kept, key = images.clone(), random.key(1)
    result = each(key, images)
    assert result.shape == images.shape
    assert result.dtype == dtype
    assert result.min() >= 0
    assert result.max() <= (255 if dtype == torch.uint8 else 1)
    assert torch.equal(images, kept)
    assert torch.equal(key, random.key(1))


def test_keyed(each: Augment) -> None:
    images, before = noise(16), torch.get_rng_state()
    result = each(random.key(0), images)
    assert torch.equal(result, each(random.key(0), images))
    assert not torch.equal(result, each(random.key(1), images))
    assert not torch.equal(result, images)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


def test_each_example_has_a_draw_of_its_own(each: Augment) -> None:
    images = noise(1).expand(16, -1, -1, -1)
    few = {"flip": 1, "rand-augment": 5, "auto-augment": 5}  # with few results for an image
    least = next((n for name, n in few.items() if AUGMENTS[name] is each), 12)
    assert len(each(random.key(0), images).unique(dim=0)) > least


def test_a_draw_does_not_depend_on_the_batch(each: Augment) -> None:
    images = noise(16)
    whole = each(random.key(5), images)
    assert torch.equal(each(random.key(5), images[:3]), whole[:3])
    others = torch.cat([noise(3, seed=9), images[3:]])
    assert torch.equal(each(random.key(5), others)[3:], whole[3:])


def test_floating_images_get_what_uint8_images_get(each: Augment) -> None:
    images = noise(16)
    rounded = (each(random.key(2), images / 255) * 255).round()
    assert levels(rounded, each(random.key(2), images)).max() <= 1
    if each not in (AUGMENTS["rotation-bilinear"], AUGMENTS["color"]):  # which compute; others move
        assert torch.equal(rounded.to(torch.uint8), each(random.key(2), images))


@pytest.mark.parametrize(
    "each",
    [pytest.param(name, marks=[pytest.mark.slow] if name in DEAR else []) for name in AUGMENTS],
    indirect=True,
)
def test_compiles_to_one_graph_and_never_again(each: Augment) -> None:
    graphs = []

    def counting(graph: Callable, inputs: Any) -> Callable:
        graphs.append(graph)
        return graph

    compiled = torch.compile(each, backend=counting, fullgraph=True, dynamic=False)
    for seed in range(3):
        images = noise(4, seed=seed)
        assert torch.equal(compiled(random.key(seed), images), each(random.key(seed), images))
    assert len(graphs) == 1


@pytest.mark.parametrize("images", [noise(3 * 5).reshape(3, 5, 3, 32, 32), noise(5)])
def test_vmaps_over_keys_and_batches(each: Augment, images: Tensor) -> None:
    keys = random.split(random.key(0), 3)
    shared = images.ndim == 4
    together = torch.vmap(each, in_dims=(0, None if shared else 0))(keys, images)
    for i in range(3):
        alone = each(keys[i], images if shared else images[i])
        assert levels(together[i], alone).max() <= (1 if each is AUGMENTS["color"] else 0)


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    both = chain(random_flip(), random_rotation(10))
    compiled = torch.compile(both, fullgraph=True, dynamic=False)
    images = noise(20)
    for seed in range(20):
        a, b = compiled(random.key(seed), images), both(random.key(seed), images)
        # A place that is half-way between two pixels to the last bit may round either way.
        assert (a != b).double().mean() < 1e-3


IDENTITIES = {
    "flip": random_flip(0.0),
    "rotation": random_rotation(0),
    "rotation-pair": random_rotation((0.0, 0.0), interpolation="bilinear", fill=1.0),
    "crop": random_crop(0, mode="reflect"),
    "cutout": cutout(0),
    "color": color_jitter(),
    "empty": chain(),
    "chain": chain(random_flip(0.0), random_rotation(0.0), color_jitter(0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_zero_strength_is_the_identity(name: str) -> None:
    for images in (noise(8), noise(8) / 255, (noise(8) / 255).bfloat16()):
        result = IDENTITIES[name](random.key(0), images)
        assert result.dtype == images.dtype
        assert torch.equal(result, images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_parameters_of_zero_are_the_identity(dtype: torch.dtype) -> None:
    """Where nothing was drawn to do, the work itself must not touch a bit."""
    images = noise(8) if dtype == torch.uint8 else (noise(8) / 255).to(dtype)
    zero, one = torch.zeros(8, dtype=torch.int64), torch.ones(8)
    for result in (
        functional.mirror(images, zero > 0),
        functional.rotate(images, zero.float()),
        functional.rotate(images, zero.float(), interpolation="bilinear", fill=0.5),
        functional.translate(images, zero, zero),
        functional.translate(images, zero, zero, mode="reflect"),
        functional.erase_square(images, zero, zero, 0),
        functional.adjust_color(images, brightness=one, contrast=one, saturation=one),
    ):
        assert torch.equal(result, images)


def test_chain_splits_its_key() -> None:
    flip, crop, images = random_flip(), random_crop(4), noise(16)
    a, b = random.split(random.key(8))
    assert torch.equal(chain(flip, crop)(random.key(8), images), crop(b, flip(a, images)))
    assert torch.equal(chain(flip, flip)(random.key(8), images), flip(b, flip(a, images)))


# Statistics of the draws --------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_flip_rate(p: float) -> None:
    n, images = 4000, noise(1, 2, 2)
    result = random_flip(p)(random.key(0), images.expand(n, -1, -1, -1))
    flipped = (result == images.flip(-1)).flatten(1).all(1)
    assert (flipped | (result == images).flatten(1).all(1)).all()
    assert abs(flipped.double().mean() - p) <= 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize(("degrees", "low", "high"), [(10, -10, 10), ((20.0, 170.0), 20, 170)])
def test_angles_are_uniform(degrees: Any, low: float, high: float) -> None:
    """Recovered from images whose pixels know their coordinates."""
    rotation = random_rotation(degrees, interpolation="bilinear")
    result = rotation(random.key(0), coordinates(2000)) * 32
    y, x = (result[:, channel, 15, 20] - 15.5 for channel in (0, 1))
    # The pixel lies 4.5 right of the centre and 0.5 above it.
    angles = (torch.atan2(y, x) - math.atan2(-0.5, 4.5)).rad2deg()
    assert angles.min() >= low - 1e-3
    assert angles.max() <= high + 1e-3
    assert_uniform(angles, low, high)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crop_offsets_are_uniform_and_independent(mode: str) -> None:
    result = random_crop(3, mode=mode)(random.key(0), coordinates(5000)) * 32
    down, right = (16 - result[:, channel, 16, 16].long() + 3 for channel in (0, 1))
    assert_evenly(down, 7)
    assert_evenly(right, 7)
    assert_evenly(down * 7 + right, 49)


@pytest.mark.parametrize("size", [1, 7, 8, 80])
def test_cutout_area_and_place(size: int) -> None:
    n, white = 4000, torch.ones(1, 3, 12, 10)
    result = cutout(size)(random.key(0), white.expand(n, -1, -1, -1))
    gone = result == 0
    assert (gone | (result == 1)).all()
    assert torch.equal(gone.all(1), gone.any(1)), "all channels alike"
    # Enumerate the centres: how often is each pixel covered, and how large is what is gone?
    covered, areas = torch.zeros(12, 10, dtype=torch.float64), set()
    for row in range(12):
        for column in range(10):
            top, left = row - size // 2, column - size // 2
            square = torch.zeros(12, 10, dtype=torch.float64)
            square[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 1
            covered += square / 120
            areas.add(int(square.sum()))
    error = (gone[:, 0].double().mean(0) - covered).abs()
    assert (error <= 4.5 * (covered * (1 - covered) / n).sqrt() + 1e-12).all()
    assert set(gone[:, 0].sum((-1, -2)).tolist()) <= areas


def test_color_factors_are_uniform() -> None:
    """Recovered from two-coloured images on which each change is one multiplication."""
    n = 2000
    grey = torch.full((n, 3, 4, 4), 0.5)
    assert_uniform(color_jitter(0.4)(random.key(0), grey)[:, 0, 0, 0] / 0.5, 0.6, 1.4)
    assert_uniform(color_jitter((0.2, 0.9))(random.key(0), grey)[:, 0, 0, 0] / 0.5, 0.2, 0.9)

    halves = grey.clone()
    halves[..., :2] += 0.1
    halves[..., 2:] -= 0.1
    contrast = color_jitter(contrast=0.8)(random.key(0), halves)
    assert_uniform((contrast[:, 0, 0, 0] - contrast[:, 0, 0, 3]) / 0.2, 0.2, 1.8)

    tinted = grey.clone()
    tinted[:, 0] += 0.1
    saturation = color_jitter(saturation=0.8)(random.key(0), tinted)
    assert_uniform((saturation[:, 0, 0, 0] - saturation[:, 1, 0, 0]) / 0.1, 0.2, 1.8)


def test_color_factors_are_never_negative() -> None:
    strong = color_jitter(3.0)(random.key(0), torch.full((500, 3, 1, 1), 0.25))
    assert_uniform(strong[:, 0, 0, 0] / 0.25, 0.0, 4.0)


def test_color_factors_are_independent() -> None:
    jitter = color_jitter(0.5, 0.0, 0.5)
    tinted = torch.full((2000, 3, 1, 1), 0.5)
    tinted[:, 0] += 0.05
    red, green, blue = jitter(random.key(0), tinted)[:, :, 0, 0].unbind(1)
    grey = 0.2989 * red + 0.587 * green + 0.114 * blue  # which saturation does not change
    both = torch.stack([grey, (red - green) / grey])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / math.sqrt(2000)


# The same as torchvision --------------------------------------------------------------------------

ANGLES = [-180.0, -90.0, -33.0, -10.0, -1.5, 0.0, 0.3, 7.25, 45.0, 90.0, 123.0, 180.0, 270.0, 400.0]


def by_twin(images: Tensor, angles: list[float], **options: Any) -> Tensor:
    return torch.stack([twin.rotate(x, a, **options) for x, a in zip(images, angles, strict=True)])


def test_flip_is_torchvisions() -> None:
    images = noise(4)
    assert torch.equal(random_flip(1.0)(random.key(0), images), twin.horizontal_flip(images))


@pytest.mark.parametrize("shape", [(32, 32), (31, 31), (20, 33)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_nearest_rotation_is_torchvisions(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """But for one pixel in a thousand, half-way between two, which rounding takes either way."""
    images = noise(len(ANGLES), *shape)
    images = images if dtype == torch.uint8 else images / 255
    result = functional.rotate(images, torch.tensor(ANGLES))
    expected = by_twin(images, ANGLES)
    differing = (result != expected).any(1).flatten(1).double().mean(1)
    for angle, share in zip(ANGLES, differing.tolist(), strict=True):
        # torchvision turns by 90 degrees exactly only where height and width are equal.
        exact = angle % (90 if shape[0] == shape[1] else 180) == 0
        tie = angle % 90 == 0 and not exact
        assert tie or share <= (0 if exact else 1e-3), f"{share} of the pixels at {angle} degrees"


def test_drawn_nearest_rotation_is_torchvisions() -> None:
    images, key = noise(200), random.key(4)
    angles = random.uniform(key, (200,), -10.0, 10.0)
    result = random_rotation(10)(key, images)
    expected = by_twin(images, angles.tolist())
    assert (result != expected).any(1).double().mean() < 1e-4


@pytest.mark.parametrize("fill", [0.0, 0.6])
def test_bilinear_rotation_is_torchvisions(fill: float) -> None:
    angles = ANGLES
    images = smooth(len(angles))
    # torchvision weighs a fill twice at the border; filling with zero after a shift is exact.
    expected = by_twin(images - fill, angles, interpolation=twin.InterpolationMode.BILINEAR) + fill
    options: dict[str, Any] = {"interpolation": "bilinear", "fill": fill}
    result = functional.rotate(images, torch.tensor(angles), **options)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)

    coarse = (images * 255).round().to(torch.uint8)
    result = functional.rotate(coarse, torch.tensor(angles), **options)
    shift = round(fill * 255)
    expected = shift + by_twin(
        coarse.float() - shift, angles, interpolation=twin.InterpolationMode.BILINEAR
    )
    difference = levels(result, expected.round())
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 1e-2


def test_rotation_fills_each_channel() -> None:
    images = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    corner = functional.rotate(images, torch.tensor([45.0]), fill=(0.0, 0.5, 1.0))[0, :, 0, 0]
    assert corner.tolist() == [0, 128, 255]


@pytest.mark.parametrize(("mode", "named"), [("zeros", "constant"), ("reflect", "reflect")])
def test_crop_is_torchvisions(mode: str, named: str) -> None:
    images = noise(16, 24, 32)
    result = random_crop(5, mode=mode)(random.key(1), images)
    places = random_crop(5)(random.key(1), coordinates(16)[..., :24, :]) * 32
    for i, place in enumerate(places):
        row, column = (16 - place[channel, 12, 16].long().item() for channel in (0, 1))
        padded = twin.pad(images[i], [5, 5, 5, 5], padding_mode=named)
        expected = twin.crop(padded, 5 - (row - 4), 5 - column, 24, 32)
        assert torch.equal(result[i], expected)


@pytest.mark.parametrize(("down", "right"), [(3, 0), (0, 5), (-2, 1), (-7, -31)])
def test_translation_moves_down_and_right(down: int, right: int) -> None:
    images = noise(1)
    moved = functional.translate(images, torch.tensor([down]), torch.tensor([right]))
    # A pad by a negative number crops: what enters above goes below.
    expected = torch.nn.functional.pad(images, (right, -right, down, -down))
    assert torch.equal(moved, expected)


COLORS = ("brightness", "contrast", "saturation")


def colored(name: str, images: Tensor, factors: list[float]) -> Tensor:
    adjust = getattr(twin, f"adjust_{name}")
    return torch.stack([adjust(x, factor) for x, factor in zip(images, factors, strict=True)])


@pytest.mark.parametrize("name", COLORS)
def test_color_is_torchvisions(name: str) -> None:
    """To rounding on floating images; uint8 images we round, where torchvision truncates."""
    factors = [0.0, 0.3, 0.9, 1.0, 1.2, 2.5]
    images = smooth(len(factors))
    result = functional.adjust_color(images, **{name: torch.tensor(factors)})
    torch.testing.assert_close(result, colored(name, images, factors), rtol=0, atol=1e-6)

    coarse = (images * 255).round().to(torch.uint8)
    result = functional.adjust_color(coarse, **{name: torch.tensor(factors)})
    assert levels(result, (colored(name, coarse / 255, factors) * 255).round()).max() <= 1
    assert levels(result, colored(name, coarse, factors)).max() <= 2


@st.composite
def some_images(draw: st.DrawFn) -> Tensor:
    """A few images of any size: noise, smooth ones or flat ones; uint8 or floating."""
    size, height, width = (draw(st.integers(1, n)) for n in (3, 40, 40))
    seed, kind = draw(st.integers(0, 2**31 - 1)), draw(st.sampled_from(["noise", "smooth", "flat"]))
    images = noise(size, height, width, seed) if kind != "flat" else noise(size, 1, 1, seed)
    if kind == "smooth" and min(height, width) > 4:
        images = twin.gaussian_blur(images, [5, 5])
    images = images.expand(-1, -1, height, width).contiguous()
    return images if draw(st.booleans()) else images / 255


def a_number_each(draw: st.DrawFn, images: Tensor, low: float, high: float) -> list[float]:
    numbers = st.lists(st.floats(low, high, width=32), min_size=len(images), max_size=len(images))
    return draw(numbers)


@given(st.data(), some_images())
def test_moves_of_any_images_are_torchvisions(data: st.DataObject, images: Tensor) -> None:
    """Flips, translations and crops, erased squares: to the last bit."""
    height, width = images.shape[-2:]
    chosen = torch.tensor([data.draw(st.booleans()) for _ in images])
    flipped = functional.mirror(images, chosen)
    down = [data.draw(st.integers(1 - height, height - 1)) for _ in images]
    right = [data.draw(st.integers(1 - width, width - 1)) for _ in images]
    mode = data.draw(st.sampled_from(["zeros", "reflect"]))
    moved = functional.translate(images, torch.tensor(down), torch.tensor(right), mode=mode)
    size = data.draw(st.integers(0, 50))
    row, column = (
        torch.tensor([data.draw(st.integers(0, n - 1)) for _ in images]) for n in (height, width)
    )
    level = data.draw(st.sampled_from([0.0, 1.0]))
    erased = functional.erase_square(images, row, column, size, fill=level)
    for i, image in enumerate(images):
        expected = twin.horizontal_flip(image) if chosen[i] else image
        assert torch.equal(flipped[i], expected)
        pad = [abs(right[i]), abs(down[i]), abs(right[i]), abs(down[i])]
        padded = twin.pad(image, pad, padding_mode={"zeros": "constant"}.get(mode, mode))
        top, left = abs(down[i]) - down[i], abs(right[i]) - right[i]
        assert torch.equal(moved[i], twin.crop(padded, top, left, height, width))
        y, x = int(row[i]) - size // 2, int(column[i]) - size // 2
        top, left, bottom, end = max(y, 0), max(x, 0), min(y + size, height), min(x + size, width)
        value = torch.tensor(level * (255 if images.dtype == torch.uint8 else 1))
        square = value.to(images.dtype).expand(3, max(0, bottom - top), max(0, end - left))
        assert torch.equal(erased[i], twin.erase(image, top, left, *square.shape[1:], square))


def half_way(angle: float, height: int, width: int) -> Tensor:
    """Which pixels of a rotated image come from half-way between two: bool [H, W]."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across = cos * x - sin * y + (width - 1) / 2
    down = sin * x + cos * y + (height - 1) / 2
    return ((across % 1 - 0.5).abs() < 1e-3) | ((down % 1 - 0.5).abs() < 1e-3)


@given(st.data(), some_images())
def test_rotations_of_any_images_are_torchvisions(data: st.DataObject, images: Tensor) -> None:
    """Nearest: but for pixels half-way between two. Bilinear: to rounding, with a black fill."""
    angles = a_number_each(data.draw, images, -400.0, 400.0)
    expected = by_twin(images, angles)
    result = functional.rotate(images, torch.tensor(angles))
    for angle, differing in zip(angles, (result != expected).any(1), strict=True):
        assert not (differing & ~half_way(angle, *images.shape[-2:])).any(), angle
    bilinear = {"interpolation": twin.InterpolationMode.BILINEAR}
    real = images if images.is_floating_point() else images.float()
    expected = by_twin(real, angles, **bilinear)
    result = functional.rotate(images, torch.tensor(angles), interpolation="bilinear")
    if images.dtype == torch.uint8:
        assert levels(result, expected.round()).max() <= 1
    else:
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-4)


@given(st.data(), some_images())
def test_colors_of_any_images_are_torchvisions(data: st.DataObject, images: Tensor) -> None:
    """One after the other; uint8 images by way of floating ones, because we round once."""
    factors = {name: a_number_each(data.draw, images, 0.0, 4.0) for name in COLORS}
    expected = images if images.is_floating_point() else images / 255
    for name in COLORS:
        expected = colored(name, expected, factors[name])
    result = functional.adjust_color(images, **{n: torch.tensor(f) for n, f in factors.items()})
    if images.dtype == torch.uint8:
        assert levels(result, (expected * 255).round()).max() <= 1
    else:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@given(some_images(), st.integers(1, 64))
def test_any_resize_is_torchvisions(images: Tensor, size: int) -> None:
    real = images if images.is_floating_point() else images.float()
    expected = twin.resize(real, [size, size], antialias=True)
    result = functional.resize(images, size)
    if images.dtype == torch.uint8:
        assert levels(result, expected.round()).max() <= 1
    else:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_color_order_is_brightness_contrast_saturation() -> None:
    images = smooth(1)
    factors = {name: torch.tensor([1.7]) for name in COLORS}
    expected = images
    for name in ("brightness", "contrast", "saturation"):
        expected = colored(name, expected, [1.7])
    result = functional.adjust_color(images, **factors)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    other = images
    for name in ("contrast", "saturation", "brightness"):
        other = colored(name, other, [1.7])
    assert (result - other).abs().max() > 0.01, "the order matters here"


# Misuse -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda: random_flip(1.5), r"probability in \[0, 1\], not 1\.5"),
        (lambda: random_flip(math.nan), r"probability in \[0, 1\], not nan"),
        (lambda: random_rotation(-10), r"degrees as a number from 0 to 1,000,000.*not -10"),
        (lambda: random_rotation((10, -10)), r"low <= high <= 1,000,000, not \(10, -10\)"),
        (lambda: random_rotation(math.inf), r"degrees.*not inf"),
        (lambda: random_rotation(10**400), r"degrees as a number from 0 to 1,000,000.*not 10+"),
        (lambda: random_rotation((-2e6, 0)), r"-1,000,000 <= low.*not \(-2000000\.0, 0\)"),
        (lambda: random_rotation((1, 2, 3)), r"degrees.*not \(1, 2, 3\)"),
        (lambda: random_rotation(5, interpolation="cubic"), r"'nearest' or 'bilinear', not 'cubic"),
        (lambda: random_rotation(5, fill=128), r"fill is a number in \[0, 1\].*not 128"),
        (lambda: random_crop(-1), r"padding as an integer from 0 to 10,000, not -1"),
        (lambda: random_crop(1.5), r"padding as an integer from 0 to 10,000, not 1\.5"),
        (lambda: random_crop(10_001), r"from 0 to 10,000, not 10001"),
        (lambda: random_crop(True), r"from 0 to 10,000, not True"),
        (lambda: random_crop(2, mode="wrap"), r"'zeros' or 'reflect', not 'wrap'"),
        (lambda: cutout(-8), r"size as an integer from 0 to 10,000, not -8"),
        (lambda: cutout(10**30), r"from 0 to 10,000, not 10+"),
        (lambda: cutout(8, fill=()), r"fill is a number in \[0, 1\].*not \(\)"),
        (lambda: color_jitter(-0.1), r"brightness as a number from 0 to 1,000,000.*not -0\.1"),
        (lambda: color_jitter(1e39), r"from 0 to 1,000,000.*not 1e\+39"),
        (lambda: color_jitter(contrast=(-0.5, 1.0)), r"contrast.*0 <= low <= high <= 1,000,000"),
        (lambda: color_jitter(saturation=(1.5, 0.5)), r"saturation.*not \(1\.5, 0\.5\)"),
    ],
)
def test_misuse_is_told(misuse: Callable[[], Augment], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        misuse()


@pytest.mark.parametrize(
    ("function", "images", "told"),
    [
        (random_flip(), noise(1)[0], r"\[B, C, H, W\], not torch.uint8 \[3, 32, 32\]"),
        (random_rotation(5), noise(2).long(), r"uint8 or floating .* not torch.int64"),
        (
            random_crop(8, mode="reflect"),
            noise(1, 8, 20),
            r"less than the image size \[8, 20\], not 8",
        ),
        (color_jitter(0.1), noise(2)[:, :1], r"\[B, 3, H, W\], not \[2, 1, 32, 32\]"),
        (cutout(4, fill=(0.1, 0.2)), noise(2), r"each of 3 channels, not \(0\.1, 0\.2\)"),
    ],
)
def test_images_of_another_kind_are_refused(function: Augment, images: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        function(random.key(0), images)


def test_the_largest_strengths_can_be_used() -> None:
    images = noise(4)
    for function in (random_rotation(1e6), random_crop(31), cutout(10_000), color_jitter(1e6)):
        assert function(random.key(0), images).shape == images.shape


def test_one_channel_will_do_but_for_color() -> None:
    images = noise(4)[:, :1]
    for name in ("flip", "rotation", "crop"):
        assert AUGMENTS[name](random.key(0), images).shape == images.shape


@pytest.mark.cuda
def test_the_same_on_cuda(each: Augment) -> None:
    images, key = noise(16), random.key(0)
    on_gpu = each(key.cuda(), images.cuda())
    assert on_gpu.is_cuda
    difference = levels(on_gpu.cpu(), each(key, images))
    assert (difference > 0).double().mean() < 1e-2
