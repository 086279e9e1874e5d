"""Dropout from a key, batch norm as values against PyTorch's, and what a network may be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fcifar import layers, models, random, tree
from fcifar.models import Variables
from fcifar.parallel import ALONE, Axis
from fcifar.step_transforms import compile_pure
from tests.helpers.small import chosen_models, make_model


def test_dropout_keeps_the_mean_and_drops_its_share() -> None:
    x = torch.ones(200, 1000)
    y = layers.dropout(random.key(0), x, 0.3)
    assert torch.equal(y.unique(), torch.tensor([0.0, 1 / 0.7]))
    assert abs((y == 0).double().mean() - 0.3) < 5 * (0.21 / x.numel()) ** 0.5
    assert torch.equal(y, layers.dropout(random.key(0), x, 0.3))
    assert not torch.equal(y, layers.dropout(random.key(1), x, 0.3))


def test_no_key_or_no_rate_is_the_identity() -> None:
    x = random.normal(random.key(0), (5, 7))
    assert layers.dropout(None, x, 0.5) is x
    assert layers.dropout(random.key(0), x, 0.0) is x


@pytest.mark.parametrize("model", [models.lenet(dropout=0.3), models.conv3()])
def test_networks_drop_in_training_alone(model: models.Model) -> None:
    variables = model.init(random.key(0))
    x = random.normal(random.key(1), (4, 3, 32, 32))
    still = [model.apply(variables, x, key=random.key(i))[0] for i in range(2)]
    moving = [model.apply(variables, x, key=random.key(i), train=True)[0] for i in (0, 0, 1)]
    assert torch.equal(still[0], still[1])
    assert torch.equal(moving[0], moving[1])
    assert not torch.equal(moving[0], moving[2])
    assert not torch.equal(moving[0], still[0])


@pytest.mark.parametrize("name", chosen_models())
def test_training_without_a_key_is_refused(name: str) -> None:
    model = make_model(name)
    with pytest.raises(ValueError, match="give apply a key"):
        model.apply(model.init(random.key(0)), torch.zeros(1, 3, 32, 32), train=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), True, "0.5", 10**400])
def test_rates_are_checked(rate: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        models.conv3(dropout=rate)


@pytest.mark.parametrize("width", [0, -1, True, 84.0, "84", 10**9 + 1, 10**30])
def test_widths_are_checked(width: int) -> None:
    with pytest.raises(ValueError, match="must be a whole number from 1 up to 1,000,000,000"):
        models.lenet(hidden=width)
    with pytest.raises(ValueError, match="num_classes is"):
        models.conv3(num_classes=width)


def test_a_network_that_fits_no_memory_is_refused_before_it_takes_any() -> None:
    for options in ({"hidden": 10**9}, {"hidden": 10**9, "num_classes": 10**9}):
        with pytest.raises(ValueError, match=r"would have .* at most 200,000,000 are accepted"):
            models.lenet(**options)
    models.lenet(hidden=700_000)


# Batch norm ---------------------------------------------------------------------------------------


def twin_of(x: Tensor, *, scale: bool, momentum: float = 0.3) -> tuple[nn.BatchNorm2d, Variables]:
    """PyTorch's layer with values of any size in it, and those values."""
    channels = x.shape[1]
    twin = nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum, dtype=x.dtype)
    keys = random.split(random.key(3), 4).unbind()
    drawn = [random.uniform(key, (channels,), 0.5, 2.0).to(x.dtype) for key in keys]
    with torch.no_grad():
        twin.weight.copy_(drawn[0] if scale else torch.ones(channels))
        for tensor, value in zip(
            (twin.bias, twin.running_mean, twin.running_var), drawn[1:], strict=True
        ):
            assert tensor is not None
            tensor.copy_(value)
    params = {name: p.detach().clone() for name, p in twin.named_parameters()}
    if not scale:
        del params["weight"]
    buffers = {n: b.clone() for n, b in twin.named_buffers() if n.startswith("running")}
    return twin, Variables(params, buffers)


def norm_of(
    x: Tensor, *, scale: bool, momentum: float = 0.3, axis: Axis = ALONE
) -> Callable[..., Any]:
    """``(variables, images, train) -> (images, statistics)``."""
    with torch.device("meta"):
        layer = layers.BatchNorm(x.shape[1], momentum=momentum, eps=1e-3, scale=scale, axis=axis)
    return lambda variables, images, train: functional_call(
        layer, tuple(variables), (images, train)
    )


