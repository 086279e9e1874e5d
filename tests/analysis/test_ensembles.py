"""Several networks on the same examples: against loops and by hand."""

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from fcifar import random
from fcifar.analysis import confidence
from fcifar.analysis.ensembles import (
    disagreement,
    examine,
    ranked,
    split_variance,
    summarize_replicas,
)

R, N, C = 5, 40, 4


def outputs() -> tuple[Tensor, Tensor]:
    logits = 2 * random.normal(random.key(0), (R, N, C))
    return logits, random.randint(random.key(1), (N,), 0, C)


def test_each_example_equals_a_loop() -> None:
    logits, labels = outputs()
    together = examine(logits, labels)
    for i, label in enumerate(labels.tolist()):
        probabilities = [logits[r, i].double().softmax(-1).tolist() for r in range(R)]
        votes = [p.index(max(p)) for p in probabilities]
        mean = [sum(column) / R for column in zip(*probabilities, strict=True)]
        entropies = [-sum(x * math.log(x) for x in p) for p in (*probabilities, mean)]
        pairs = list(itertools.combinations(votes, 2))
        row = {name: values[i].tolist() for name, values in together._asdict().items()}
        assert row.pop("votes") == [votes.count(c) for c in range(C)]
        assert row == pytest.approx(
            {
                "error_rate": sum(vote != label for vote in votes) / R,
                "mean_loss": sum(-math.log(p[label]) for p in probabilities) / R,
                "disagreement": sum(a != b for a, b in pairs) / len(pairs),
                "entropy": entropies[-1],
                "mean_entropy": sum(entropies[:-1]) / R,
                "mutual_information": entropies[-1] - sum(entropies[:-1]) / R,
                "prediction": mean.index(max(mean)),
                "correct": mean.index(max(mean)) == label,
            }
        )


def test_the_order_of_models_does_not_matter() -> None:
    logits, labels = outputs()
    for a, b in zip(examine(logits, labels), examine(logits.flip(0), labels), strict=True):
        torch.testing.assert_close(a, b)


def test_extremes() -> None:
    certain = 1000 * torch.eye(3)[:, None]  # three networks, each sure of another class
    together = examine(certain, torch.tensor([1]))
    assert together.error_rate.item() == pytest.approx(2 / 3)
    assert together.disagreement.item() == 1
    assert together.entropy.item() == pytest.approx(math.log(3))
    assert together.mean_entropy.item() == 0
    assert together.mutual_information.item() == pytest.approx(math.log(3))
    alike = examine(torch.zeros(4, 1, 3), torch.tensor([0]))
    assert alike.disagreement.item() == 0
    assert alike.mutual_information.item() == pytest.approx(0, abs=1e-12)
    assert alike.mean_entropy.item() == pytest.approx(math.log(3))


def test_disagreement_of_two_is_all_or_nothing() -> None:
    assert disagreement(torch.tensor([[2, 0, 0], [0, 1, 1]])).tolist() == [0, 1]
    assert disagreement(torch.tensor([[1, 0, 0]])).isnan().all()


def test_rows_are_ranked_by_one_key_after_the_other() -> None:
    first = torch.tensor([0.5, 1.0, math.nan, 1.0, 0.5, 1.0, math.inf])
    second = torch.tensor([1.0, 2.0, 9.0, 3.0, math.nan, 2.0, 0.0])
    assert ranked(first, second).tolist() == [6, 3, 1, 5, 0, 4, 2]
    assert ranked(first).tolist() == [6, 1, 3, 5, 0, 4, 2]


def test_a_diverged_model_gives_nan_and_does_not_change_counts() -> None:
    logits, labels = outputs()
    logits[2] = math.nan
    together = examine(logits, labels)
    assert together.entropy.isnan().all()
    assert together.mean_loss.isnan().all()
    assert together.error_rate.isfinite().all()
    assert together.disagreement.isfinite().all()
    assert json.dumps(summarize_replicas(logits, labels), allow_nan=False)


def test_the_summary_is_that_of_its_parts() -> None:
    logits, labels = outputs()
    figures = summarize_replicas(logits, labels)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    correct = logits.argmax(-1) == labels
    accuracies = correct.double().mean(1).tolist()
    summary, variance = confidence.summarize(accuracies), split_variance(correct)
    probabilities = logits.double().softmax(-1).mean(0)
    std = math.copysign(math.sqrt(abs(variance.distribution)), variance.distribution)
    assert figures.pop("accuracies") == pytest.approx(accuracies)
    assert figures.pop("interval95") == pytest.approx([summary.low, summary.high])
    assert figures == pytest.approx(
        {
            "replicas": R,
            "n": N,
            "mean_accuracy": summary.mean,
            "std_accuracy": summary.std,
            "min_accuracy": min(accuracies),
            "max_accuracy": max(accuracies),
            "std_independent": math.sqrt(variance.independent),
            "std_distribution": std,
            "ensemble_accuracy": (probabilities.argmax(-1) == labels).double().mean().item(),
            "mean_disagreement": examine(logits, labels).disagreement.mean().item(),
        }
    )


def test_a_single_model_has_no_spread() -> None:
    logits, labels = outputs()
    figures = summarize_replicas(logits[:1], labels)
    assert figures["accuracies"] == [figures["ensemble_accuracy"]]
    unknown = ("std_accuracy", "interval95", "std_independent", "std_distribution")
    assert [figures[name] for name in (*unknown, "mean_disagreement")] == [None] * 5


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3, 4), torch.zeros(3).long(), r"floating \[R, N, C\]"),
        ((0, 3, 4), torch.zeros(3).long(), "each at least 1"),
        ((2, 3, 4), torch.zeros(4).long(), r"integers \[3\]"),
        ((2, 3, 4), torch.zeros(3), r"integers \[3\]"),
    ],
)
def test_misuse(shape: tuple[int, ...], labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize_replicas(torch.zeros(shape), labels)
