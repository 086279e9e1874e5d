"""ResNet-18 against torchvision's, whose stem is made the one for small images."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from fcifar import models, optim, random, tree
from fcifar.models import Variables
from fcifar.precision import FP64
from fcifar.step import init_train_state, make_train_step


def twin_of(variables: Variables) -> nn.Module:
    """torchvision's network with a 3x3 stem of stride 1, no pooling, and these values."""
    twin = torchvision_resnet18(num_classes=10)
    twin.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    twin.maxpool = nn.Identity()
    twin = twin.double()
    missing, unexpected = twin.load_state_dict(variables.params | variables.buffers, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return twin


@pytest.fixture(scope="module")
def variables() -> Variables:
    variables = models.resnet18().init(random.key(0))
    return tree.map(lambda value: value.double(), variables)


def test_names_shapes_and_order_are_torchvisions(variables: Variables) -> None:
    twin = twin_of(variables)
    params = {name: p.shape for name, p in twin.named_parameters()}
    assert {name: p.shape for name, p in variables.params.items()} == params
    assert list(variables.params) == list(params)
    assert sum(p.numel() for p in variables.params.values()) == 11_173_962
    tracked = [name for name, _ in twin.named_buffers() if not name.endswith("tracked")]
    assert list(variables.buffers) == tracked


def test_it_starts_as_torchvisions(variables: Variables) -> None:
    """Normal with variance 2 / fan-out, and none like another."""
    for name, p in variables.params.items():
        if p.ndim == 4:
            std = math.sqrt(2 / (p.shape[0] * p.shape[2] * p.shape[3]))
            assert abs(p.std() / std - 1) < 4 / math.sqrt(2 * p.numel()), name
            assert abs(p.mean()) < 4 * std / math.sqrt(p.numel()), name
            assert p.abs().max() > 2.5 * std, "not uniform"
    bound = 1 / math.sqrt(512)
    assert 0.99 * bound < variables.params["fc.weight"].abs().max() <= bound
    a, b = (variables.params[f"layer1.{i}.conv1.weight"] for i in (0, 1))
    assert not torch.equal(a, b)


def test_it_equals_torchvisions_in_float64(variables: Variables) -> None:
    """Training and evaluation: logits, gradients, and running statistics after two batches."""
    model, twin = models.resnet18(), twin_of(variables)
    images = random.normal(random.key(1), (4, 3, 32, 32)).double()
    for _ in range(2):

        def objective(params: models.Params, buffers: models.Buffers = variables.buffers):
            within = Variables(params, buffers)
            logits, buffers = model.apply(within, images, key=random.key(2), train=True)
            return (logits**2).sum(), (logits, buffers)

        grads, (logits, buffers) = torch.func.grad(objective, has_aux=True)(variables.params)
        twin.train().zero_grad()
        expected = twin(images)
        (expected**2).sum().backward()
        torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-11)
        for name, p in twin.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-7, atol=1e-10)
        for name, value in buffers.items():
            torch.testing.assert_close(value, twin.get_buffer(name), rtol=1e-11, atol=1e-12)
        variables = variables._replace(buffers=buffers)

    logits, same = model.apply(variables, images)
    assert tree.equal(same, variables.buffers)
    with torch.no_grad():
        torch.testing.assert_close(logits, twin.eval()(images), rtol=1e-10, atol=1e-12)


def test_steps_equal_those_of_a_module_and_torch_optim(make_batch) -> None:
    """The functional step in float64, against loss.backward() and SGD."""
    model, optimizer = models.resnet18(), optim.sgd(0.01, 0.9, nesterov=True)
    state = init_train_state(model, optimizer, key=random.key(0), policy=FP64)
    step = make_train_step(model, optimizer, policy=FP64)
    twin = twin_of(state.variables).train()
    theirs = torch.optim.SGD(twin.parameters(), 0.01, momentum=0.9, nesterov=True)
    for i in range(2):
        batch = make_batch(2, seed=i)
        state, metrics = step(state, batch)
        theirs.zero_grad()
        loss = nn.functional.cross_entropy(
            twin(((batch.images.float() / 255 - 0.5) / 0.5).double()), batch.labels
        )
        loss.backward()
        theirs.step()
        assert abs(metrics.loss / 2 - loss.detach()) < 1e-9
    for name, value in (state.variables.params | state.variables.buffers).items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("width", [0, -1, True, 4.0, "4", 10**9 + 1])
def test_widths_are_checked(width: int) -> None:
    with pytest.raises(ValueError, match=r"width is .* whole number from 1 up"):
        models.resnet18(width=width)
    with pytest.raises(ValueError, match=r"num_classes is .* whole number from 1 up"):
        models.resnet18(num_classes=width)


@pytest.mark.parametrize("width", [300, 10**7, 10**9])
def test_a_network_that_fits_no_memory_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=r"would have .* at most 200,000,000 are accepted"):
        models.resnet18(width=width)
