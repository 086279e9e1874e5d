"""Policies: their draws, and each applied operation against torchvision's."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fcifar import augment, random
from fcifar.augment import Augment, policies
from fcifar.augment.policies import OPERATIONS, Space, draw_magnitudes

POLICIES: dict[str, Augment] = {
    "rand_augment": augment.rand_augment(2, 9),
    "trivial_augment": augment.trivial_augment(),
    "auto_augment": augment.auto_augment(),
    "aug_mix": augment.aug_mix(3),
    "random_erasing": augment.random_erasing(),
}
SPACES = {
    "RandAugment": (policies.RANDOM, 31),
    "TrivialAugmentWide": (policies.WIDE, 31),
    "AutoAugment": (policies.RANDOM, 10),
    "AugMix": (policies.MIXED, 10),
}


def twin_name(operation: str) -> str:
    """ShearX for shear_x."""
    if operation == "autocontrast":
        return "AutoContrast"
    return "".join(part.capitalize() for part in operation.split("_"))


def twin_policy(name: str) -> Any:
    from torchvision.transforms import v2

    return getattr(v2, name)()


def smooth(count: int, seed: int = 3) -> Tensor:
    coarse = random.uniform(random.key(seed), (count, 3, 8, 8))
    fine = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (fine * 255).round().to(torch.uint8)


class Call(NamedTuple):
    images: Tensor
    operations: Tensor
    magnitudes: Tensor
    result: Tensor


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls of apply_operations, which is replaced by a function that records them."""
    seen: list[Call] = []
    apply = policies.apply_operations

    def recording(images: Tensor, operations: Tensor, magnitudes: Tensor, **rest: Any) -> Tensor:
        result = apply(images, operations, magnitudes, **rest)
        seen.append(Call(images, operations, magnitudes, result))
        return result

    monkeypatch.setattr(policies, "apply_operations", recording)
    return seen


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Likewise, without applying the operations."""
    seen: list[Call] = []

    def recording(images: Tensor, operations: Tensor, magnitudes: Tensor, **rest: Any) -> Tensor:
        seen.append(Call(images, operations, magnitudes, images))
        return images

    monkeypatch.setattr(policies, "apply_operations", recording)
    return seen


def assert_shares(counts: Tensor, shares: Tensor) -> None:
    """Counts of a multinomial draw, each within five standard deviations."""
    total = counts.sum()
    deviation = (total * shares * (1 - shares)).sqrt()
    assert ((counts - total * shares).abs() <= 5 * deviation + 1e-9).all()


# Draws -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (20, 31)])
@pytest.mark.parametrize("name", SPACES)
def test_magnitudes_are_torchvisions(name: str, size: tuple[int, int]) -> None:
    """To the last bit but one, with the same whole pixels, bits and inverted levels."""
    space, bins = SPACES[name]
    known = twin_policy(name)._AUGMENTATION_SPACE
    strengths, images = torch.arange(bins), torch.zeros(bins, 3, *size)
    for number, operation in enumerate(OPERATIONS):
        if twin_name(operation) not in known:
            assert operation in ("identity", "invert")
            continue
        of_bins, is_signed = known[twin_name(operation)]
        assert is_signed == (operation in policies.SIGNED)
        expected = of_bins(bins, *size)
        numbers = torch.full((bins,), number)
        drawn = draw_magnitudes(random.key(0), space, bins, numbers, strengths, images)
        if expected is None:
            continue
        ours, theirs = drawn.abs(), expected.float()
        if operation == "posterize":
            assert torch.equal(ours.round(), theirs)
            continue
        torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=1e-7)
        if operation == "solarize":  # the first level that is inverted
            assert torch.equal((255 * ours).ceil(), (255 * theirs).ceil())
        if operation.startswith("translate"):
            # The 16 pixels of TrivialAugment's middle bin are 15.999999 in the vectorised linspace
            # of some processors.
            is_whole = (theirs - theirs.round()).abs() < 1e-5
            assert torch.equal(ours.trunc(), torch.where(is_whole, theirs.round(), theirs.trunc()))


def test_signs_are_even() -> None:
    count = 4000
    numbers = torch.full((count,), OPERATIONS.index("rotate"))
    strengths, images = torch.full((count,), 10), torch.zeros(1, 3, 32, 32)
    drawn = draw_magnitudes(random.key(0), policies.RANDOM, 31, numbers, strengths, images)
    negative = (drawn < 0).sum()
    assert_shares(torch.stack([negative, count - negative]), torch.tensor([0.5, 0.5]))


def test_rand_augment_draws_each_operation_evenly(draws: list[Call]) -> None:
    augment.rand_augment(3, 30)(random.key(0), torch.zeros(3000, 3, 2, 2, dtype=torch.uint8))
    assert len(draws) == 3
    for call in draws:
        assert_shares(torch.bincount(call.operations, minlength=14), torch.full((14,), 1 / 14))
    pairs = draws[0].operations * 14 + draws[1].operations
    assert_shares(torch.bincount(pairs, minlength=196), torch.full((196,), 1 / 196))


def test_trivial_augment_draws_operations_and_bins_evenly(draws: list[Call]) -> None:
    augment.trivial_augment()(random.key(0), torch.zeros(20_000, 3, 2, 2, dtype=torch.uint8))
    (call,) = draws
    assert_shares(torch.bincount(call.operations, minlength=14), torch.full((14,), 1 / 14))
    angles = call.magnitudes[call.operations == OPERATIONS.index("rotate")]
    bins = (angles.abs() / 4.5).round().long()
    assert_shares(torch.bincount(bins, minlength=31), torch.full((31,), 1 / 31))


def test_auto_augment_draws_the_pairs_of_torchvision(draws: list[Call]) -> None:
    from torchvision.transforms import v2

    known = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    augment.auto_augment()(random.key(0), torch.zeros(20_000, 3, 2, 2, dtype=torch.uint8))
    assert len(draws) == 2
    shares = torch.zeros(len(OPERATIONS), len(OPERATIONS), dtype=torch.float64)
    names = [twin_name(operation) for operation in OPERATIONS]
    for (first, p, _), (second, q, _) in known:
        i, j = names.index(first), names.index(second)
        for a, of_first in ((i, p), (0, 1 - p)):
            for b, of_second in ((j, q), (0, 1 - q)):
                shares[a, b] += of_first * of_second / len(known)
    both = draws[0].operations * len(OPERATIONS) + draws[1].operations
    assert_shares(torch.bincount(both, minlength=len(OPERATIONS) ** 2), shares.flatten())


def test_auto_augment_has_the_bins_of_torchvision(draws: list[Call]) -> None:
    from torchvision.transforms import v2

    transform = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    augment.auto_augment()(random.key(0), torch.zeros(5000, 3, 32, 32, dtype=torch.uint8))
    for place, call in enumerate(draws):
        for number, operation in enumerate(OPERATIONS):
            of_bins, _ = transform._AUGMENTATION_SPACE.get(twin_name(operation), (None, None))
            if of_bins is None or (values := of_bins(10, 32, 32)) is None:
                continue
            known = {
                f"{float(values[pair[place][2]]):.4f}"
                for pair in transform._policies
                if pair[place][0] == twin_name(operation) and pair[place][1]
            }
            drawn = call.magnitudes[call.operations == number].abs()
            drawn = drawn.round() if operation == "posterize" else drawn
            assert {f"{value:.4f}" for value in drawn.tolist()} == known, operation


def test_aug_mix_draws_depths_and_operations_evenly(draws: list[Call]) -> None:
    size, width = 3000, 3
    augment.aug_mix(2)(random.key(0), torch.zeros(size, 3, 2, 2, dtype=torch.uint8))
    used = torch.stack([call.operations.reshape(width, size) > 0 for call in draws])
    depth = used.sum(0)
    assert torch.equal(used, torch.arange(3)[:, None, None] < depth)
    assert_shares(torch.bincount(depth.flatten(), minlength=4)[1:], torch.full((3,), 1 / 3))
    for call in draws:
        drawn = call.operations[call.operations > 0]
        assert_shares(torch.bincount(drawn, minlength=14)[1:], torch.full((13,), 1 / 13))
        angles = call.magnitudes[call.operations == OPERATIONS.index("rotate")].abs()
        assert set((angles * 3).round().tolist()) == {0.0, 10.0}, "the two weakest bins"


# Against torchvision -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("rand_augment", "RandAugment"),
        ("trivial_augment", "TrivialAugmentWide"),
        ("auto_augment", "AutoAugment"),
    ],
)
def test_drawn_operations_are_torchvisions(name: str, known: str, calls: list[Call]) -> None:
    transform = twin_policy(known)
    images = smooth(100)
    result = POLICIES[name](random.key(5), images)
    assert torch.equal(calls[0].images, images)
    assert torch.equal(calls[-1].result, result)
    for call in calls:
        for i, number in enumerate(call.operations.tolist()):
            magnitude, operation = float(call.magnitudes[i]), OPERATIONS[number]
            magnitude = round(magnitude) if operation == "posterize" else magnitude
            expected = transform._apply_image_or_video_transform(
                call.images[i],
                twin_name(operation),
                magnitude,
                interpolation=transform.interpolation,
                fill=transform._fill,
            )
            difference = (expected.int() - call.result[i].int()).abs()
            is_blend = operation in ("contrast", "color", "sharpness")
            assert difference.max() <= is_blend, operation
            assert (difference > 0).double().mean() < 0.05, operation


def test_aug_mix_is_a_mean_of_the_image_and_its_chains(draws: list[Call]) -> None:
    """Without the operations, it is the image, but for truncation."""
    images = smooth(50)
    result = augment.aug_mix(3)(random.key(0), images)
    assert set((images.int() - result.int()).unique().tolist()) <= {0, 1}


def test_aug_mix_weighs_chains_as_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """White images whose chains are black keep the weight of the image: uniform for alpha 1."""
    monkeypatch.setattr(policies, "apply_operations", lambda images, *_, **__: 0 * images)
    white = torch.full((4000, 1, 1, 1), 255, dtype=torch.uint8)
    kept = augment.aug_mix(3)(random.key(0), white).flatten().double().sort().values
    distance = (kept / 255 - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert distance < 1.95 / math.sqrt(4000) + 1 / 255


def test_random_erasing_is_torchvisions() -> None:
    """Areas, shapes and places are distributed as in torchvision's, drawn one by one."""
    from torchvision.transforms import v2

    count = 3000
    white = torch.full((1, 32, 32), 255, dtype=torch.uint8)
    ours = augment.random_erasing(1.0)(random.key(0), white.expand(count, 1, 32, 32))
    transform = v2.RandomErasing(p=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [transform.make_params([white]) for _ in range(count)]
    gone = ours[:, 0] == 0
    height, width = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), height * width), "rectangles"
    top, left = gone.any(2).int().argmax(1), gone.any(1).int().argmax(1)
    for name, values in {"h": height, "w": width, "i": top, "j": left}.items():
        theirs = torch.tensor([p[name] for p in params])
        counts = [torch.bincount(x, minlength=33).double() for x in (values, theirs)]
        cumulated = [x.cumsum(0) / count for x in counts]
        distance = (cumulated[0] - cumulated[1]).abs().max()
        assert distance < 1.95 * math.sqrt(2 / count), name


