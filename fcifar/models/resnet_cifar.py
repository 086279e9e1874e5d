"""The residual networks for CIFAR-10: ResNet-20, 32, 44, 56 and 110.

He, Zhang, Ren and Sun, "Deep residual learning for image recognition", section 4.2,
https://arxiv.org/abs/1512.03385.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers
from fcifar.errors import shown
from fcifar.models.base import Model, Variables, from_normed_skeleton, on_meta
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key

DEEPEST = 1202  # layers, the deepest network of the paper

_Normed = tuple[Tensor, dict[str, Tensor]]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def shortcut(x: Tensor, outputs: int, stride: int) -> Tensor:
    """The shortcut without parameters, option A of the paper.

    Takes every ``stride``-th pixel of [B, C, H, W] in both directions, and pads with zero channels
    to ``outputs``: half of them before, the other half after the channels of ``x``.
    """
    missing = outputs - x.shape[1]
    x = x[:, :, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2)) if missing else x


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, axis: Axis) -> None:
        super().__init__()
        self.outputs, self.stride = outputs, stride
        self.conv1 = _conv(inputs, outputs, stride)
        self.bn1 = layers.BatchNorm(outputs, axis=axis)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = layers.BatchNorm(outputs, axis=axis)

    def forward(self, x: Tensor, train: bool) -> _Normed:
        y, first = self.bn1(self.conv1(x), train)
        y, second = self.bn2(self.conv2(F.relu(y)), train)
        statistics = layers.named("bn1", first) | layers.named("bn2", second)
        return F.relu(y + shortcut(x, self.outputs, self.stride)), statistics


class _ResNet(nn.Module):
    def __init__(self, blocks: int, width: int, num_classes: int, axis: Axis) -> None:
        super().__init__()
        self.conv1 = _conv(3, width)
        self.bn1 = layers.BatchNorm(width, axis=axis)
        for i in range(3):
            outputs, inputs, stride = width << i, width << max(i - 1, 0), 1 if i == 0 else 2
            first = _Block(inputs, outputs, stride, axis)
            rest = [_Block(outputs, outputs, 1, axis) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.ModuleList([first, *rest]))
        self.linear = nn.Linear(width << 2, num_classes)

    def forward(self, x: Tensor, train: bool) -> _Normed:
        x, running = self.bn1(self.conv1(layers.channels_last(x)), train)
        x, statistics = F.relu(x), layers.named("bn1", running)
        for i in range(1, 4):
            for j, block in enumerate(getattr(self, f"layer{i}")):
                x, running = block(x, train)
                statistics |= layers.named(f"layer{i}.{j}", running)
        return self.linear(x.mean((2, 3))), statistics


def resnet_cifar(
    depth: int, *, width: int = 16, num_classes: int = 10, axis: Axis = ALONE
) -> Model:
    """A 3x3 stem, three groups of residual blocks of two 3x3 convolutions, mean, linear.

    The groups have ``width``, 2 ``width`` and 4 ``width`` channels; the first block of the second
    and the third has stride 2. Shortcuts have no parameters (see ``shortcut``). Convolutions start
    normal with variance 2 / fan-out, batch norms as 1 and 0, the linear layer as PyTorch's default.
    Names are those of https://github.com/akamaster/pytorch_resnet_cifar10.

    Args:
        depth: convolutions and the linear layer, 6n + 2 with n blocks per group; at most 1,202.
        width: channels of the stem.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: ``depth`` is not 6n + 2, another argument is not a positive integer, or there
            would be more than ``LARGEST_MODEL`` parameters.

    >>> model = fcifar.models.resnet_cifar(14, width=4)
    >>> variables = model.init(fcifar.random.key(0))
    >>> logits, _ = model.apply(variables, torch.zeros(2, 3, 32, 32))
    >>> logits.shape
    torch.Size([2, 10])
    """
    if (
        isinstance(depth, bool)
        or not isinstance(depth, int)
        or not 8 <= depth <= DEEPEST
        or depth % 6 != 2
    ):
        raise ValueError(
            f"depth is {shown(depth)}; it must be 6n + 2 from 8 up to {DEEPEST:,}, such as 20"
        )
    layers.check_width("width", width)
    layers.check_width("num_classes", num_classes)
    skeleton = on_meta(lambda: _ResNet((depth - 2) // 6, width, num_classes, axis))

    def init(key: Key) -> Variables:
        params = layers.kaiming_init(skeleton, key)
        return Variables(params, layers.default_buffers(skeleton, key.device))

    return from_normed_skeleton(skeleton, init)


def resnet20(*, width: int = 16, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-20 for CIFAR-10, 269,722 parameters; arguments as in ``resnet_cifar``."""
    return resnet_cifar(20, width=width, num_classes=num_classes, axis=axis)


def resnet32(*, width: int = 16, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-32 for CIFAR-10, 464,154 parameters; arguments as in ``resnet_cifar``."""
    return resnet_cifar(32, width=width, num_classes=num_classes, axis=axis)


def resnet44(*, width: int = 16, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-44 for CIFAR-10, 658,586 parameters; arguments as in ``resnet_cifar``."""
    return resnet_cifar(44, width=width, num_classes=num_classes, axis=axis)


def resnet56(*, width: int = 16, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-56 for CIFAR-10, 853,018 parameters; arguments as in ``resnet_cifar``."""
    return resnet_cifar(56, width=width, num_classes=num_classes, axis=axis)


def resnet110(*, width: int = 16, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-110 for CIFAR-10, 1,727,962 parameters; arguments as in ``resnet_cifar``."""
    return resnet_cifar(110, width=width, num_classes=num_classes, axis=axis)
