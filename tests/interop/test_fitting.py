"""Tensors fit the network that they are of, and else the first that does not is named."""

import functools

import pytest
import torch
from torch import Tensor

from fcifar import models, random, recipes
from fcifar.errors import UserError
from fcifar.interop import fitting
from fcifar.recipes import Recipe
from tests.small import SMALL


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large networks in small forms are what there is to choose from."""
    small = {
        name: functools.partial(make, **SMALL[name]) if name in SMALL else make
        for name, make in models.MODELS.items()
    }
    monkeypatch.setattr(fitting, "MODELS", small)


def values_of(name: str, **options) -> dict[str, Tensor]:
    variables = models.MODELS[name](**options).init(random.key(0))
    return {**variables.params, **variables.buffers}


def refused(tensors: dict[str, Tensor], recipe: Recipe, classes: int = 10) -> str:
    with pytest.raises(UserError) as error:
        fitting.fit(tensors, recipe, classes, "net.pth")
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_network_fits_itself_and_is_recognised(name: str) -> None:
    options = SMALL.get(name, {})
    recipe = Recipe(name=name, model=name, model_options=options)
    tensors = values_of(name, **options)
    shuffled = dict(sorted(tensors.items(), reverse=True))
    variables, notes = fitting.fit(shuffled, recipe, 10, "net.pth")
    assert notes == ()
    like = recipes.make_model(recipe, 10).init(random.key(0))
    assert (list(variables.params), list(variables.buffers)) == (
        list(like.params),
        list(like.buffers),
    )
    for value, expected in zip(
        (*variables.params.values(), *variables.buffers.values()),
        (*like.params.values(), *like.buffers.values()),
        strict=True,
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert list(fitting.fitting_models(tensors, 10)) == [name]
    assert not list(fitting.fitting_models(tensors, 11))


def test_the_first_that_does_not_fit_is_named() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    tensors = values_of("lenet")
    missing = {name: value for name, value in tensors.items() if name != "conv2.bias"}
    assert "there is no 'conv2.bias' in it" in refused(missing, lenet)
    assert "the network has no 'fc4.weight'" in refused(
        {**tensors, "fc4.weight": torch.ones(1)}, lenet
    )
    message = refused(values_of("lenet", hidden=100), lenet)
    assert "fc2.weight is [100, 120], not [84, 120]" in message
    assert "--set (hidden, dropout)" in message
    message = refused(values_of("conv3"), lenet)
    assert "conv1.weight is [16, 3, 3, 3], not [6, 3, 5, 5]" in message
    assert message.endswith("it fits --model conv3")
    assert "lenet with 7 classes: fc3.weight is [10, 84], not [7, 84]" in refused(
        tensors, lenet, classes=7
    )
    whole = {**tensors, "fc1.bias": torch.zeros(120, dtype=torch.int64)}
    assert "fc1.bias holds int64" in refused(whole, lenet)


def test_values_are_float32_with_memory_of_their_own() -> None:
    lenet = Recipe(name="lenet", model="lenet")
    tensors = values_of("lenet")
    tensors["conv1.bias"] = tensors["conv1.bias"].double()
    tensors["conv2.bias"] = tensors["conv2.bias"].bfloat16()
    tensors["fc1.bias"] = torch.ones(()).expand(120)
    tensors["fc1.weight"] = tensors["fc1.weight"].T.contiguous().T
    variables, notes = fitting.fit(tensors, lenet, 10, "net.pth")
    assert notes == ("took bfloat16 and float64 values of net.pth as float32",)
    for name, value in variables.params.items():
        assert value.dtype == torch.float32
        assert value.is_contiguous()
        assert value.data_ptr() != tensors[name].data_ptr()
        torch.testing.assert_close(value, tensors[name].float(), rtol=0, atol=0)
