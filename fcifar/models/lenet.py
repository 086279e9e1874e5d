"""The small convolutional model of the classic tutorial.

Source: "Training a Classifier", https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers
from fcifar.models.base import Model, from_skeleton
from fcifar.random import Key


class _LeNet(nn.Module):
    def __init__(self, hidden: int = 84, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, hidden)
        self.fc3 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor, key: Key | None = None) -> Tensor:
        x = layers.dropout(key, x, self.dropout)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = x.flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def lenet(*, hidden: int = 84, num_classes: int = 10, dropout: float = 0.0) -> Model:
    """The tutorial's ``Net``: 62,006 parameters with 84 hidden units and 10 classes.

    conv 3-6 5x5, pool 2, conv 6-16 5x5, pool 2, linear 400-120-``hidden``-``num_classes``, with
    ReLU; ``dropout`` is the rate on the input images. Parameter names are those of the tutorial.

    Raises:
        ValueError: ``hidden`` or ``num_classes`` is not a positive integer, ``dropout`` is
            outside [0, 1), or there would be more than ``LARGEST_MODEL`` parameters.

    >>> model = fcifar.models.lenet(num_classes=4)
    >>> variables = model.init(fcifar.random.key(0))
    >>> logits, _ = model.apply(variables, torch.zeros(2, 3, 32, 32))
    >>> logits.shape
    torch.Size([2, 4])
    """
    layers.check_width("hidden", hidden)
    layers.check_width("num_classes", num_classes)
    layers.check_rate("dropout", dropout)
    return from_skeleton(lambda: _LeNet(hidden, num_classes, dropout))
