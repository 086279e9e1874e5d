"""Each operation at each strength, and draws of each policy: docs/results/augmentations.png.

    python -m benchmarks.render.augmentations

A row is an operation on one image of shapes10, at seven of TrivialAugment's 31 magnitudes, or a
policy with a draw for each of seven images.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar import augment, random
from fcifar.augment import color, policies
from fcifar.augment.policies import BINS, OPERATIONS, SIGNED
from fcifar.data import shapes10
from fcifar.recipes.named import named_augment, named_mix
from fcifar.report.figures.canvas import save
from fcifar.report.figures.grids import image_grid

if TYPE_CHECKING:
    from PIL.Image import Image

PATH = Path(__file__).parents[2] / "docs" / "results" / "augmentations.png"
COLUMNS = 7
POLICIES = ("rand_augment:2,9", "trivial_augment", "auto_augment", "aug_mix", "random_erasing:1")
MIXES = ("mixup:1", "cutmix:1")
UNITS = {"rotate": "{:.0f}°", "translate_x": "{:.0f} px", "translate_y": "{:.0f} px"}
UNITS |= {"posterize": "{:.0f} bits", "solarize": "from {:.2f}"}


def main() -> None:
    print(save(draw(), PATH))


def draw() -> "Image":
    """Return the figure."""
    images, labels, _, _ = shapes10.generate(train_size=COLUMNS, test_size=1)
    rows, captions = [], []
    for i, name in enumerate(OPERATIONS[1:]):
        same = images[i % COLUMNS].expand_as(images)
        changed, magnitudes = at_each_strength(name, same)
        rows.append(changed)
        title = name.replace("_", " ")
        captions += [f"{title} {caption}".strip() for caption in magnitudes]
    rows.append(images)
    captions += ["image"] * COLUMNS
    for text in POLICIES:
        rows.append(named_augment(text)(random.key(0), images))
        captions += [text] * COLUMNS
    for text in MIXES:
        mixed, targets = named_mix(text, 10)(random.key(0), images, labels)
        rows.append(color.to_levels(mixed))
        captions += [f"{text}, {share:.2f} own" for share in own_shares(targets, labels)]
    heading = "Operations at seven strengths, and draws of policies, on images of shapes10"
    drawn = image_grid(torch.cat(rows), captions, columns=COLUMNS, heading=heading).reduce(2)
    return drawn.quantize(256)  # a palette, for a third of the bytes


def at_each_strength(name: str, images: Tensor) -> tuple[Tensor, list[str]]:
    """Return the images, each after an operation at another strength, and the magnitudes."""
    number = torch.full((COLUMNS,), OPERATIONS.index(name))
    steps = torch.linspace(-1, 1, COLUMNS) if name in SIGNED else torch.linspace(0, 1, COLUMNS)
    strengths = (steps.abs() * (BINS - 1)).round().long()
    low, high = policies.WIDE.ends(*images.shape[-2:])[number[0]]
    magnitudes = low + (high - low) * strengths / (BINS - 1)
    magnitudes = torch.where(steps < 0, -magnitudes, magnitudes)
    changed = policies.apply_operations(images, number, magnitudes)
    if low == high:  # without a magnitude
        return changed, [""] * COLUMNS
    is_factor = name in ("brightness", "color", "contrast", "sharpness")
    shown = magnitudes + (1.0 if is_factor else 0.0)  # and no -0
    return changed, [UNITS.get(name, "{:.2f}").format(value) for value in shown.tolist()]


def own_shares(targets: Tensor, labels: Tensor) -> list[float]:
    """Return the part of each image's own label."""
    pair = augment.mixing.partners(labels)
    own = targets.gather(1, labels[:, None])[:, 0]
    return torch.where(pair == labels, 1.0, own).tolist()


if __name__ == "__main__":
    main()
