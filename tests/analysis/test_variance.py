"""The spread of accuracies: against covariances, against every sample there is, and simulated."""

import itertools
import math

import pytest
import torch

from fcifar import random
from fcifar.analysis.ensembles import signed_std, split_variance


def test_distribution_variance_equals_the_mean_covariance() -> None:
    correct = random.bernoulli(random.key(0), 0.7, (6, 40))
    covariance = torch.cov(correct.T.double())
    own = covariance.diagonal().sum().item()
    variance = split_variance(correct)
    assert variance.observed == pytest.approx(correct.double().mean(1).var().item())
    assert variance.independent == pytest.approx(own / 40**2)
    assert variance.distribution == pytest.approx((covariance.sum().item() - own) / (40 * 39))


def test_independent_errors_are_the_sum_over_examples() -> None:
    correct = random.bernoulli(random.key(1), 0.8, (5, 30))
    rates = (~correct).double().mean(0)
    expected = (rates * (1 - rates)).sum().item() * 5 / 4 / 30**2
    assert split_variance(correct).independent == pytest.approx(expected)


@pytest.mark.parametrize(("networks", "examples"), [(2, 2), (2, 3), (3, 2)])
def test_estimates_are_unbiased(networks: int, examples: int) -> None:
    """The mean over every choice of networks and of test images out of a small population."""
    population = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    estimates, predicted, observed = [], [], []
    for rows in itertools.product(range(3), repeat=networks):
        for columns in itertools.product(range(3), repeat=examples):
            variance = split_variance(population[list(rows)][:, list(columns)])
            estimates.append(variance.distribution)
            predicted.append(variance.independent)
            observed.append(variance.observed)
    accuracies = population.double().mean(1)
    assert sum(estimates) / len(estimates) == pytest.approx(accuracies.var(correction=0).item())
    rates = population.double().mean(0)
    tosses = (rates * (1 - rates)).mean().item() / examples
    assert sum(predicted) / len(predicted) == pytest.approx(tosses)
    assert sum(observed) / len(observed) > tosses


def test_coin_tosses_have_no_distribution_variance() -> None:
    rates = random.uniform(random.key(2), (500,))
    correct = random.uniform(random.key(3), (400, 500)) > rates
    variance = split_variance(correct)
    assert variance.observed == pytest.approx(variance.independent, rel=0.2)
    assert abs(signed_std(variance.distribution)) < 0.5 * math.sqrt(variance.independent)


def test_better_and_worse_models_are_found() -> None:
    skill = 0.7 + 0.05 * random.normal(random.key(4), (400, 1))
    correct = random.uniform(random.key(5), (400, 1000)) < skill
    variance = split_variance(correct)
    assert math.sqrt(variance.distribution) == pytest.approx(0.05, rel=0.12)
    assert variance.observed > 5 * variance.independent


def test_anticorrelated_models_have_a_negative_estimate() -> None:
    correct = torch.tensor([[True, False], [False, True]])
    variance = split_variance(correct)
    assert variance == (0.0, 0.25, -0.5)
    assert signed_std(variance.distribution) == -math.sqrt(0.5)


def test_one_model_or_one_example_gives_nan() -> None:
    assert all(map(math.isnan, split_variance(torch.ones(1, 5).bool())))
    single = split_variance(torch.tensor([[True], [False]]))
    assert single[:2] == (0.5, 0.5)
    assert math.isnan(single.distribution)
    assert math.isnan(signed_std(math.nan))


def test_equal_models_have_no_variance() -> None:
    correct = random.bernoulli(random.key(6), 0.6, (1, 50)).expand(7, -1)
    assert split_variance(correct) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "correct", [torch.ones(2, 3), torch.ones(3).bool(), torch.ones(0, 3).bool()]
)
def test_misuse(correct: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"bool \[R, N\]"):
        split_variance(correct)
