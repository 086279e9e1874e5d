"""Convolutions with and without max-pool, forward and backward: ``fcifar.kernels`` and PyTorch.

Every such layer of the tutorials' models in float32, with the gradients that it needs there; and
layers of ``speed94`` and ``resnet18`` in bfloat16.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import kernels, random
from fcifar.kernels import wide_conv, winograd
from fcifar.kernels.conv_pool import Shape, conv_pool, conv_pool_backward
from fcifar.train.runtime import activate, make_runtime

pytestmark = pytest.mark.slow

LAYERS = {
    "lenet conv1": Shape(3, 6, 32, 32, 5, 5, 0),
    "lenet conv2": Shape(6, 16, 14, 14, 5, 5, 0),
    "conv3 conv1": Shape(3, 16, 32, 32, 3, 3, 1),
    "conv3 conv2": Shape(16, 32, 16, 16, 3, 3, 1),
    "conv3 conv3": Shape(32, 64, 8, 8, 3, 3, 1),
}
WIDE = {  # in bfloat16
    "24 to 64, 31x31, pooled": winograd.Shape(24, 64, 31, 31, True),
    "64 to 64, 15x15": winograd.Shape(64, 64, 15, 15, False),
    "64 to 256, 15x15, pooled": winograd.Shape(64, 256, 15, 15, True),
    "256 to 256, 7x7": winograd.Shape(256, 256, 7, 7, False),
    "256 to 256, 7x7, pooled": winograd.Shape(256, 256, 7, 7, True),
    "256 to 256, 3x3": winograd.Shape(256, 256, 3, 3, False),
    "64 to 64, 32x32": winograd.Shape(64, 64, 32, 32, False),
    "512 to 512, 4x4": winograd.Shape(512, 512, 4, 4, False),
}
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
aten = torch.ops.aten


@pytest.mark.parametrize("name", ["pytorch", "fcifar"])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("batch", [4, 64, 512])
@pytest.mark.parametrize("layer", LAYERS)
def test_conv_pool(benchmark, layer: str, batch: int, way: str, name: str) -> None:
    if name == "fcifar" and (reason := kernels.why_not()):
        pytest.skip(f"no kernels here: {reason}")
    benchmark.group, benchmark.name = f"{layer} and pool, {way}, batch {batch}", name
    with activate(make_runtime(device="cpu")):
        benchmark(_make(LAYERS[layer], batch)[name][way])


@pytest.mark.parametrize("name", ["pytorch", "fcifar"])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("batch", [4, 64, 512])
@pytest.mark.parametrize("layer", WIDE)
def test_wide_conv(benchmark, layer: str, batch: int, way: str, name: str) -> None:
    if name == "fcifar" and (reason := winograd.why_not()):
        pytest.skip(f"no such kernel here: {reason}")
    benchmark.group, benchmark.name = f"{layer}, bfloat16, {way}, batch {batch}", name
    with activate(make_runtime(device="cpu")):
        benchmark(_make_wide(WIDE[layer], batch)[name][way])


def _make_wide(shape: winograd.Shape, batch: int) -> dict[str, dict[str, Callable[[], object]]]:
    c, o, h, w, pool, _ = shape
    keys = random.split(random.key(0), 3)
    last = torch.channels_last
    x = random.normal(keys[0], (batch, c, h, w)).bfloat16().contiguous(memory_format=last)
    weight = random.normal(keys[1], (o, c, 3, 3)).bfloat16().contiguous(memory_format=last)
    y = F.conv2d(x, weight, padding=1)
    pooled, indices = F.max_pool2d(y, 2, return_indices=True) if pool else (y, y)
    gradient = random.normal(keys[2], tuple(pooled.shape)).bfloat16()
    gradient = gradient.contiguous(memory_format=last)
    plain = ([o], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, needed := [True, True, False])
    if not pool:
        return {
            "pytorch": {
                "forward": lambda: F.conv2d(x, weight, padding=1),
                "backward": lambda: aten.convolution_backward(gradient, x, weight, *plain),
            },
            "fcifar": {
                "forward": lambda: winograd.conv(x, weight),
                "backward": lambda: winograd.conv_backward(gradient, x, weight, True, True),
            },
        }
    which = gradient
    if winograd.why_not() is None:
        which = winograd.conv_pool(x, weight)[1]
    is_best = winograd.is_best_behind_pool(shape)
    backward = winograd.conv_pool_backward if is_best else wide_conv.wide_conv_backward
    arguments = (gradient, which, x, weight, True, True)
    return {
        "pytorch": {
            "forward": lambda: F.max_pool2d(F.conv2d(x, weight, padding=1), 2, return_indices=True),
            "backward": lambda: _backward(gradient, y, indices, x, weight, 1, needed),
        },
        "fcifar": {
            "forward": lambda: winograd.conv_pool(x, weight),
            "backward": lambda: backward(*arguments),
        },
    }


def _backward(
    gradient: Tensor, y: Tensor, indices: Tensor, x: Tensor, weight: Tensor, pad: int, needed: list
) -> object:
    """Return PyTorch's gradients of a convolution with a 2x2 max-pool."""
    dy = aten.max_pool2d_with_indices_backward(gradient, y, *POOL, indices)
    settings = ([len(weight)], [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, needed)
    return aten.convolution_backward(dy, x, weight, *settings)


def _make(shape: Shape, batch: int) -> dict[str, dict[str, Callable[[], object]]]:
    c, o, h, w, k, l, pad = shape  # noqa: E741
    keys = random.split(random.key(0), 4)
    x = random.normal(keys[0], (batch, c, h, w))
    weight, bias = random.normal(keys[1], (o, c, k, l)), random.normal(keys[2], (o,))
    y = F.conv2d(x, weight, bias, padding=pad)
    pooled, indices = F.max_pool2d(y, 2, return_indices=True)
    # About half of it is zero, as behind a ReLU.
    gradient = random.normal(keys[3], tuple(pooled.shape)) * (pooled > 0)
    which = conv_pool(x, weight, bias, pad)[1] if kernels.why_not() is None else None
    of_input = c > 3  # the images themselves have no gradient
    needed = [of_input, True, True]
    return {
        "pytorch": {
            "forward": lambda: F.max_pool2d(F.conv2d(x, weight, bias, padding=pad), 2),
            "backward": lambda: _backward(gradient, y, indices, x, weight, pad, needed),
        },
        "fcifar": {
            "forward": lambda: conv_pool(x, weight, bias, pad),
            "backward": lambda: conv_pool_backward(gradient, which, x, weight, pad, of_input),
        },
    }
