"""The tutorials' models and optimizers in plain PyTorch, as references for measurements.

They are copies of the published code, so that a faster model in ``fcifar.models`` does not speed up
its reference. Tests compare the values of the two.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar.models import Params
from fcifar.recipes import Recipe


class LeNet(nn.Module):
    """https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html"""

    def __init__(self, *, num_classes: int = 10, hidden: int = 84, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout  # of the input; not on the page
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, hidden)
        self.fc3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Conv3(nn.Module):
    """Three padded convolutions with pooling, dropout before each of two linear layers."""

    def __init__(self, *, num_classes: int = 10, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(64 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = self.pool(F.relu(self.conv3(x)))
        x = self.dropout(torch.flatten(x, 1))
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


MODULES: dict[str, Callable[..., nn.Module]] = {"lenet": LeNet, "conv3": Conv3}
"""Modules by their names in ``models.MODELS``, with the same options."""


def make_module(recipe: Recipe, params: Params) -> nn.Module:
    """Return the recipe's model as a module in training mode with copies of ``params``."""
    num_classes = len(list(params.values())[-1])  # the length of the last bias
    with torch.device("meta"):  # draws nothing from the global generator
        module = MODULES[recipe.model](num_classes=num_classes, **recipe.model_options)
    copies = {name: param.detach().clone() for name, param in params.items()}
    module.load_state_dict(copies, assign=True)
    return module.requires_grad_().train()


def make_normalise(recipe: Recipe, device: str) -> Callable[[Tensor], Tensor]:
    """Return the recipe's normalisation of uint8 images, with constants on the device."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (recipe.mean, recipe.std))
    return lambda images: (images.float() / 255 - mean) / std


def make_optimizer(
    recipe: Recipe, params: Iterable[nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer at its peak learning rate."""
    # None, the tutorials' default, lets torch choose between a loop and a batched update.
    common: dict[str, Any] = {"weight_decay": recipe.weight_decay, "fused": fused or None}
    if recipe.optimizer in ("adam", "adamw"):
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        return make(params, recipe.learning_rate, **common)
    momentum = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    return torch.optim.SGD(params, recipe.learning_rate, **momentum, **common)
