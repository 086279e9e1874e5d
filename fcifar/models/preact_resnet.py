"""Residual networks with pre-activation: ResNet-18 and the wide residual networks.

He, Zhang, Ren and Sun, "Identity mappings in deep residual networks",
https://arxiv.org/abs/1603.05027, and Zagoruyko and Komodakis, "Wide residual networks",
https://arxiv.org/abs/1605.07146.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers, random
from fcifar.errors import shown
from fcifar.models.base import Model, Variables, from_normed_skeleton, on_meta
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key

DEEPEST = 1000  # layers of a wide residual network

_Normed = tuple[Tensor, dict[str, Tensor]]


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Block(nn.Module):
    """norm, ReLU, conv, norm, ReLU, dropout, conv, added to the input.

    Where the shape changes, a 1x1 convolution of the normalised input takes the input's place.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, axis: Axis) -> None:
        super().__init__()
        self.dropout = dropout
        self.bn1 = layers.BatchNorm(inputs, axis=axis)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = layers.BatchNorm(outputs, axis=axis)
        self.conv2 = _conv(outputs, outputs, 3)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride))

    def forward(self, x: Tensor, train: bool, key: Key | None) -> _Normed:
        y, first = self.bn1(x, train)
        y = F.relu(y)
        x = x if self.shortcut is None else self.shortcut(y)
        y, second = self.bn2(self.conv1(y), train)
        y = self.conv2(layers.dropout(key, F.relu(y), self.dropout))
        return x + y, layers.named("bn1", first) | layers.named("bn2", second)


class _PreActResNet(nn.Module):
    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        num_classes: int,
        axis: Axis,
        *,
        dropout: float = 0.0,
        final_norm: bool = False,
    ) -> None:
        super().__init__()
        self.dropout, self.groups, self.blocks = dropout, len(widths), blocks
        self.conv1 = _conv(3, stem, 3)
        inputs = stem
        for i, outputs in enumerate(widths):
            first = _Block(inputs, outputs, 1 if i == 0 else 2, dropout, axis)
            rest = [_Block(outputs, outputs, 1, dropout, axis) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.ModuleList([first, *rest]))
            inputs = outputs
        self.bn1 = layers.BatchNorm(inputs, axis=axis) if final_norm else None
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor, train: bool, key: Key | None) -> _Normed:
        statistics: dict[str, Tensor] = {}
        count = self.groups * self.blocks
        drops = self.dropout > 0 and key is not None
        keys = iter(random.split(key, count) if drops else [None] * count)
        x = self.conv1(layers.channels_last(x))
        for i in range(1, self.groups + 1):
            for j, block in enumerate(getattr(self, f"layer{i}")):
                x, running = block(x, train, next(keys))
                statistics |= layers.named(f"layer{i}.{j}", running)
        if self.bn1 is not None:
            x, running = self.bn1(x, train)
            x = F.relu(x)
            statistics |= layers.named("bn1", running)
        return self.linear(x.mean((2, 3))), statistics


def _model(skeleton: nn.Module) -> Model:
    def init(key: Key) -> Variables:
        params = layers.kaiming_init(skeleton, key)
        return Variables(params, layers.default_buffers(skeleton, key.device))

    return from_normed_skeleton(skeleton, init, draws=True)


def preact_resnet18(*, width: int = 64, num_classes: int = 10, axis: Axis = ALONE) -> Model:
    """ResNet-18 with pre-activation blocks and a 3x3 stem: 11,171,146 parameters.

    Architecture and names are those of https://github.com/kuangliu/pytorch-cifar: unlike in the
    paper, the last block is not followed by a batch norm and a ReLU. Convolutions start normal with
    variance 2 / fan-out, batch norms as 1 and 0, the linear layer as PyTorch's default.

    Args:
        width: channels of the stem and the first group; each further group has twice as many.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: an argument is not a positive integer, or there would be more than
            ``LARGEST_MODEL`` parameters.
    """
    layers.check_width("width", width)
    layers.check_width("num_classes", num_classes)
    widths = [width << i for i in range(4)]
    return _model(on_meta(lambda: _PreActResNet(width, widths, 2, num_classes, axis)))


def wrn(
    *,
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
    num_classes: int = 10,
    axis: Axis = ALONE,
) -> Model:
    """WRN-``depth``-``width``, a wide residual network: 36,479,194 parameters by default.

    A 3x3 stem with 16 channels; three groups of pre-activation blocks with 16, 32 and 64 times
    ``width`` channels, the second and the third with stride 2; batch norm, ReLU, mean and linear.
    Convolutions start normal with variance 2 / fan-out, as in the authors' code, batch norms as 1
    and 0, the linear layer as PyTorch's default. Names are as in ``preact_resnet18``, with ``bn1``
    for the last batch norm.

    Args:
        depth: 6n + 4 with n blocks per group; from 10 up to 1,000.
        width: the factor of the channels.
        dropout: the rate between the two convolutions of a block, in [0, 1).
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: an argument is of another type or out of range, or there would be more than
            ``LARGEST_MODEL`` parameters.

    >>> variables = fcifar.models.wrn(depth=16, width=8).init(fcifar.random.key(0, device="meta"))
    >>> sum(p.numel() for p in variables.params.values())
    10961370
    """
    if (
        isinstance(depth, bool)
        or not isinstance(depth, int)
        or not 10 <= depth <= DEEPEST
        or depth % 6 != 4
    ):
        raise ValueError(
            f"depth is {shown(depth)}; it must be 6n + 4 from 10 up to {DEEPEST:,}, such as 28"
        )
    layers.check_width("width", width)
    layers.check_width("num_classes", num_classes)
    layers.check_rate("dropout", dropout)
    widths, blocks = [16 * width, 32 * width, 64 * width], (depth - 4) // 6
    return _model(
        on_meta(
            lambda: _PreActResNet(
                16, widths, blocks, num_classes, axis, dropout=dropout, final_norm=True
            )
        )
    )
