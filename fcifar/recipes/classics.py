"""Published networks with the settings of their papers, with differences in ``notes``.

Only ``resnet20`` has been trained to its end: one run on a JPEG copy of CIFAR-10, from whose pixels
another published method loses 3.3 points.
"""

from typing import Any

from fcifar.recipes.recipe import Recipe

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_FLIP_AND_CROP = ("random_flip", "random_crop:4")
_COMMON: dict[str, Any] = {
    "batch_size": 128,
    "precision": "bf16",
    "compile": True,
    "log_every": 0,
}

RESNET20 = Recipe(
    name="resnet20",
    summary="the 20-layer residual network for CIFAR, 164 epochs",
    source="https://arxiv.org/abs/1512.03385",
    notes="Published: 91.25 %. The paper trains for 64,000 steps, here 63,960 with 50,000 images, "
    "and subtracts the mean of each pixel; here the mean of each channel is subtracted and the "
    "result divided by its standard deviation.",
    expected="87.4 %, 11,200 s",
    model="resnet20",
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="multistep",
    milestones=(0.5, 0.75),
    epochs=164,
    drop_last=True,
    augment=_FLIP_AND_CROP,
    mean=_MEAN,
    std=_STD,
    **_COMMON,
)

RESNET56 = RESNET20.replace(
    name="resnet56",
    expected="",
    summary="resnet20 with 56 layers; for a GPU",
    notes="Published: 93.03 %. Differences from the paper are those of resnet20.",
    model="resnet56",
)

RESNET110 = RESNET20.replace(
    name="resnet110",
    expected="",
    summary="resnet20 with 110 layers and a warm-up; for a GPU",
    notes="Published: 93.57 %, the best of five runs, whose mean is 93.39 %. The paper trains at "
    "0.01 for about 400 steps first; here the rate rises from 0.01 to 0.1 over 400 steps. Other "
    "differences are those of resnet20.",
    model="resnet110",
    warmup_fraction=400 / 63_960,
    initial_rate=0.1,
)

PREACT_RESNET18 = Recipe(
    name="preact-resnet18",
    summary="ResNet-18 with pre-activation, 350 epochs; for a GPU",
    source="https://github.com/kuangliu/pytorch-cifar",
    notes="Reported by the source: 95.11 %, with these epochs and rates; its later version has 200 "
    "epochs and a cosine. The paper (https://arxiv.org/abs/1603.05027) has deeper networks for "
    "CIFAR-10.",
    model="preact_resnet18",
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="multistep",
    milestones=(150 / 350, 250 / 350),
    epochs=350,
    augment=_FLIP_AND_CROP,
    mean=_MEAN,
    std=(0.2023, 0.1994, 0.2010),
    **_COMMON,
)

WRN_28_10 = Recipe(
    name="wrn-28-10",
    summary="the wide residual network, 200 epochs; for a GPU",
    source="https://arxiv.org/abs/1605.07146",
    notes="Published: 96.00 %, the median of 5 runs; 96.11 % with dropout=0.3.",
    model="wrn",
    model_options={"depth": 28, "width": 10},
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    nesterov=True,
    weight_decay=5e-4,
    schedule="multistep",
    milestones=(0.3, 0.6, 0.8),
    milestone_factor=0.2,
    epochs=200,
    augment=("random_flip", "reflect_crop:4"),
    mean=(0.4914, 0.4824, 0.4467),
    std=(0.2471, 0.2435, 0.2616),
    **_COMMON,
)

WRN_16_8 = WRN_28_10.replace(
    name="wrn-16-8",
    summary="wrn-28-10 with 16 layers and 8 times the channels; for a GPU",
    notes="Published: 95.73 %.",
    model_options={"depth": 16, "width": 8},
)

VIT_TINY = Recipe(
    name="vit-tiny",
    summary="a vision transformer with patches of 4x4, 200 epochs; for a GPU",
    source="https://arxiv.org/abs/2010.11929",
    notes="No accuracy is published for this model without pre-training. Near it: 80 % after 200 "
    "epochs and 88 % after 500 with 6 blocks of width 512 "
    "(https://github.com/kentaroy47/vision-transformers-cifar10), and 91.01 % with 7 blocks of "
    "width 384 and AutoAugment (https://github.com/omihub777/ViT-CIFAR); warm-up, label smoothing "
    "and final rate are the latter's. Weight decay acts on all parameters.",
    model="vit_tiny",
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=0.05,
    schedule="cosine",
    warmup_fraction=5 / 200,
    initial_rate=0.01,
    final_rate=0.02,
    label_smoothing=0.1,
    epochs=200,
    augment=_FLIP_AND_CROP,
    mean=_MEAN,
    std=_STD,
    **_COMMON,
)

MLP_MIXER = Recipe(
    name="mlp-mixer",
    summary="MLP-Mixer with patches of 4x4, 300 epochs; for a GPU",
    source="https://github.com/omihub777/MLP-Mixer-CIFAR",
    notes="Reported by the source: 90.83 %, with a network of 0.67 million parameters, with "
    "AutoAugment and CutMix in place of the random crops here, and with Adam's second decay 0.99 "
    "in place of 0.999. The paper (https://arxiv.org/abs/2105.01601) has no accuracy without "
    "pre-training.",
    model="mlp_mixer",
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=5e-5,
    schedule="cosine",
    warmup_fraction=5 / 300,
    initial_rate=0.01,
    final_rate=1e-3,
    label_smoothing=0.1,
    epochs=300,
    augment=_FLIP_AND_CROP,
    mean=_MEAN,
    std=_STD,
    **_COMMON,
)

_RESNETS = (RESNET20, RESNET56, RESNET110, PREACT_RESNET18)
CLASSICS = (*_RESNETS, WRN_16_8, WRN_28_10, VIT_TINY, MLP_MIXER)
