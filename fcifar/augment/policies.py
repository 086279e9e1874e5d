"""Policies of drawn operations: RandAugment, TrivialAugment, AutoAugment and AugMix.

Each image has its own draw of operations and magnitudes. Operations, ranges of magnitudes, signs
and probabilities are those of ``torchvision.transforms.v2``, which draws once for all images that
it is given.

There is no branch on what is drawn. Each operation is an affine map, a table of grey levels or a
blend, and is the identity of the other two families, so that one operation for each of B images
takes three passes over the batch, whichever operations they are.

Images have one or three channels. Floating images in [0, 1] are rounded to 256 levels first, and
the result is divided by 255.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import layers, random
from fcifar.augment import base, color, functional
from fcifar.augment.base import Augment, identity
from fcifar.random import Key

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness"),
    *("color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
    "invert",
)
"""Operations by their number in ``apply_operations``. Magnitudes are a slope (shear), pixels
(translate, truncated to whole ones), degrees (rotate), a factor minus 1 (brightness, color,
contrast, sharpness), a number of bits (posterize, rounded), or a threshold in [0, 1] (solarize)."""

SIGNED = frozenset(OPERATIONS[1:10])
"""Operations whose magnitude is negated with probability 1/2."""

BINS = 31  # magnitudes of RandAugment and TrivialAugment, evenly spaced
_AUTO_BINS = 10
_MIX_BINS, _MIX_DEPTH = 10, 3
_NUMBER = {name: i for i, name in enumerate(OPERATIONS)}


class Space(NamedTuple):
    """Ranges of magnitudes, from the weakest to the strongest bin."""

    shear: float
    translate: float  # in pixels, or as a fraction of the side
    is_fraction: bool
    rotate: float
    factor: float  # of brightness, color, contrast and sharpness
    posterize: tuple[int, int]  # bits

    def ends(self, height: int, width: int) -> list[tuple[float, float]]:
        """Return the first and the last magnitude of each operation, for a size of images."""
        sides = {"translate_x": width, "translate_y": height}
        pixels = {n: self.translate * (s if self.is_fraction else 1) for n, s in sides.items()}
        tops = {"shear_x": self.shear, "shear_y": self.shear, **pixels, "rotate": self.rotate}
        tops |= dict.fromkeys(("brightness", "color", "contrast", "sharpness"), self.factor)
        ranges = {name: (0.0, float(top)) for name, top in tops.items()}
        ranges |= {"posterize": self.posterize, "solarize": (1.0, 0.0)}
        return [ranges.get(name, (0.0, 0.0)) for name in OPERATIONS]


RANDOM = Space(0.3, 150 / 331, True, 30.0, 0.9, (8, 4))  # of RandAugment and AutoAugment
WIDE = Space(0.99, 32.0, False, 135.0, 0.99, (8, 2))
MIXED = Space(0.3, 1 / 3, True, 30.0, 0.9, (4, 0))

# Pairs of operations with probability and bin: the policy of CIFAR-10 in the paper's appendix.
_CIFAR10 = """
invert 0.1 0, contrast 0.2 6
rotate 0.7 2, translate_x 0.3 9
sharpness 0.8 1, sharpness 0.9 3
shear_y 0.5 8, translate_y 0.7 9
autocontrast 0.5 0, equalize 0.9 0
shear_y 0.2 7, posterize 0.3 7
color 0.4 3, brightness 0.6 7
sharpness 0.3 9, brightness 0.7 9
equalize 0.6 0, equalize 0.5 0
contrast 0.6 7, sharpness 0.6 5
color 0.7 7, translate_x 0.5 8
equalize 0.3 0, autocontrast 0.4 0
translate_y 0.4 3, sharpness 0.2 6
brightness 0.9 6, color 0.2 8
solarize 0.5 2, invert 0.0 0
equalize 0.2 0, autocontrast 0.6 0
equalize 0.2 0, equalize 0.6 0
color 0.9 9, equalize 0.6 0
autocontrast 0.8 0, solarize 0.2 8
brightness 0.1 3, color 0.7 0
solarize 0.4 5, autocontrast 0.9 0
translate_y 0.9 9, translate_y 0.7 9
autocontrast 0.9 0, solarize 0.8 3
equalize 0.8 0, invert 0.1 0
translate_y 0.7 9, autocontrast 0.9 0
"""


def rand_augment(num_ops: int = 2, magnitude: int = 9) -> Augment:
    """RandAugment: ``num_ops`` operations one after another, all with the same magnitude.

    Cubuk, Zoph, Shlens and Le, https://arxiv.org/abs/1909.13719. Each operation is uniform over
    ``OPERATIONS`` without invert.

    Args:
        num_ops: from 0 to 100.
        magnitude: bin, from 0 to 30.

    >>> augment = fcifar.augment.rand_augment(2, 9)
    >>> augment(fcifar.random.key(0), torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3, 32, 32])
    """
    base.check_count("rand_augment", "num_ops", num_ops, most=100)
    base.check_count("rand_augment", "magnitude", magnitude, most=BINS - 1)

    def augment(key: Key, images: Tensor) -> Tensor:
        levels, size = _levels("rand_augment", images), len(images)
        for subkey in random.split(key, num_ops):
            operation_key, sign_key = random.split(subkey)
            operation = random.randint(operation_key, (size,), 0, len(OPERATIONS) - 1)
            strength = torch.full_like(operation, magnitude)
            drawn = draw_magnitudes(sign_key, RANDOM, BINS, operation, strength, levels)
            levels = apply_operations(levels, operation, drawn)
        return color.from_levels(levels, images.dtype)

    return augment if num_ops else identity


def trivial_augment() -> Augment:
    """TrivialAugment (wide): one operation with a magnitude uniform over 31 bins.

    Müller and Hutter, https://arxiv.org/abs/2103.10158. The operation is uniform over
    ``OPERATIONS`` without invert.
    """

    def augment(key: Key, images: Tensor) -> Tensor:
        levels, size = _levels("trivial_augment", images), len(images)
        operation_key, strength_key, sign_key = random.split(key, 3)
        operation = random.randint(operation_key, (size,), 0, len(OPERATIONS) - 1)
        strength = random.randint(strength_key, (size,), 0, BINS)
        drawn = draw_magnitudes(sign_key, WIDE, BINS, operation, strength, levels)
        return color.from_levels(apply_operations(levels, operation, drawn), images.dtype)

    return augment


def auto_augment() -> Augment:
    """AutoAugment with the policy found on CIFAR-10.

    Cubuk, Zoph, Mane, Vasudevan and Le, https://arxiv.org/abs/1805.09501. One of 25 pairs of
    operations, each of which is applied with its probability.
    """
    pairs = [[part.split() for part in line.split(",")] for line in _CIFAR10.strip().split("\n")]

    def augment(key: Key, images: Tensor) -> Tensor:
        levels, size = _levels("auto_augment", images), len(images)
        pair_key, *keys = random.split(key, 3)
        pair = random.randint(pair_key, (size,), 0, len(pairs))
        for i, subkey in enumerate(keys):
            chosen_key, sign_key = random.split(subkey)
            steps = [pair[i] for pair in pairs]
            operation = _chosen([_NUMBER[name] for name, _, _ in steps], pair)
            p = _chosen([float(p) for _, p, _ in steps], pair, torch.float32)
            strength = _chosen([int(strength) for _, _, strength in steps], pair)
            operation = torch.where(random.bernoulli(chosen_key, p), operation, 0)
            drawn = draw_magnitudes(sign_key, RANDOM, _AUTO_BINS, operation, strength, levels)
            levels = apply_operations(levels, operation, drawn)
        return color.from_levels(levels, images.dtype)

    return augment


def aug_mix(severity: int = 3, *, width: int = 3, alpha: float = 1.0) -> Augment:
    """AugMix: a weighted mean of the image and of ``width`` chains of 1 to 3 operations.

    Hendrycks et al., https://arxiv.org/abs/1912.02781, without their loss. The weight of the image
    is drawn from Beta(alpha, alpha), and the rest is divided among the chains by a Dirichlet
    distribution. Operations are uniform over ``OPERATIONS`` without identity and invert, and
    affine ones interpolate bilinearly.

    Args:
        severity: number of bins of magnitudes that are drawn from, the weakest ones; from 1 to 10.
        width: number of chains, from 1 to 10.
        alpha: from 0.001 to 1000.
    """
    base.check_count("aug_mix", "severity", severity, 1, _MIX_BINS)
    base.check_count("aug_mix", "width", width, 1, 10)
    base.check_alpha("aug_mix", alpha)

    def augment(key: Key, images: Tensor) -> Tensor:
        levels, size = _levels("aug_mix", images), len(images)
        operation_key, strength_key, sign_key, depth_key, own_key, part_key = random.split(key, 6)
        shape = (size, width, _MIX_DEPTH)
        operation = random.randint(operation_key, shape, 1, len(OPERATIONS) - 1)
        depth = random.randint(depth_key, (size, width, 1), 1, _MIX_DEPTH + 1)
        is_used = torch.arange(_MIX_DEPTH, device=images.device) < depth
        operation = torch.where(is_used, operation, 0)
        strength = random.randint(strength_key, shape, 0, severity)
        drawn = draw_magnitudes(sign_key, MIXED, _MIX_BINS, operation, strength, levels)
        # The chains of all images as one batch, in the order of the images for each chain.
        chains = levels.repeat(width, 1, 1, 1)
        for i in range(_MIX_DEPTH):
            of_step = (x[..., i].T.reshape(-1) for x in (operation, drawn))
            chains = apply_operations(chains, *of_step, interpolation="bilinear")
        own = base.beta(own_key, alpha, size)
        parts = base.dirichlet(part_key, alpha, (size, width)) * (1 - own)[:, None]
        mixed = levels * _column(own)
        for chain, part in zip(chains.split(size), parts.unbind(1), strict=True):
            mixed = mixed + chain * _column(part)
        return color.from_levels(color.truncated(mixed), images.dtype)

    return augment


# Operations --------------------------------------------------------------------------------------


def apply_operations(
    images: Tensor, operations: Tensor, magnitudes: Tensor, *, interpolation: str = "nearest"
) -> Tensor:
    """Apply one operation to each image.

    Args:
        images: uint8 [B, 1, H, W] or [B, 3, H, W].
        operations: int64 [B], indices of ``OPERATIONS``.
        magnitudes: float32 [B], in the units of ``OPERATIONS``; ignored where there are none.
        interpolation: "nearest" or "bilinear", of affine operations.

    >>> images = torch.tensor([10, 200], dtype=torch.uint8).reshape(1, 1, 1, 2)
    >>> number = fcifar.augment.policies.OPERATIONS.index("solarize")
    >>> fcifar.augment.policies.apply_operations(
    ...     images, torch.tensor([number]), torch.tensor([0.5])
    ... )
    tensor([[[[10, 55]]]], dtype=torch.uint8)
    """
    height, width = images.shape[-2:]
    matrix = _inverse_matrix(operations, magnitudes, height, width)
    images = functional.stored(functional.affine(images, matrix, interpolation=interpolation))
    images = color.apply_table(images, _table(images, operations, magnitudes))
    of_color = _is(operations, "color")
    factors = torch.where(of_color | _is(operations, "sharpness"), 1 + magnitudes, 1.0)
    return color.blend(images, factors, of_color)


def _inverse_matrix(operations: Tensor, magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Return the inverse matrices of affine operations, as ``functional.affine`` takes them."""

    def only(name: str, values: Tensor) -> Tensor:
        return torch.where(_is(operations, name), values, 0.0)

    degrees = only("rotate", magnitudes)
    angles = torch.deg2rad(degrees if degrees.is_mps else degrees.double())
    cos, sin = torch.cos(angles).float(), torch.sin(angles).float()
    across, down = only("shear_x", magnitudes), only("shear_y", magnitudes)
    pixels = torch.trunc(magnitudes)
    x = (cos, across - sin, across * (height / 2) - only("translate_x", pixels))
    y = (down + sin, cos, down * (width / 2) - only("translate_y", pixels))
    return torch.stack([torch.stack(x, -1), torch.stack(y, -1)], -2)


