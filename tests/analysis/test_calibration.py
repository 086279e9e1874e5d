"""Calibration and confusion: against loops, by hand, and on what broken networks say."""

import math

import pytest
import torch

from fcifar import random
from fcifar.analysis.calibration import (
    confusion_matrix,
    expected_calibration_error,
    fit_temperature,
    most_confident_mistakes,
    reliability,
    softmax_confidence,
)


def test_confusion_matrix_equals_a_loop():
    labels = random.randint(random.key(0), (500,), 0, 7)
    predictions = random.randint(random.key(1), (500,), 0, 7)
    expected = torch.zeros(9, 9, dtype=torch.int64)
    for i, j in zip(labels.tolist(), predictions.tolist(), strict=True):
        expected[i, j] += 1
    matrix = confusion_matrix(labels, predictions, 9)
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, expected)


def test_confusion_matrix_of_narrow_integers_and_without_examples():
    many = torch.full((3,), 99, dtype=torch.uint8)
    assert confusion_matrix(many, many, 100)[99, 99] == 3
    none = torch.empty(0, dtype=torch.int64)
    assert torch.equal(confusion_matrix(none, none, 2), torch.zeros(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 0], "labels must be integers from 0 to 2"),
        ([0, 0], [3, 0], "predictions must be integers from 0 to 2"),
        ([-1, 0], [1, 0], "labels must be integers"),
        ([0.0], [0], "labels must be integers"),
        ([0], [0, 0], r"\[1\] and \[2\]"),
    ],
)
def test_confusion_matrix_refuses_invalid_classes(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(torch.tensor(labels), torch.tensor(predictions), 3)


def test_calibration_error_by_hand():
    # Two bins. (0, 0.5]: confidences 0.25 and 0.5, one of two right. (0.5, 1]: 0.75, 1 and 1, two
    # of three right. ECE = 2/5 |0.5 - 0.375| + 3/5 |2/3 - 2.75/3| = 0.05 + 0.15.
    confidence = torch.tensor([0.25, 1.0, 0.5, 0.75, 1.0])
    correct = torch.tensor([False, True, True, True, False])
    bins = reliability(confidence, correct, bins=2)
    assert bins.count.tolist() == [2, 3]
    torch.testing.assert_close(
        bins.confidence, torch.tensor([0.375, 2.75 / 3], dtype=torch.float64)
    )
    torch.testing.assert_close(bins.accuracy, torch.tensor([0.5, 2 / 3], dtype=torch.float64))
    error = expected_calibration_error(bins)
    assert error.shape == ()
    assert error.item() == pytest.approx(0.2, abs=1e-15)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop(bins):
    confidence = random.uniform(random.key(2), (2000,))
    correct = random.uniform(random.key(3), (2000,)) < confidence**2
    expected = 0.0
    rows = list(zip(confidence.tolist(), correct.tolist(), strict=True))
    for m in range(1, bins + 1):
        inside = [(c, hit) for c, hit in rows if (m - 1) / bins < c <= m / bins or (c, m) == (0, 1)]
        gap = math.fsum(hit for _, hit in inside) - math.fsum(c for c, _ in inside)
        expected += abs(gap) / len(rows)
    error = expected_calibration_error(reliability(confidence, correct, bins))
    assert error.item() == pytest.approx(expected, abs=1e-13)


def test_bins_are_closed_on_the_right_and_hold_both_ends():
    edges = torch.arange(0, 16, dtype=torch.float64) / 15
    count = reliability(edges, torch.ones(16, dtype=torch.bool)).count
    assert count.tolist() == [2] + [1] * 14
    rounded_up = torch.tensor([1 + 1e-7], dtype=torch.float64)
    assert reliability(rounded_up, torch.tensor([True])).count[-1] == 1


def test_perfect_calibration_has_a_small_error_and_too_much_confidence_its_size():
    chance = 0.1 + 0.8 * random.uniform(random.key(4), (20_000,))
    correct = random.uniform(random.key(5), (20_000,)) < chance
    assert expected_calibration_error(reliability(chance, correct)) < 0.015
    too_sure = expected_calibration_error(reliability(chance + 0.1, correct))
    assert too_sure.item() == pytest.approx(0.1, abs=0.015)


def test_empty_bins_and_nan_confidences_do_not_change_the_error():
    confidence = torch.tensor([0.9, 0.9])
    correct = torch.tensor([True, False])
    alone = reliability(confidence, correct)
    assert alone.confidence.isnan().sum() == 14
    assert expected_calibration_error(alone).item() == pytest.approx(0.4, abs=1e-7)
    with_nan = reliability(
        torch.cat([confidence, torch.tensor([math.nan])]), torch.tensor([True, False, True])
    )
    assert torch.equal(with_nan.count, alone.count)
    assert torch.equal(expected_calibration_error(with_nan), expected_calibration_error(alone))


def test_no_examples_have_no_calibration_error():
    nothing = reliability(torch.empty(0), torch.empty(0, dtype=torch.bool))
    assert nothing.count.sum() == 0
    assert expected_calibration_error(nothing).isnan()


def test_reliability_refuses_invalid_probabilities():
    yes = torch.tensor([True])
    with pytest.raises(ValueError, match="probabilities"):
        reliability(torch.tensor([1.5]), yes)
    with pytest.raises(ValueError, match="probabilities"):
        reliability(torch.tensor([-0.5]), yes)
    with pytest.raises(ValueError, match="bool"):
        reliability(torch.tensor([0.5]), torch.tensor([1]))
    with pytest.raises(ValueError, match="bin"):
        reliability(torch.tensor([0.5]), yes, bins=0)
    with pytest.raises(ValueError, match="both"):
        reliability(torch.tensor([0.5, 0.5]), yes)


def test_confidence_is_the_softmax_of_the_prediction():
    logits = random.normal(random.key(6), (50, 10))
    confidence, prediction = softmax_confidence(logits)
    assert confidence.dtype == torch.float64
    assert torch.equal(prediction, logits.argmax(-1))
    for row, c in zip(logits.tolist(), confidence.tolist(), strict=True):
        assert c == pytest.approx(math.exp(max(row)) / math.fsum(map(math.exp, row)), rel=1e-12)


def test_confidence_of_huge_half_precision_and_broken_logits():
    huge = torch.tensor([[60000.0, 0.0], [0.0, 0.0]], dtype=torch.float16)
    assert softmax_confidence(huge)[0].tolist() == [1.0, 0.5]
    broken = torch.tensor([[math.nan, 0.0], [math.inf, 0.0]])
    assert softmax_confidence(broken)[0].isnan().all()
    with pytest.raises(ValueError, match="logits"):
        softmax_confidence(torch.zeros(3))


def test_mistakes_come_most_confident_first_and_ties_by_row():
    # Rows 1, 3, 4 and 5 are wrong; 1 and 4 are equally sure, 3 is surer, 5 is unsure.
    logits = torch.tensor([[9.0, 0], [2, 0], [0, 9], [0, 5], [0, 2], [1, 0]])
    labels = torch.tensor([0, 1, 1, 0, 0, 1])
    assert most_confident_mistakes(logits, labels, 10).tolist() == [3, 1, 4, 5]
    assert most_confident_mistakes(logits, labels, 2).tolist() == [3, 1]
    assert most_confident_mistakes(logits, labels, 0).tolist() == []
    assert most_confident_mistakes(logits, logits.argmax(-1), 5).tolist() == []
    with pytest.raises(ValueError, match="count"):
        most_confident_mistakes(logits, labels, -1)


def test_many_tied_mistakes_keep_their_order():
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1)
    labels = torch.ones(1000, dtype=torch.int64)
    assert torch.equal(most_confident_mistakes(logits, labels, 1000), torch.arange(1000))