def some_images(dtype: torch.dtype = torch.float64, size: int = 6) -> Tensor:
    return (2 * random.normal(random.key(0), (size, 5, 4, 3)) + 1).to(dtype)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_batch_norm_equals_torchs(scale: bool, train: bool) -> None:
    """Outputs, gradients and running statistics in float64, over three batches."""
    x = some_images()
    (twin, variables), norm = twin_of(x, scale=scale), norm_of(x, scale=scale)
    twin.train(train)
    weights = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    for i in range(3):
        images = x + i

        def objective(params: dict, images: Tensor, buffers: dict = variables.buffers) -> Any:
            y, running = norm(Variables(params, buffers), images, train)
            return (y * weights).sum(), (y, running)

        grads, (y, running) = torch.func.grad(objective, (0, 1), has_aux=True)(
            variables.params, images
        )
        leaf = images.clone().requires_grad_()
        expected = twin(leaf)
        twin.zero_grad()
        (expected * weights).sum().backward()
        torch.testing.assert_close(y, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grads[1], leaf.grad, rtol=1e-11, atol=1e-12)
        for name, grad in grads[0].items():
            torch.testing.assert_close(grad, twin.get_parameter(name).grad, rtol=1e-11, atol=1e-12)
        for name, value in running.items():
            torch.testing.assert_close(value, twin.get_buffer(name), rtol=1e-13, atol=1e-13)
            assert torch.equal(value, variables.buffers[name]) != train
        variables = variables._replace(buffers=running)


def test_batch_norm_of_one_value_a_channel_is_refused_as_torchs_is() -> None:
    """In training; and not where the ranks, or the pixels, have more of them together."""
    x = some_images()[:1, :, :1, :1]
    twin, variables = twin_of(x, scale=False)
    for refusing in (lambda: norm_of(x, scale=False)(variables, x, True), lambda: twin.train()(x)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when train"):
            refusing()
    norm_of(x, scale=False)(variables, x, False)
    pixels = some_images()[:1, :, :2, :1]
    norm_of(x, scale=False)(variables, pixels, True)
    axis = Axis(2, lambda tensors: [2 * tensor for tensor in tensors])
    norm = norm_of(x, scale=False, axis=axis)
    assert all(value.isfinite().all() for value in norm(variables, x, True)[1].values())


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_maps_over_states_and_over_images(train: bool) -> None:
    x = some_images()
    norm, (_, variables) = norm_of(x, scale=True), twin_of(x, scale=True)
    states = [tree.map(lambda v, i=i: v + i, variables) for i in range(3)]
    stacked = tree.map(lambda *xs: torch.stack(xs), *states)
    for images, dim in ((x, None), (torch.stack([x, x + 1, 2 * x]), 0)):
        together = torch.vmap(lambda v, i: norm(v, i, train), in_dims=(0, dim))(stacked, images)
        for i, state in enumerate(states):
            alone = norm(state, x if dim is None else images[i], train)
            for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
                torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_of_bfloat16_counts_in_float32(train: bool) -> None:
    x = some_images(torch.bfloat16, size=300)
    _, variables = twin_of(x.float(), scale=True)
    norm = norm_of(x, scale=True)
    y, running = norm(variables, x, train)
    expected, kept = norm(variables, x.float(), train)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.to(torch.bfloat16))
    assert all(value.dtype == torch.float32 for value in running.values())
    assert tree.equal(running, kept)
    half = variables._replace(params=tree.map(lambda p: p.bfloat16(), variables.params))
    assert norm(half, x, train)[0].dtype == torch.bfloat16
    assert tree.equal(norm(half, x, train)[1], kept), "parameters have no part in it"


def test_batch_norm_compiled_equals_eager() -> None:
    x = some_images(torch.float32)
    norm, (_, variables) = norm_of(x, scale=True), twin_of(x, scale=True)

    def squares(variables: Variables, images: Tensor) -> Any:
        def objective(params: dict) -> Any:
            y, running = norm(variables._replace(params=params), images, True)
            return (y**3).sum(), (y, running)

        return torch.func.grad(objective, has_aux=True)(variables.params)

    for a, b in zip(
        tree.leaves(compile_pure(squares)(variables, x)),
        tree.leaves(squares(variables, x)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_batch_norm_starts_as_torchs() -> None:
    with torch.device("meta"):
        net = nn.Sequential(layers.BatchNorm(3), nn.Sequential(layers.BatchNorm(2, scale=False)))
    twin = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(2))).state_dict()
    params = layers.default_init(net, random.key(0))
    buffers = layers.default_buffers(net, torch.device("cpu"))
    assert list(params) == ["0.weight", "0.bias", "1.0.bias"]
    assert set(buffers) == {n for n in twin if n.rpartition(".")[2].startswith("running")}
    for name, value in {**params, **buffers}.items():
        assert torch.equal(value, twin[name])


# Layout -------------------------------------------------------------------------------------------


def test_channels_last_changes_the_layout_and_no_value() -> None:
    x = some_images()
    y = layers.channels_last(x)
    assert torch.equal(x, y)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    stacked = torch.stack([x, x + 1])
    mapped = torch.vmap(layers.channels_last)(stacked)
    assert torch.equal(mapped, stacked)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in mapped)
    grad = torch.func.grad(lambda v: (layers.channels_last(v) ** 2).sum())(x)
    torch.testing.assert_close(grad, 2 * x)


def test_an_unknown_layer_has_no_default() -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Embedding(3, 2))
    with pytest.raises(TypeError, match="no default initialisation for Embedding at '0'"):
        layers.default_init(net, random.key(0))
