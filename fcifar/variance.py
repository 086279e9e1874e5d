"""How much of the spread of test accuracies over runs is real.

Networks that differ in their seed alone differ in test accuracy. A part of that is the test set's
doing: each example that some of them get right and others wrong adds a coin toss. The rest is that
some networks are better than others, on any test set.

Method: Jordan, "On the variance of neural network training with respect to test sets and
distributions", https://arxiv.org/abs/2304.01910. In whole numbers to the end: the two parts are
nearly equal, and their difference is what is asked for.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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
