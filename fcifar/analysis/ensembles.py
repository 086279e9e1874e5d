"""Ensembles and replicas: errors, disagreement, uncertainty, variance over runs.

For whole evaluations, outside compiled steps. Sums are in float64. Invalid arguments raise a
ValueError.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar.analysis import confidence


class Ensemble(NamedTuple):
    """The predictions of R models for each of N examples.

    Entropies and losses are in nats. They are NaN where the logits of a model are not finite; the
    prediction is meaningless then.
    """

    votes: Tensor  # int64 [N, C], the number of models that predict each class
    error_rate: Tensor  # float64 [N] in [0, 1], the fraction of models that are wrong
    mean_loss: Tensor  # float64 [N], the models' mean softmax cross-entropy
    disagreement: Tensor  # float64 [N] in [0, 1], see disagreement(); NaN for one model
    entropy: Tensor  # float64 [N] in [0, ln C], of the mean probabilities
    mean_entropy: Tensor  # float64 [N], the mean of the models' entropies
    mutual_information: Tensor  # float64 [N], entropy - mean_entropy, at least 0
    prediction: Tensor  # int64 [N], the most likely class by the mean probabilities
    correct: Tensor  # bool [N], whether the prediction is right


def examine(logits: Tensor, labels: Tensor) -> Ensemble:
    """Combine the predictions of R models for the same N examples.

    The ensemble's probabilities are the mean of the models' softmax. Its entropy, the total
    uncertainty, is the mean entropy of the models plus the mutual information of class and model,
    which measures their disagreement: Depeweg et al., https://arxiv.org/abs/1710.07283.

    Args:
        logits: floating [R, N, C], each at least 1.
        labels: integers [N].

    >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two models, one image
    >>> together = fcifar.analysis.ensembles.examine(logits, torch.tensor([0]))
    >>> together.votes, together.correct, together.disagreement
    (tensor([[1, 1]]), tensor([True]), tensor([1.], dtype=torch.float64))
    """
    _check(logits, labels)
    replicas, examples, classes = logits.shape
    labels = labels.long()
    mean = torch.zeros(examples, classes, dtype=torch.float64, device=logits.device)
    votes, entropies, losses = mean.long(), mean[:, 0].clone(), mean[:, 0].clone()
    for each in logits:  # one at a time, to save memory
        votes += F.one_hot(each.argmax(-1), classes)
        probabilities = each.double().softmax(-1)
        mean += probabilities / replicas
        entropies += _entropy(probabilities) / replicas
        losses += F.cross_entropy(each.double(), labels, reduction="none") / replicas
    entropy, prediction = _entropy(mean), mean.argmax(-1)
    return Ensemble(
        votes=votes,
        error_rate=(replicas - votes.gather(1, labels[:, None])[:, 0]).double() / replicas,
        mean_loss=losses,
        disagreement=disagreement(votes),
        entropy=entropy,
        mean_entropy=entropies,
        mutual_information=(entropy - entropies).clamp(min=0),
        prediction=prediction,
        correct=prediction == labels,
    )


def disagreement(votes: Tensor) -> Tensor:
    """Return the fraction of pairs of models that predict different classes, for each example.

    ``votes`` are as in ``Ensemble``. Returns float64 [N] in [0, 1]; NaN for one model.

    >>> fcifar.analysis.ensembles.disagreement(torch.tensor([[3, 0], [2, 1]]))
    tensor([0.0000, 0.6667], dtype=torch.float64)
    """
    replicas = votes.sum(-1)
    pairs = replicas * (replicas - 1)
    agreeing = (votes * (votes - 1)).sum(-1)
    return (pairs - agreeing).double() / pairs


def ranked(*keys: Tensor) -> Tensor:
    """Return row numbers, int64 [N], sorted stably by keys [N] in descending order, NaN last.

    >>> first, second = torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0.0, 0.0, 9.0])
    >>> fcifar.analysis.ensembles.ranked(first, second)
    tensor([1, 2, 0])
    """
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        values = torch.where(key.isnan(), -torch.inf, key)
        order = order[values[order].sort(descending=True, stable=True).indices]
    return order


def summarize_replicas(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Summarize R models of one recipe on the same N examples, as JSON-serializable values.

    Accuracies and their standard deviations are fractions. With one model, the latter are None.

    * replicas: R; n: N; accuracies: of each model.
    * mean_accuracy, std_accuracy, min_accuracy, max_accuracy; interval95: Student's, of the mean.
    * std_independent, std_distribution: ``signed_std`` of the parts in ``split_variance``.
    * ensemble_accuracy: of the mean probabilities.
    * mean_disagreement: mean of ``disagreement`` over the examples.

    Arguments are as in ``examine``.
    """
    together = examine(logits, labels)
    correct = logits.argmax(-1) == labels
    variance = split_variance(correct)
    accuracies = [hits / len(labels) for hits in correct.sum(1).tolist()]
    summary = confidence.summarize(accuracies)
    return {
        "replicas": len(accuracies),
        "n": len(labels),
        "accuracies": accuracies,
        "mean_accuracy": summary.mean,
        "std_accuracy": _or_none(summary.std),
        "interval95": None if math.isnan(summary.low) else [summary.low, summary.high],
        "min_accuracy": summary.least,
        "max_accuracy": summary.most,
        "std_independent": _or_none(signed_std(variance.independent)),
        "std_distribution": _or_none(signed_std(variance.distribution)),
        "ensemble_accuracy": int(together.correct.sum()) / len(labels),
        "mean_disagreement": _or_none(together.disagreement.mean().item()),
    }


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 3 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(
            "logits must be floating [R, N, C], each at least 1, not "
            f"{logits.dtype} {[*logits.shape]}"
        )
    if labels.is_floating_point() or labels.shape != logits.shape[1:2]:
        raise ValueError(
            f"labels must be integers [{logits.shape[1]}], not {labels.dtype} {[*labels.shape]}"
        )


