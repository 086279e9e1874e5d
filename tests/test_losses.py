"""Losses of single examples, against PyTorch's and by their formula."""

import math

import pytest
import torch

from fcifar import losses, models, optim, random
from fcifar.precision import FP64
from fcifar.step import init_train_state, make_train_step


@pytest.mark.parametrize("smoothing", [0.1, 0.2, 0.999])
def test_smoothed_cross_entropy_equals_torchs_and_its_formula(smoothing: float) -> None:
    logits = 3 * random.normal(random.key(0), (7, 10)).double()
    labels = torch.arange(7)
    loss = losses.smoothed_cross_entropy(smoothing)
    found = loss(logits, labels)
    twin = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(found, twin(logits, labels), rtol=1e-14, atol=0)
    target = torch.full((7, 10), smoothing / 10, dtype=torch.float64)
    target[labels, labels] += 1 - smoothing
    torch.testing.assert_close(target.sum(1), torch.ones(7, dtype=torch.float64))
    formula = -(target * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(found, formula, rtol=1e-13, atol=0)
    for i in range(7):
        torch.testing.assert_close(loss(logits[i], labels[i]), found[i])
    torch.testing.assert_close(torch.vmap(loss)(logits, labels), found)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_are_those_of_torchs_loss(smoothing: float) -> None:
    logits = 3 * random.normal(random.key(0), (7, 5)).double()
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 4])
    weights = losses.balanced_class_weights(labels, 5)
    assert weights.tolist() == pytest.approx([7 / 4, 7 / 8, 7 / 12, 0, 7 / 4])
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))
    twin = torch.nn.CrossEntropyLoss(weights.double(), label_smoothing=smoothing, reduction="none")(
        logits, labels
    )
    for value in (smoothing, torch.tensor(smoothing)):  # a number, and an argument of the step
        loss = losses.smoothed_cross_entropy(value, weights)
        torch.testing.assert_close(loss(logits, labels), twin, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.vmap(loss)(logits, labels), twin, rtol=1e-6, atol=0)


def test_nothing_smoothed_is_cross_entropy_itself() -> None:
    assert losses.smoothed_cross_entropy(0) is losses.cross_entropy
    assert losses.smoothed_cross_entropy(0.0) is losses.cross_entropy


def test_a_smoothed_loss_is_least_where_the_logits_are_its_target() -> None:
    logits = torch.log(torch.tensor([0.82, 0.02, *([0.02] * 8)], dtype=torch.float64))
    gradient = torch.func.grad(losses.smoothed_cross_entropy(0.2))(logits, torch.tensor(0))
    torch.testing.assert_close(gradient, torch.zeros(10, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1, math.nan, math.inf])
def test_smoothing_is_checked(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing is .*; it must lie in \[0, 1\)"):
        losses.smoothed_cross_entropy(smoothing)


@pytest.mark.parametrize("name", ["lenet", "speednet"])
def test_descending_the_sum_is_descending_the_mean_times_the_batch(name: str, make_batch) -> None:
    """SGD's step is as long, in float64, when the learning rate is divided by the batch's size."""
    options = {"speednet": {"widths": (8, 12, 16)}}.get(name, {})
    model = models.MODELS[name](**options)
    by_mean, by_sum = optim.sgd(0.1, 0.9), optim.sgd(0.1 / 8, 0.9)
    mean_step = make_train_step(model, by_mean, policy=FP64)
    sum_step = make_train_step(model, by_sum, policy=FP64, reduction=torch.sum)
    a = b = init_train_state(model, by_mean, key=random.key(0), policy=FP64)
    for seed in range(3):
        a, m = mean_step(a, make_batch(8, seed))
        b, n = sum_step(b, make_batch(8, seed))
        torch.testing.assert_close(m, n, rtol=1e-10, atol=0)
    for key, value in a.variables.params.items():
        torch.testing.assert_close(b.variables.params[key], value, rtol=1e-8, atol=1e-11)
        trace = a.opt_state[0].trace[key]
        torch.testing.assert_close(b.opt_state[0].trace[key], 8 * trace, rtol=1e-7, atol=1e-9)