def test_confidences_that_float32_cannot_tell_apart_are_still_ordered():
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0], [22.0, 0.0]])
    assert most_confident_mistakes(logits, torch.ones(3).long(), 3).tolist() == [1, 2, 0]


def test_mistakes_without_a_confidence_come_last():
    logits = torch.tensor([[math.nan, 0.0], [3.0, 0.0]])
    assert most_confident_mistakes(logits, torch.tensor([1, 1]), 2).tolist() == [1, 0]


# Temperature --------------------------------------------------------------------------------------


def drawn_logits(seed: int, scale: float = 1.0, classes: int = 5, size: int = 400):
    """Logits of which those of the labels are somewhat larger, float64."""
    logit_key, label_key = random.split(random.key(seed))
    labels = random.randint(label_key, (size,), 0, classes)
    logits = random.normal(logit_key, (size, classes)).double()
    return scale * (logits + 1.5 * (torch.arange(classes) == labels[:, None])), labels


def loss_of(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    return torch.nn.functional.cross_entropy(logits / temperature, labels).item()


@pytest.mark.parametrize(("seed", "scale", "classes"), [(0, 1.0, 5), (1, 30.0, 2), (2, 1e-4, 20)])
def test_the_temperature_of_scipy_and_of_lbfgs(seed: int, scale: float, classes: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits, labels = drawn_logits(seed, scale, classes)
    found = fit_temperature(logits, labels)
    assert (found.dtype, found.shape) == (torch.float64, ())

    def slope(log_b: float) -> float:
        b = torch.tensor(log_b, dtype=torch.float64, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(logits * b.exp(), labels)
        return torch.autograd.grad(loss, b)[0].item()

    guess = -math.log(scale)
    expected = math.exp(-optimize.brentq(slope, guess - 3, guess + 3, xtol=1e-14, rtol=1e-14))
    assert found.item() == pytest.approx(expected, rel=1e-10)
    log_b = torch.tensor(guess, dtype=torch.float64, requires_grad=True)
    options = {"tolerance_grad": 1e-13, "tolerance_change": 1e-15, "max_iter": 100}
    lbfgs = torch.optim.LBFGS([log_b], line_search_fn="strong_wolfe", **options)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits * log_b.exp(), labels)
        loss.backward()
        return loss

    lbfgs.step(closure)
    assert found.item() == pytest.approx(math.exp(-log_b.item()), rel=1e-6)


def test_no_other_temperature_has_a_lower_loss() -> None:
    for seed in range(5):
        logits, labels = drawn_logits(seed, 10.0 ** (seed - 2))
        best = fit_temperature(logits, labels).item()
        least = loss_of(logits, labels, best)
        for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
            assert loss_of(logits, labels, best * factor) > least
        assert torch.equal((logits / best).argmax(1), logits.argmax(1))


def test_the_temperature_of_scaled_and_shifted_logits() -> None:
    logits, labels = drawn_logits(3)
    found = fit_temperature(logits, labels).item()
    assert fit_temperature(8 * logits, labels).item() == pytest.approx(8 * found, rel=1e-12)
    shifted = logits + torch.linspace(-900, 900, len(logits), dtype=torch.float64)[:, None]
    assert fit_temperature(shifted, labels).item() == pytest.approx(found, rel=1e-9)
    assert fit_temperature(logits / found, labels).item() == pytest.approx(1, rel=1e-12)
    assert fit_temperature(logits.float(), labels).item() == pytest.approx(found, rel=1e-5)


def test_the_temperature_of_two_classes_by_hand() -> None:
    """With a share s of labels on the larger of two logits d apart, softmax(d / T) is s."""
    logits = torch.tensor([[3.0, 0.0]]).repeat(10, 1)
    labels = torch.tensor([0] * 8 + [1] * 2)
    expected = 3 / math.log(0.8 / 0.2)
    assert fit_temperature(logits, labels).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], "falls as T goes to 0"),
        ([[2.0, 0.0], [2.0, 0.0]], [0, 1], "falls as T goes to infinity"),
        ([[2.0, 0.0], [0.0, 2.0]], [1, 0], "falls as T goes to infinity"),
        ([[1.0, 1.0]], [0], "falls as T goes to 0"),
        ([[math.inf, 0.0]], [0], "finite logits"),
        ([[1.0, 0.0]], [2], "from 0 to 1"),
        ([[1.0, 0.0]], [0, 1], r"\[1\] and \[2\]"),
    ],
)
def test_there_is_not_always_a_temperature(logits, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(torch.tensor(logits), torch.tensor(labels))


def test_a_temperature_needs_examples() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        fit_temperature(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
