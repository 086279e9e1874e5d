"""The methods of the speed records as recipes, for two CPU cores and for a GPU.

Sources: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
https://arxiv.org/abs/2404.00498, and Muon, https://kellerjordan.github.io/posts/muon/.
"""

from fcifar.recipes.recipe import Recipe

_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2470, 0.2435, 0.2616)

SPEED94 = Recipe(
    name="speed94",
    summary="whitening, Muon, growing images; 94 % on the original pixels",
    source="https://arxiv.org/abs/2404.00498",
    model="speednet",
    model_options={"widths": (64, 256, 256), "logit_scale": 1 / 256, "head_std": 1.0},
    optimizer="muon",
    learning_rate=0.12,
    momentum=0.8,
    group_learning_rates={"vector": 0.053, "whiten": 0.053, "linear": 0.67},
    weight_decay=2e-6 * 500 / 0.12,
    schedule="linear",
    whiten_epochs=2.5,
    loss_reduction="sum",
    label_smoothing=0.2,
    batch_size=500,
    epochs=6,
    drop_last=True,
    augment=("reflect_crop:2",),
    alternating_flip=True,
    resolutions=("24:0.5", "32"),
    tta="translate",
    precision="bf16",
    compile=True,
    mean=_CIFAR_MEAN,
    std=_CIFAR_STD,
    log_every=0,
)

SPEED = (SPEED94,)
