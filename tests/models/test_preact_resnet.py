"""Pre-activation networks against a plain module, and the dropout of the wide ones."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import models, random, tree
from fcifar.models import Model, Variables


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        kept = self.shortcut(y) if len(self.shortcut) else x
        return kept + self.conv2(F.relu(self.bn2(self.conv1(y))))


class PreActResNet(nn.Module):
    def __init__(self, stem: int, widths: list[int], blocks: int, last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.groups = len(widths)
        for i, (inputs, outputs) in enumerate(zip([stem, *widths], widths, strict=False)):
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            layer = nn.Sequential(Block(inputs, outputs, min(i, 1) + 1), *rest)
            self.add_module(f"layer{i + 1}", layer)
        if last:
            self.bn1 = nn.BatchNorm2d(widths[-1])
        self.last = last
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(self.groups):
            x = getattr(self, f"layer{i + 1}")(x)
        x = F.relu(self.bn1(x)) if self.last else x
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("preact_resnet18", {}, 11_171_146),
        ("wrn", {}, 36_479_194),
        ("wrn", {"depth": 16, "width": 8}, 10_961_370),
        ("wrn", {"depth": 40, "width": 4}, 8_949_210),
    ],
)
def test_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    params = models.MODELS[name](**options).init(random.key(0, device="meta")).params
    assert sum(p.numel() for p in params.values()) == count


@pytest.mark.parametrize(
    ("model", "twin"),
    [
        (models.wrn(depth=10, width=1), PreActResNet(16, [16, 32, 64], 1, True)),
        (models.preact_resnet18(width=4), PreActResNet(4, [4, 8, 16, 32], 2, False)),
    ],
    ids=["wrn", "preact_resnet18"],
)
def test_it_equals_a_module_in_float64(model: Model, twin: nn.Module) -> None:
    """Names, and in training and evaluation logits, gradients and running statistics."""
    twin = twin.double()
    variables = tree.map(lambda v: v.double(), model.init(random.key(0)))
    assert set(variables.params) == {name for name, _ in twin.named_parameters()}
    tracked = {name for name, _ in twin.named_buffers() if not name.endswith("tracked")}
    assert set(variables.buffers) == tracked
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
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-7, atol=1e-9, msg=name)
    for name, value in buffers.items():
        torch.testing.assert_close(value, twin.get_buffer(name), rtol=1e-11, atol=1e-12)
    logits, _ = model.apply(variables._replace(buffers=buffers), images)
    with torch.no_grad():
        torch.testing.assert_close(logits, twin.eval()(images), rtol=1e-10, atol=1e-12)


def test_dropout_draws_from_the_key_in_training_alone() -> None:
    model = models.wrn(depth=10, width=1, dropout=0.5)
    plain = models.wrn(depth=10, width=1)
    variables = model.init(random.key(0))
    images = random.normal(random.key(1), (4, 3, 32, 32))
    a, b, c = (model.apply(variables, images, key=random.key(i), train=True)[0] for i in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    still, _ = model.apply(variables, images, key=random.key(0))
    assert torch.equal(still, plain.apply(variables, images)[0])


def test_each_block_drops_other_elements() -> None:
    """Of the second convolution's input, a half; zeros of ReLU count as well."""
    seen: list[Tensor] = []
    model = models.wrn(depth=16, width=1, dropout=0.5)
    variables = model.init(random.key(0))
    original = models.preact_resnet.layers.dropout

    def watching(key: Tensor | None, x: Tensor, rate: float) -> Tensor:
        y = original(key, torch.ones_like(x), rate)
        seen.append(y != 0)
        return x * y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.preact_resnet.layers, "dropout", watching)
        images = random.normal(random.key(1), (4, 3, 32, 32))
        model.apply(variables, images, key=random.key(2), train=True)
    assert len(seen) == 6
    assert all(abs(kept.double().mean() - 0.5) < 0.02 for kept in seen)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("depth", [True, 28.0, "28", 4, 27, 1006, 10**30])
def test_depths_are_checked(depth: int) -> None:
    with pytest.raises(ValueError, match=r"depth is .*; it must be 6n \+ 4 from 10 up to 1,000"):
        models.wrn(depth=depth)


@pytest.mark.parametrize("width", [0, True, 4.0, 10**9 + 1])
def test_widths_are_checked(width: int) -> None:
    for make in (models.wrn, models.preact_resnet18):
        with pytest.raises(ValueError, match=r"width is .* whole number from 1 up"):
            make(width=width)
    with pytest.raises(ValueError, match="dropout is 1; it must lie in"):
        models.wrn(dropout=1)
    with pytest.raises(ValueError, match="at most 200,000,000 are accepted"):
        models.wrn(width=30)
