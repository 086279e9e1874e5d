"""Time of one training step: nn.Module against the functional step, eager and compiled."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fcifar import models, optim, random
from fcifar.models.lenet import _LeNet
from fcifar.step import (
    Batch,
    accumulate,
    compile_step,
    init_train_state,
    make_train_step,
    on_indices,
    start_running,
)

BATCHES = [4, 64, 512]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def data(request: pytest.FixtureRequest) -> Batch:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")
    key = random.key(0)
    images = random.randint(key, (2048, 3, 32, 32), 0, 256).to(torch.uint8)
    labels = random.randint(key, (2048,), 0, 10)
    return Batch(images.to(request.param), labels.to(request.param))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("batch_size", BATCHES)
def test_module_step(benchmark, data: Batch, batch_size: int) -> None:
    benchmark.group = f"lenet step, batch {batch_size}, {data.images.device}"
    net = _LeNet(84, 10).to(data.images.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    rows = torch.arange(batch_size, device=data.images.device)

    def step() -> None:
        images = (data.images[rows].float() / 255 - 0.5) / 0.5
        optimizer.zero_grad()
        F.cross_entropy(net(images), data.labels[rows]).backward()
        optimizer.step()
        wait(rows.device)

    benchmark(step)


def functional(benchmark, data: Batch, batch_size: int, wrap: Callable) -> None:
    benchmark.group = f"lenet step, batch {batch_size}, {data.images.device}"
    device = data.images.device
    model, optimizer = models.lenet(), optim.sgd(1e-3, momentum=0.9)
    state = init_train_state(model, optimizer, key=random.key(0, device=device))
    running = start_running(state)
    step = wrap(accumulate(on_indices(make_train_step(model, optimizer), data)))
    rows = torch.arange(batch_size, device=device)

    def once() -> None:
        nonlocal running
        running, _ = step(running, rows)
        wait(device)

    once()
    benchmark(once)


@pytest.mark.parametrize("batch_size", BATCHES)
def test_functional_step(benchmark, data: Batch, batch_size: int) -> None:
    functional(benchmark, data, batch_size, lambda step: step)


@pytest.mark.parametrize("batch_size", BATCHES)
def test_compiled_step(benchmark, data: Batch, batch_size: int) -> None:
    functional(benchmark, data, batch_size, compile_step)
