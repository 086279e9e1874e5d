"""The tutorials' networks and optimizers in plain PyTorch: what fcifar is measured against.

They are written out here as published and not taken from ``fcifar.models``, for a network that is
made faster there must not take its reference along. Tests hold the two to the same values.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar.models import Params
from fcifar.recipes import Recipe


class LeNet(nn.Module):
    """https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html"""

    def __init__(self, *, num_classes: int = 10, hidden: int = 84, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout  # of the input; the page has none
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
"""By the names of ``models.MODELS``, each callable with the same options."""


def make_module(recipe: Recipe, params: Params) -> nn.Module:
    """The recipe's network as a module in training mode that begins with ``params``."""
    num_classes = len(list(params.values())[-1])  # numbers in the bias of the last layer
    with torch.device("meta"):  # its own initial values would be drawn from a global generator
        module = MODULES[recipe.model](num_classes=num_classes, **recipe.model_options)
    copies = {name: param.detach().clone() for name, param in params.items()}
    module.load_state_dict(copies, assign=True)
    return module.requires_grad_().train()


def make_normalise(recipe: Recipe, device: str) -> Callable[[Tensor], Tensor]:
    """The recipe's normalisation of uint8 images, its constants waiting on the device."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (recipe.mean, recipe.std))
    return lambda images: (images.float() / 255 - mean) / std


def make_optimizer(
    recipe: Recipe, params: Iterable[nn.Parameter], *, fused: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer at its peak learning rate."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    # None is what a tutorial leaves it at: torch chooses between a loop and a batched update.
    how = True if fused else None
    match recipe.optimizer:
        case "adam":
            return torch.optim.Adam(params, rate, weight_decay=decay, fused=how)
        case "adamw":
            return torch.optim.AdamW(params, rate, weight_decay=decay, fused=how)
        case _:
            return torch.optim.SGD(
                params,
                rate,
                momentum=recipe.momentum,
                weight_decay=decay,
                nesterov=recipe.nesterov,
                fused=how,
            )
