"""Dropout from a key."""

import pytest
import torch

from fcifar import layers, models, random
from fcifar.models import MODELS


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


@pytest.mark.parametrize("name", MODELS)
def test_training_without_a_key_is_refused(name: str) -> None:
    model = MODELS[name]()
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
        with pytest.raises(ValueError, match=r"would have .* at most 100,000,000 are accepted"):
            models.lenet(**options)
    models.lenet(hidden=700_000)
