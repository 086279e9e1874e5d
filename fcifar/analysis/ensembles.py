"""What several networks make of the same examples: errors, disagreement, uncertainty.

For whole evaluations, outside any compiled step: the values are looked at and checked. Sums are in
float64.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar.analysis import confidence


class Ensemble(NamedTuple):
    """What R networks together make of each of N examples.

    Entropies are in nats. Where the logits of a network are not finite, they are NaN, and the
    ensemble's prediction means nothing.
    """

    votes: Tensor  # int64 [N, C], how many of the networks predict each class
    error_rate: Tensor  # float64 [N] in [0, 1], the share of the networks that are wrong
    mean_loss: Tensor  # float64 [N], softmax cross-entropy in nats, the mean over the networks
    disagreement: Tensor  # float64 [N] in [0, 1], see disagreement(); NaN for one network
    entropy: Tensor  # float64 [N] in [0, ln C], of the mean of the probabilities
    mean_entropy: Tensor  # float64 [N], the mean of the networks' entropies
    mutual_information: Tensor  # float64 [N], the difference of the two, 0 or more
    prediction: Tensor  # int64 [N], the most likely class by the mean of the probabilities
    correct: Tensor  # bool [N], whether that is right


def examine(logits: Tensor, labels: Tensor) -> Ensemble:
    """Put together what R networks say about the same N examples.

    The ensemble's probabilities are the mean of the networks' softmax. The entropy of the mean is
    the uncertainty in all; the mean entropy is what each network has on its own; and the rest, the
    mutual information of class and network, is what comes of their contradicting one another.
    Depeweg et al., https://arxiv.org/abs/1710.07283.

    Args:
        logits: [R, N, C], floating, R and C at least 1.
        labels: integers [N].

    Raises:
        ValueError: the arguments are something else.

    >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])  # two networks, one image
    >>> together = fcifar.analysis.ensembles.examine(logits, torch.tensor([0]))
    >>> together.votes, together.correct, together.disagreement
    (tensor([[1, 1]]), tensor([True]), tensor([1.], dtype=torch.float64))
    """
    _check(logits, labels)
    networks, examples, classes = logits.shape
    labels = labels.long()
    mean = torch.zeros(examples, classes, dtype=torch.float64, device=logits.device)
    votes, entropies, losses = mean.long(), mean[:, 0].clone(), mean[:, 0].clone()
    for each in logits:  # one at a time, for R of them in float64 may be large
        votes += F.one_hot(each.argmax(-1), classes)
        probabilities = each.double().softmax(-1)
        mean += probabilities / networks
        entropies += _entropy(probabilities) / networks
        losses += F.cross_entropy(each.double(), labels, reduction="none") / networks
    entropy, prediction = _entropy(mean), mean.argmax(-1)
    return Ensemble(
        votes=votes,
        error_rate=(networks - votes.gather(1, labels[:, None])[:, 0]).double() / networks,
        mean_loss=losses,
        disagreement=disagreement(votes),
        entropy=entropy,
        mean_entropy=entropies,
        mutual_information=(entropy - entropies).clamp(min=0),
        prediction=prediction,
        correct=prediction == labels,
    )


def disagreement(votes: Tensor) -> Tensor:
    """The share of the pairs of networks that predict different classes, for each example.

    Args:
        votes: int64 [N, C], how many networks predict each class; each row adds up to R.

    Returns:
        float64 [N] in [0, 1]; NaN where R is 1. Of two networks it is 0 or 1.

    >>> fcifar.analysis.ensembles.disagreement(torch.tensor([[3, 0], [2, 1]]))
    tensor([0.0000, 0.6667], dtype=torch.float64)
    """
    networks = votes.sum(-1)
    pairs = networks * (networks - 1)
    alike = (votes * (votes - 1)).sum(-1)
    return (pairs - alike).double() / pairs


def ranked(*keys: Tensor) -> Tensor:
    """Row numbers by the first key, the largest first; equal ones by the next, and so on.

    Args:
        keys: one or more [N], floating. NaN is below everything else.

    Returns:
        int64 [N]. Rows that are equal in all keys are in their order.

    >>> first, second = torch.tensor([1.0, 3.0, 1.0]), torch.tensor([0.0, 0.0, 9.0])
    >>> fcifar.analysis.ensembles.ranked(first, second)
    tensor([1, 2, 0])
    """
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        below = torch.where(key.isnan(), -torch.inf, key)
        order = order[below[order].sort(descending=True, stable=True).indices]
    return order


def summarize_replicas(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Figures of R networks of one recipe on the same N examples, as values that JSON holds.

    Accuracies are fractions, and so are their standard deviations; what one network alone does not
    tell is None.

    * replicas: R; n: N.
    * accuracies: of each network, in order.
    * mean_accuracy, std_accuracy, min_accuracy, max_accuracy; interval95: Student's, of the mean.
    * std_independent: what errors independent from example to example would give.
    * std_distribution: the rest, the networks' own difference on all images like these. It is the
      root of an estimated variance; when that is negative, which says that no difference is seen,
      it is minus the root of its opposite. See ``split_variance`` for both.
    * ensemble_accuracy: of the mean of the probabilities.
    * mean_disagreement: over the examples, of the share of pairs that predict different classes.

    Args:
        logits: [R, N, C], floating, R, N and C at least 1.
        labels: integers [N].

    Raises:
        ValueError: the arguments are something else.
    """
    together = examine(logits, labels)
    correct = logits.argmax(-1) == labels
    variance = split_variance(correct)
    accuracies = [hits / len(labels) for hits in correct.sum(1).tolist()]
    summary = confidence.summarize(accuracies)
    interval = [summary.low, summary.high]
    return {
        "replicas": len(accuracies),
        "n": len(labels),
        "accuracies": accuracies,
        "mean_accuracy": summary.mean,
        "std_accuracy": _or_none(summary.std),
        "interval95": None if math.isnan(summary.low) else interval,
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


# How much of the spread of test accuracies over runs is real --------------------------------------

# Models that differ only in their seed differ in test accuracy. One part comes from the test set:
# each example that some models classify correctly and others do not adds the variance of a coin
# toss. The rest is that some models are better than others on any test set. Jordan, "On the
# variance of neural network training with respect to test sets and distributions",
# https://arxiv.org/abs/2304.01910. Computed in integers until the last division, because the two
# parts are nearly equal and only their difference matters.


class Variance(NamedTuple):
    """Variances over runs, of accuracies that are fractions. All NaN for a single network."""

    observed: float  # of the R accuracies, with R - 1
    independent: float  # what errors independent from example to example give
    distribution: float  # of the accuracy on all images like these; may be negative; NaN for N = 1


def split_variance(correct: Tensor) -> Variance:
    """Split the variance of the accuracies of R networks on the same N examples.

    With ``eps_i`` the probability that a run gets example i wrong, errors that are independent from
    example to example give an accuracy with variance ``sum eps_i (1 - eps_i) / N**2``. Its estimate
    here has the observed rates for ``eps_i`` and is multiplied by R / (R - 1), for they are the
    means of R draws: so it is unbiased.

    ``distribution`` is the variance, over runs, of the accuracy on the distribution that the
    examples are from. It is the mean covariance of the correctness of two examples, over all pairs
    of different ones: ``(observed - independent) N / (N - 1)``. Its expectation over runs and test
    sets is the true variance, whatever R; so where that is 0, about half of the estimates are
    negative. Few runs give a rough estimate: the standard error of ``observed`` alone is about
    ``sqrt(2 / (R - 1))`` of itself.

    Args:
        correct: bool [R, N], R and N at least 1.

    Raises:
        ValueError: ``correct`` is something else.
    """
    if correct.dtype != torch.bool or correct.ndim != 2 or not correct.numel():
        raise ValueError(
            f"correct must be bool [R, N], R and N at least 1, not {correct.dtype} "
            f"{[*correct.shape]}"
        )
    networks, examples = correct.shape
    if networks == 1:
        return Variance(math.nan, math.nan, math.nan)
    hits = correct.sum(1).tolist()
    right = correct.sum(0)  # int64, as all that follows
    total = networks * sum(h * h for h in hits) - sum(hits) ** 2
    tosses = int((right * (networks - right)).sum())
    pairs = networks * (networks - 1)
    return Variance(
        observed=total / (pairs * examples**2),
        independent=tosses / (pairs * examples**2),
        distribution=(total - tosses) / (pairs * examples * (examples - 1))
        if examples > 1
        else math.nan,
    )


def signed_std(variance: float) -> float:
    """The square root of an estimated variance; of a negative one, minus that of its opposite."""
    return math.copysign(math.sqrt(abs(variance)), variance)
