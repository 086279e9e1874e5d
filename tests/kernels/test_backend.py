"""``torch.compile(module, backend=...)``: the kernels in a plain training loop of an nn.Module."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from fcifar import kernels
from fcifar.kernels import backends

pytestmark = pytest.mark.skipif(
    kernels.why_not() is not None, reason=f"no kernels here: {kernels.why_not()}"
)
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """The tutorial's, with a choice of how ReLU and pool are written."""

    def __init__(self, relu: Function = F.relu, pool: Function | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = pool or nn.MaxPool2d(2, 2)
        self.relu = relu
        self.fc = nn.Linear(16 * 5 * 5, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


class Twice(Net):
    """A ReLU whose result is used besides the pool, and one that is not."""

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.conv1(x))
        pooled = self.pool(F.relu(self.conv2(self.pool(active))))
        return self.fc(pooled.flatten(1)) + active.mean()


SPELLINGS: dict[str, tuple[Function, Function | None]] = {
    "functional": (F.relu, None),
    "module": (nn.ReLU(), None),
    "in place": (nn.ReLU(inplace=True), None),
    "method": (lambda x: x.relu(), lambda x: F.max_pool2d(x, 2)),
    "torch": (torch.relu, lambda x: torch.max_pool2d(x, 2)),
    "none": (lambda x: x, None),
}


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 10, (4,), generator=generator)


def two(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two modules with the same parameters."""
    torch.manual_seed(0)
    net, twin = make(), make()
    twin.load_state_dict(net.state_dict())
    return net, twin


def trained(net: nn.Module, forward: nn.Module, data: tuple[Tensor, Tensor]) -> list[float]:
    """The losses of three steps of the tutorial's loop."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(data[0]), data[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], pairs: int) -> None:
    """Train a module both ways, and count the calls of the kernels in a step."""
    net, twin = two(make)
    compiled = torch.compile(twin, backend=kernels.backend)
    assert trained(twin, compiled, data) == pytest.approx(trained(net, net, data), rel=1e-5)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        F.cross_entropy(compiled(data[0]), data[1]).backward()
    ours = {e.key: e.count for e in seen.key_averages() if e.key.startswith("fcifar::")}
    assert ours == {"fcifar::conv_pool": pairs, "fcifar::conv_pool_backward": pairs}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_plain_loop_trains_to_the_same_values(name: str, data: tuple[Tensor, Tensor]) -> None:
    check(lambda: Net(*SPELLINGS[name]), data, pairs=2)


def test_a_relu_that_serves_something_else_stays(data: tuple[Tensor, Tensor]) -> None:
    check(Twice, data, pairs=1)


def test_without_gradients_and_in_evaluation(data: tuple[Tensor, Tensor]) -> None:
    net, twin = two(Net)
    compiled = torch.compile(twin.eval(), backend=kernels.backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(data[0]), net.eval()(data[0]), rtol=1e-4, atol=1e-5)


def test_without_kernels_it_is_inductor(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.build, "why_not", lambda: "no compiler")
    net, twin = two(Net)
    compiled = torch.compile(twin, backend=kernels.backend)
    torch.testing.assert_close(compiled(data[0]), net(data[0]), rtol=1e-4, atol=1e-5)
