"""A convolutional network of 8x8 images in float64, with values that need no generator."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fcifar.models import Model, Variables
from fcifar.step import normalize

CLASSES = 5
LABELS = torch.tensor([2, 4])
IDENTITY = normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class TinyConv(nn.Module):
    """Two convolutions; ``last`` is the activation before the mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.ReLU()
        self.head = nn.Linear(6, CLASSES)
        for i, parameter in enumerate(self.parameters()):
            wave = torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + i) + i
            parameter.data = wave.sin().reshape(parameter.shape) * 0.7

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        return self.head(self.last(self.conv2(x)).mean((2, 3)))


def images() -> Tensor:
    """Two images in [0, 1], float64 [2, 3, 8, 8]; some values are near 0 and 1."""
    wave = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) * 0.37
    return (0.5 + 0.5 * (wave.sin() + 0.3 * (3 * wave).cos()) / 1.3).reshape(2, 3, 8, 8)


def start() -> Tensor:
    """Values in [-1, 1] for a start in a ball, of the images' shape."""
    return (torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) * 2.3).cos().reshape(2, 3, 8, 8)


def pure() -> tuple[Model, Variables]:
    """The network as pure functions, and its values."""
    module = TinyConv()
    variables = Variables({name: p.detach() for name, p in module.named_parameters()}, {})

    def apply(variables: Variables, images: Tensor, *, key=None, train=False):
        return functional_call(module, variables.params, (images,)), {}

    return Model(lambda key: variables, apply), variables
