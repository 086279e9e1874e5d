"""ResNet-18 for small images.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition",
https://arxiv.org/abs/1512.03385.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers
from fcifar.models.base import Model, Variables, from_normed_skeleton, on_meta
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key

_Normed = tuple[Tensor, dict[str, Tensor]]


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, axis: Axis) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = layers.BatchNorm(outputs, axis=axis)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = layers.BatchNorm(outputs, axis=axis)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            norm = layers.BatchNorm(outputs, axis=axis)
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), norm)

    def forward(self, x: Tensor, train: bool) -> _Normed:
        y, first = self.bn1(self.conv1(x), train)
        y, second = self.bn2(self.conv2(F.relu(y)), train)
        statistics = layers.named("bn1", first) | layers.named("bn2", second)
        if self.downsample is not None:
            conv, norm = self.downsample
            x, third = norm(conv(x), train)
            statistics |= layers.named("downsample.1", third)
        return F.relu(x + y), statistics


class _ResNet18(nn.Module):
    def __init__(self, width: int, num_classes: int, axis: Axis) -> None:
        super().__init__()
        self.conv1 = _conv(3, width, 3)
        self.bn1 = layers.BatchNorm(width, axis=axis)
        for i in range(4):
            outputs, inputs = width << i, width << max(i - 1, 0)
            stride = 1 if i == 0 else 2
            blocks = [_Block(inputs, outputs, stride, axis), _Block(outputs, outputs, 1, axis)]
            setattr(self, f"layer{i + 1}", nn.ModuleList(blocks))
        self.fc = nn.Linear(width << 3, num_classes)

    def forward(self, x: Tensor, train: bool) -> _Normed:
        x, running = self.bn1(self.conv1(layers.channels_last(x)), train)
        x, statistics = F.relu(x), layers.named("bn1", running)
        for i in range(1, 5):
            for j, block in enumerate(getattr(self, f"layer{i}")):
                x, running = block(x, train)
                statistics |= layers.named(f"layer{i}.{j}", running)
        return self.fc(x.mean((2, 3))), statistics


def resnet18(*, width: int = 64, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-18 with a 3x3 stem and no pooling behind it, as used on CIFAR-10.

    11.2 million parameters with a ``width`` of 64 channels in the stem. Names and initialisation
    are those of ``torchvision.models.resnet18``: convolutions normal with variance 2 / fan-out,
    batch norms 1 and 0, the linear layer PyTorch's default.

    Args:
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: an argument is not a positive integer, or there would be more than
            ``LARGEST_MODEL`` parameters.
    """
    layers.check_width("width", width)
    layers.check_width("num_classes", num_classes)
    skeleton = on_meta(lambda: _ResNet18(width, num_classes, axis))

    def init(key: Key) -> Variables:
        params = layers.kaiming_init(skeleton, key)
        return Variables(params, layers.default_buffers(skeleton, key.device))

    return from_normed_skeleton(skeleton, init)