# Variance of test accuracies over runs ------------------------------------------------------------


class Variance(NamedTuple):
    """Variances of accuracies (fractions) over runs. All NaN for a single model."""

    observed: float  # of the R accuracies, with R - 1
    independent: float  # from errors that are independent between examples
    distribution: float  # of the accuracy on the data distribution; may be negative; NaN for N = 1


def split_variance(correct: Tensor) -> Variance:
    """Split the variance of the accuracies of R models on the same N examples.

    Models that differ only in their seed differ in test accuracy, partly because of the finite test
    set, partly because some are better on the distribution. Jordan, "On the variance of neural
    network training with respect to test sets and distributions",
    https://arxiv.org/abs/2304.01910.

    With ``eps_i`` the probability that a run gets example i wrong, errors that are independent
    between examples give an accuracy with variance ``sum eps_i (1 - eps_i) / N**2``. The estimate
    uses the observed rates, and is multiplied by R / (R - 1) to be unbiased.

    ``distribution``, the variance over runs of the accuracy on the distribution of the examples, is
    the mean covariance of the correctness of two different examples:
    ``(observed - independent) N / (N - 1)``. It is unbiased; if the true variance is 0, about half
    of the estimates are negative. The relative standard error of ``observed`` is about
    ``sqrt(2 / (R - 1))``.

    Args:
        correct: bool [R, N], R and N at least 1.
    """
    if correct.dtype != torch.bool or correct.ndim != 2 or not correct.numel():
        raise ValueError(
            f"correct must be bool [R, N], R and N at least 1, not {correct.dtype} "
            f"{[*correct.shape]}"
        )
    replicas, examples = correct.shape
    if replicas == 1:
        return Variance(math.nan, math.nan, math.nan)
    # In integers until the last division, because the two parts are nearly equal.
    hits = correct.sum(1).tolist()
    right = correct.sum(0)
    total = replicas * sum(h * h for h in hits) - sum(hits) ** 2
    independent = int((right * (replicas - right)).sum())
    pairs = replicas * (replicas - 1)
    scale = pairs * examples * (examples - 1)
    return Variance(
        observed=total / (pairs * examples**2),
        independent=independent / (pairs * examples**2),
        distribution=(total - independent) / scale if scale else math.nan,
    )


def signed_std(variance: float) -> float:
    """Return the square root of the absolute value, with the sign of an estimated variance."""
    return math.copysign(math.sqrt(abs(variance)), variance)
