"""Optimizers as torch.optim's: loops of both kinds, bit for bit, and what is around a loop."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import models, optim, random, schedules, tree
from fcifar.models.lenet import _LeNet
from fcifar.optim import Optimizer, as_torch

OPTIMIZERS: dict[str, Optimizer] = {
    "muon": optim.muon_and_sgd(0.05),
    "clipped adamw": optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3)),
    "scheduled": optim.sgd(schedules.linear_schedule(0.1, 0.0, 5), momentum=0.9),
    "schedule-free": optim.schedule_free_sgd(0.5),
}


@pytest.fixture(params=OPTIMIZERS)
def optimizer(request: pytest.FixtureRequest) -> Optimizer:
    return OPTIMIZERS[request.param]


def make_net() -> nn.Module:
    net = _LeNet(84, 10)
    net.load_state_dict(models.lenet().init(random.key(0)).params)
    return net


def loss_of(net: nn.Module, step: int) -> Tensor:
    images = random.normal(random.fold_in(random.key(1), step), (4, 3, 32, 32))
    return F.cross_entropy(net(images), torch.arange(4))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(net, step).backward()
        optimizer.step()


def params_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def by_function(optimizer: Optimizer, steps: int) -> tuple[dict[str, Tensor], Any]:
    """Parameters and state after a loop of pure functions, with the gradients of autograd."""
    net = make_net()
    params = params_of(net)
    state = optimizer.init(params)
    for step in range(steps):
        net.load_state_dict(params)
        net.zero_grad()
        loss_of(net, step).backward()
        grads = {name: p.grad.clone() for name, p in net.named_parameters()}
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply_updates(params, updates)
    return params, state


def test_a_plain_loop_equals_the_functional_one_bit_for_bit(optimizer: Optimizer) -> None:
    net = make_net()
    wrapped = as_torch(optimizer, net.named_parameters())
    assert isinstance(wrapped, torch.optim.Optimizer)
    train(net, wrapped, range(6))
    params, state = by_function(optimizer, 6)
    assert tree.equal(params_of(net), params)
    assert tree.equal(wrapped.eval_params(), optimizer.value(params, state))


def test_a_saved_state_resumes_exactly(optimizer: Optimizer) -> None:
    net = make_net()
    wrapped = as_torch(optimizer, net.named_parameters())
    train(net, wrapped, range(3))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": wrapped.state_dict()}, file)
    train(net, wrapped, range(3, 6))

    file.seek(0)
    saved, other = torch.load(file, weights_only=True), _LeNet(84, 10)
    other.load_state_dict(saved["net"])
    resumed = as_torch(optimizer, other.named_parameters())
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(3, 6))
    assert tree.equal(params_of(other), params_of(net))
    assert tree.equal(resumed.state_dict()["fcifar"], wrapped.state_dict()["fcifar"])


@pytest.mark.parametrize("name", ["sgd", "muon", "adamw"])
def test_a_scheduler_of_torch_sets_the_learning_rate(name: str) -> None:
    """As a schedule of ours does, to rounding; the scheduler's rates are Python's."""
    make: Callable[..., Optimizer] = optim.OPTIMIZERS[name]
    net, twin = make_net(), make_net()
    wrapped = as_torch(make, net.named_parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(wrapped, 1.0, 0.5, 4)
    scheduled = as_torch(make(schedules.linear_schedule(0.1, 0.05, 4)), twin.named_parameters())
    for step in range(6):
        train(net, wrapped, range(step, step + 1))
        scheduler.step()
    assert wrapped.param_groups[0]["lr"] == pytest.approx(0.05)
    train(twin, scheduled, range(6))
    torch.testing.assert_close(params_of(net), params_of(twin), rtol=1e-4, atol=1e-6)
    saved = wrapped.state_dict()
    again = as_torch(make, make_net().named_parameters(), lr=0.7)
    again.load_state_dict(saved)
    assert again.param_groups[0]["lr"] == wrapped.param_groups[0]["lr"]


def test_an_optimizer_with_a_rate_of_its_own_has_none_to_schedule() -> None:
    wrapped = as_torch(optim.sgd(0.1), make_net().parameters())
    with pytest.raises(KeyError, match="has its own learning rate; for lr_scheduler, give as_to"):
        torch.optim.lr_scheduler.StepLR(wrapped, 1)


def test_a_closure_is_called_with_gradients_and_its_result_returned() -> None:
    net, twin = make_net(), make_net()
    wrapped = as_torch(optim.sgd(0.1), net.parameters())

    def closure() -> Tensor:
        wrapped.zero_grad()
        loss = loss_of(net, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        found = wrapped.step(closure)
    assert found == loss_of(twin, 0)
    train(twin, as_torch(optim.sgd(0.1), twin.parameters()), range(1))
    assert tree.equal(params_of(net), params_of(twin))


def test_parameters_that_are_frozen_or_without_a_gradient() -> None:
    """The former are left out; the latter have a gradient of zeros, and their momentum goes on."""
    a, b, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), torch.ones(2)
    wrapped = as_torch(optim.sgd(1.0, 0.5), [("a", a), ("b", b), ("frozen", frozen)])
    (a.sum() + b.sum()).backward()
    wrapped.step()
    wrapped.zero_grad()
    assert a.grad is None
    a.sum().backward()
    wrapped.step()
    assert (a.tolist(), b.tolist()) == ([-1.5, -1.5], [-0.5, -0.5])
    assert frozen.tolist() == [1, 1]


def test_misuse_is_named() -> None:
    net = make_net()
    with pytest.raises(TypeError, match="needs an Optimizer, or a function of the learning rate"):
        as_torch(optim.sgd, net.parameters())
    with pytest.raises(TypeError, match="needs an Optimizer, or a function of the learning rate"):
        as_torch(optim.sgd(0.1), net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="needs parameters that require gradients"):
        as_torch(optim.sgd(0.1), [torch.ones(2)])
    with pytest.raises(ValueError, match="two parameters of the name 'a'"):
        as_torch(optim.sgd(0.1), [("a", nn.Parameter(torch.ones(2)))] * 2)
    wrapped = as_torch(optim.sgd(0.1, 0.9), net.named_parameters())
    with pytest.raises(ValueError, match="has one group of parameters"):
        wrapped.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    other = as_torch(optim.adam(0.1), net.named_parameters())
    with pytest.raises(ValueError, match="is that of another optimizer"):
        wrapped.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="is that of another optimizer"):
        wrapped.load_state_dict(torch.optim.SGD(net.parameters(), 0.1).state_dict())
    wide = as_torch(optim.sgd(0.1, 0.9), _LeNet(32, 10).named_parameters())
    with pytest.raises(ValueError, match=r"and the optimizer torch.float32 \[84\]; load it for"):
        wrapped.load_state_dict(wide.state_dict())
