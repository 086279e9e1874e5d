"""ResNet-20 to ResNet-110 against a plain module, and their shortcut by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import models, random, tree
from fcifar.models import Variables
from fcifar.models.resnet_cifar import shortcut


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wider = outputs - inputs
        stride = 2 if self.wider else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.wider:
            zeros = torch.zeros(len(x), self.wider // 2, *y.shape[2:], dtype=x.dtype)
            x = torch.cat([zeros, F.avg_pool2d(x, 1, 2), zeros], 1)
        return (x + y).relu()


class ResNet(nn.Module):
    """The network of the paper, by its layers in a row."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width]
        for i in range(1, 4):
            first, rest = Block(widths[i - 1], widths[i]), (widths[i], widths[i])
            layer = nn.Sequential(first, *(Block(*rest) for _ in range(blocks - 1)))
            self.add_module(f"layer{i}", layer)
        self.linear = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_layers_and_parameters_are_the_papers(name: str, count: int) -> None:
    params = models.MODELS[name]().init(random.key(0, device="meta")).params
    assert sum(p.numel() for p in params.values()) == count
    layers = sum(p.ndim > 1 for p in params.values())
    assert layers == int(name.removeprefix("resnet"))


def test_it_equals_a_module_in_float64() -> None:
    """Names, and in training and evaluation logits, gradients and running statistics."""
    model, twin = models.resnet_cifar(14, width=6), ResNet(2, 6).double()
    variables = tree.map(lambda v: v.double(), model.init(random.key(0)))
    assert list(variables.params) == [name for name, _ in twin.named_parameters()]
    tracked = [name for name, _ in twin.named_buffers() if not name.endswith("tracked")]
    assert list(variables.buffers) == tracked
    twin.load_state_dict({**variables.params, **variables.buffers}, strict=False)
    images = random.normal(random.key(1), (4, 3, 32, 32)).double()

    def objective(params: models.Params):
        within = Variables(params, variables.buffers)
        logits, buffers = model.apply(within, images, key=random.key(2), train=True)
        return (logits**2).sum(), (logits, buffers)

    grads, (logits, buffers) = torch.func.grad(objective, has_aux=True)(variables.params)
    expected = twin.train()(images)
    (expected**2).sum().backward()
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-11)
    for name, p in twin.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-7, atol=1e-10, msg=name)
    for name, value in buffers.items():
        torch.testing.assert_close(value, twin.get_buffer(name), rtol=1e-11, atol=1e-12)
    logits, _ = model.apply(variables._replace(buffers=buffers), images)
    with torch.no_grad():
        torch.testing.assert_close(logits, twin.eval()(images), rtol=1e-10, atol=1e-12)


def test_the_shortcut_takes_every_second_pixel_and_pads_with_zeros() -> None:
    x = random.normal(random.key(0), (2, 3, 4, 4))
    assert shortcut(x, 3, 1) is not None
    assert torch.equal(shortcut(x, 3, 1), x)
    y = shortcut(x, 6, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, [0, 4, 5]].any()


def test_kernels_start_normal_with_variance_two_over_fan_out() -> None:
    params = models.resnet20().init(random.key(0)).params
    for name, p in params.items():
        if p.ndim == 4:
            std = math.sqrt(2 / (p.shape[0] * 9))
            assert abs(p.std() / std - 1) < 5 / math.sqrt(2 * p.numel()), name
    assert params["linear.weight"].abs().max() <= 1 / 8


@pytest.mark.parametrize("depth", [True, 20.0, "20", 2, 14.5, 18, 1208, 10**30])
def test_depths_are_checked(depth: int) -> None:
    with pytest.raises(ValueError, match=r"depth is .*; it must be 6n \+ 2 from 8 up to 1,202"):
        models.resnet_cifar(depth)


@pytest.mark.parametrize("width", [0, True, 4.0, 10**9 + 1])
def test_widths_are_checked(width: int) -> None:
    with pytest.raises(ValueError, match=r"width is .* whole number from 1 up"):
        models.resnet20(width=width)
    with pytest.raises(ValueError, match=r"num_classes is .* whole number from 1 up"):
        models.resnet110(num_classes=width)