def _table(images: Tensor, operations: Tensor, magnitudes: Tensor) -> Tensor:
    """Return the tables of grey levels of the operations that are functions of them.

    Each of the functions in turn leaves the tables of other operations unchanged.
    """
    is_contrast = _is(operations, "contrast")
    factors = torch.where(is_contrast | _is(operations, "brightness"), 1 + magnitudes, 1.0)
    origin = torch.where(is_contrast, color.mean_grey(images), 0.0)
    bits = torch.where(_is(operations, "posterize"), torch.round(magnitudes), 8.0)
    thresholds = torch.where(_is(operations, "solarize"), magnitudes, 2.0)
    thresholds = torch.where(_is(operations, "invert"), 0.0, thresholds)
    table = color.scale_levels(color.identity_table(images), factors, origin)
    table = color.solarize_levels(color.posterize_levels(table, bits), thresholds)
    for name, change in (
        ("autocontrast", color.autocontrast_levels),
        ("equalize", color.equalize_levels),
    ):
        is_chosen = _is(operations, name)[:, None, None]
        table = torch.where(is_chosen, change(images, table), table)
    return table


def _is(operations: Tensor, name: str) -> Tensor:
    return operations == _NUMBER[name]


# Magnitudes --------------------------------------------------------------------------------------


def draw_magnitudes(
    key: Key, space: Space, bins: int, operations: Tensor, strengths: Tensor, images: Tensor
) -> Tensor:
    """Return the magnitudes of bins, negated with probability 1/2 where the sign is drawn.

    They are evenly spaced like ``torch.linspace``, which counts the second half from the end.

    Args:
        bins: number of magnitudes, 2 or more.
        operations: int64, indices of ``OPERATIONS``.
        strengths: int64 of the same shape, in [0, bins).
        images: [B, C, H, W], of whose size translations may be a fraction.
    """
    ends = space.ends(*images.shape[-2:])
    first, last = (_chosen(list(x), operations, torch.float32) for x in zip(*ends, strict=True))
    step = (last - first) / (bins - 1)
    up, down = first + step * strengths, last - step * (bins - 1 - strengths)
    magnitudes = torch.where(strengths < bins / 2, up, down)
    is_signed = _chosen([name in SIGNED for name in OPERATIONS], operations, torch.bool)
    is_negative = random.bernoulli(key, 0.5, operations.shape) & is_signed
    return torch.where(is_negative, -magnitudes, magnitudes)


def _chosen(values: Sequence[float], index: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return ``values[index]``, for a tensor of indices."""
    return layers.constant(values, index, dtype)[index]


def _levels(where: str, images: Tensor) -> Tensor:
    base.check_grey_or_rgb(where, images)
    return color.to_levels(images)


def _column(x: Tensor) -> Tensor:
    return functional.stored(x)[:, None, None, None]
