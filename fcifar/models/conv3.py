"""Three convolutions with pooling, and two linear layers with dropout."""

import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers, random
from fcifar.models.base import Model, from_skeleton
from fcifar.random import Key


class _Conv3(nn.Module):
    def __init__(self, num_classes: int = 10, dropout: float = 0.25) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor, key: Key | None = None) -> Tensor:
        first, second = (None, None) if key is None else random.split(key)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(F.max_pool2d(conv(x), 2))
        x = layers.dropout(first, x.flatten(1), self.dropout)
        x = F.relu(self.fc1(x))
        return self.fc2(layers.dropout(second, x, self.dropout))


def conv3(*, num_classes: int = 10, dropout: float = 0.25) -> Model:
    """conv 3-16-32-64 3x3 with padding, each with ReLU and pool 2; linear 1024-500-``num_classes``.

    541,094 parameters with 10 classes; ``dropout`` is the rate before each linear layer.

    Raises:
        ValueError: ``num_classes`` is not a positive integer, ``dropout`` is outside [0, 1), or
            there would be more than ``LARGEST_MODEL`` parameters.

    >>> variables = fcifar.models.conv3().init(fcifar.random.key(0, device="meta"))
    >>> sum(p.numel() for p in variables.params.values())
    541094
    """
    layers.check_width("num_classes", num_classes)
    layers.check_rate("dropout", dropout)
    return from_skeleton(lambda: _Conv3(num_classes, dropout))