def test_random_erasing_has_its_probability() -> None:
    white = torch.full((2000, 1, 32, 32), 255, dtype=torch.uint8)
    gone = augment.random_erasing(0.3)(random.key(0), white)
    share = (gone == 0).flatten(1).any(1).double().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / 2000)
    filled = augment.random_erasing(1.0, scale=(0.1, 0.1), ratio=(1, 1), fill=0.2)
    counts = (filled(random.key(0), white) == 51).flatten(1).sum(1)
    assert set(counts.tolist()) == {100}, "a tenth of 1024 pixels as a square"


# What every augmentation promises is in test_augment.py -----------------------------------------


def test_a_shard_gets_what_the_batch_gets() -> None:
    images, key = smooth(8), random.key(3)
    for name, function in POLICIES.items():
        part = function(random.from_row(key, 4), images[4:])
        assert torch.equal(part, function(key, images)[4:]), name


def test_no_operation_is_the_identity() -> None:
    images = smooth(2) / 255
    for function in (augment.rand_augment(0), augment.random_erasing(0)):
        assert torch.equal(function(random.key(0), images), images)


def test_one_channel_will_do() -> None:
    images = smooth(8)[:, :1]
    for function in POLICIES.values():
        assert function(random.key(0), images).shape == images.shape


def test_space_ends_follow_the_size() -> None:
    ends = dict(zip(OPERATIONS, Space(0.1, 0.5, True, 1.0, 1.0, (8, 4)).ends(20, 30), strict=True))
    assert ends["translate_x"] == (0.0, 15.0)
    assert ends["translate_y"] == (0.0, 10.0)


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda: augment.rand_augment(-1), "num_ops as an integer from 0 to 100, not -1"),
        (lambda: augment.rand_augment(2, 31), "magnitude as an integer from 0 to 30, not 31"),
        (lambda: augment.rand_augment(2.5), "num_ops as an integer from 0 to 100, not 2.5"),  # type: ignore[arg-type]
        (lambda: augment.aug_mix(0), "severity as an integer from 1 to 10, not 0"),
        (lambda: augment.aug_mix(3, width=0), "width as an integer from 1 to 10, not 0"),
        (lambda: augment.aug_mix(3, alpha=0.0), "alpha from 0.001 to 1000, not 0"),
        (lambda: augment.random_erasing(1.5), r"probability in \[0, 1\], not 1.5"),
        (
            lambda: augment.random_erasing(scale=(0.5, 0.1)),
            r"scale as \(low, high\) with 0 <= low <= high <= 1, not \(0.5, 0.1\)",
        ),
        (
            lambda: augment.rand_augment()(random.key(0), torch.zeros(2, 4, 8, 8)),
            r"rand_augment needs images \[B, 1, H, W\] or \[B, 3, H, W\], not \[2, 4, 8, 8\]",
        ),
    ],
)
def test_misuse_is_told(misuse: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        misuse()
