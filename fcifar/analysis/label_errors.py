"""Likely label errors, by confident learning.

Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", 2021,
https://arxiv.org/abs/1911.00068. A class is confident in an example if its probability reaches the
mean of that class over the examples with its label. Counting the confident class against the given
label estimates how many examples of each class have each label, and how many of them to suspect.

Probabilities have to be out-of-sample: those of a model that was not trained on the example.
Equal to the functions of cleanlab 2.9 named in each docstring, in float64. For whole data sets,
outside compiled steps. Invalid arguments raise a ValueError.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FILTERS = (
    "prune_by_noise_rate",
    "prune_by_class",
    "both",
    "confident_learning",
    "predicted_neq_given",
)
RANKINGS = ("self_confidence", "normalized_margin")
_EQUAL = 1e-6  # probabilities that close to each other are equal
_SUM = 1e-3  # by which the probabilities of an example may miss a sum of 1


class LabelErrors(NamedTuple):
    """Examples whose labels are likely to be wrong, the likeliest first."""

    rows: Tensor  # int64 [M]
    suggested: Tensor  # int64 [M], the class with the largest probability
    scores: Tensor  # float64 [M], by which they are ranked, ascending
    joint: Tensor  # int64 [C, C], see ``calibrated_joint``

    @property
    def estimated(self) -> int:
        """The estimated number of label errors in the data set: the joint off its diagonal."""
        return int(self.joint.sum() - self.joint.trace())


def find(
    probabilities: Tensor,
    labels: Tensor,
    *,
    filter_by: str = "prune_by_noise_rate",
    rank_by: str = "self_confidence",
) -> LabelErrors:
    """Find the examples whose labels are likely to be wrong.

    ``cleanlab.filter.find_label_issues`` with the same ``filter_by`` and ``rank_by`` as
    ``return_indices_ranked_by``. Examples whose label is the most likely class are never among
    them.

    Args:
        probabilities: floating [N, C], out-of-sample, C at least 2.
        labels: int64 [N], as given.
        filter_by: which examples. With n the counts of ``calibrated_joint``, and i the given label:
            "prune_by_noise_rate": for each other class j, the n[i, j] with the largest margin of j;
            "prune_by_class": as many of each label as the joint has off its diagonal, those with
            the smallest probabilities of the label; "both": those of both;
            "confident_learning": those counted off the diagonal of ``confident_joint``;
            "predicted_neq_given": all whose most likely class is another.
        rank_by: "self_confidence" or "normalized_margin", the functions below.

    >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    >>> found = fcifar.analysis.label_errors.find(p, torch.tensor([0, 0, 1, 1, 1]))
    >>> found.rows, found.suggested
    (tensor([4]), tensor([0]))
    """
    p = _check(probabilities, labels)
    if filter_by not in FILTERS or rank_by not in RANKINGS:
        raise ValueError(
            f"filter_by is {filter_by!r} and rank_by {rank_by!r}; they must be one of "
            f"{', '.join(FILTERS)} and of {', '.join(RANKINGS)}"
        )
    joint = calibrated_joint(confident_joint(p, labels), labels)
    if filter_by == "confident_learning":
        guess, is_confident = _confident_class(p, labels)
        suspects = is_confident & (guess != labels)
    elif filter_by == "predicted_neq_given":
        suspects = p.argmax(1) != labels
    else:
        counts = _keep_one(joint)
        suspects = torch.ones_like(labels, dtype=torch.bool)
        if filter_by != "prune_by_class":
            suspects &= _prune_by_noise_rate(p, labels, counts)
        if filter_by != "prune_by_noise_rate":
            suspects &= _prune_by_class(p, labels, counts)
    favoured = p.scatter_add(1, labels[:, None], torch.full_like(p[:, :1], _EQUAL))
    rows = torch.nonzero(suspects & (favoured.argmax(1) != labels)).flatten()
    scores = (self_confidence if rank_by == "self_confidence" else normalized_margin)(p, labels)
    scores, order = scores[rows].sort(stable=True)
    rows = rows[order]
    return LabelErrors(rows, p[rows].argmax(1), scores, joint)


def self_confidence(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the probability of the given label, float64 [N] in [0, 1].

    ``cleanlab.rank.get_self_confidence_for_each_label``. Arguments are those of ``find``.
    """
    return _check(probabilities, labels).gather(1, labels[:, None])[:, 0]


def normalized_margin(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return (p - q + 1) / 2 with p of the given label and q the largest other, float64 [N].

    In [0, 1]; ``cleanlab.rank.get_normalized_margin_for_each_label``. Arguments are those of
    ``find``.
    """
    p = _check(probabilities, labels)
    others = p.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (p.gather(1, labels[:, None])[:, 0] - others + 1) / 2


def thresholds(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean probability of each class over the examples with its label, float64 [C].

    From 2e-6 up; 2, which no probability reaches, for a class without examples. Equation 2 of the
    paper; ``cleanlab.count.get_confident_thresholds``. Arguments are those of ``find``.
    """
    p = _check(probabilities, labels)
    own = p.gather(1, labels[:, None])[:, 0]
    zeros = p.new_zeros(p.shape[1])
    count = zeros.index_add(0, labels, torch.ones_like(own))
    mean = zeros.index_add(0, labels, own) / count
    return torch.where(count > 0, mean.clamp(min=2 * _EQUAL), 2.0)


def confident_joint(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Count the confident class of each example against its label, int64 [C, C].

    Rows are given labels, columns the confident class: the only one whose probability reaches its
    threshold, or of several, the most likely class. Examples without one are not counted. The
    diagonal is at least 1. Equation 1 of the paper; ``cleanlab.count.compute_confident_joint`` with
    ``calibrate=False``. Arguments are those of ``find``.
    """
    p = _check(probabilities, labels)
    classes = p.shape[1]
    guess, is_confident = _confident_class(p, labels)
    cells = (labels * classes + guess)[is_confident]
    joint = torch.bincount(cells, minlength=classes**2).view(classes, classes)
    diagonal = torch.eye(classes, dtype=torch.bool, device=p.device)
    return torch.where(diagonal, joint.clamp(min=1), joint)


def calibrated_joint(joint: Tensor, labels: Tensor) -> Tensor:
    """Scale counts so that each row sums to the number of examples with its label, int64 [C, C].

    Rounded so that the sums are kept. Equation 3 of the paper, times the number of examples;
    ``cleanlab.count.calibrate_confident_joint``.

    Args:
        joint: int64 [C, C], from ``confident_joint``.
        labels: int64 [N], as given.
    """
    counts = torch.bincount(labels, minlength=len(joint)).double()
    joint = joint.double()  # two integers divide to float32
    scaled = joint / joint.sum(1, keepdim=True).clamp(min=1) * counts[:, None]
    return _round_rows(scaled / scaled.sum() * counts.sum())


def _confident_class(p: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confident class of each example, and whether it has one."""
    reaches = p >= thresholds(p, labels) - _EQUAL
    count = reaches.sum(1)
    return torch.where(count > 1, p.argmax(1), reaches.int().argmax(1)), count > 0


def _round_rows(values: Tensor) -> Tensor:
    """Round each row to whole numbers whose sum is that of the row, rounded.

    Where the sum would be another, the entries with the largest rounding errors change by 1; of
    equal ones the first, where cleanlab's choice depends on the sort of the machine.
    """
    rounded = values.round()
    missing = values.sum(1, keepdim=True).round() - rounded.sum(1, keepdim=True)
    rank_up, rank_down = (
        error.argsort(dim=1, stable=True).argsort(dim=1)
        for error in (rounded - values, values - rounded)
    )
    return (rounded + (rank_up < missing).double() - (rank_down < -missing).double()).long()


def _keep_one(joint: Tensor) -> Tensor:
    """Return the joint with a diagonal of at least 1, taken equally off the rest of its row.

    So one example of each label is never suspected.
    """
    diagonal = joint.diagonal()
    kept = diagonal.clamp(min=1)
    others = ((joint != 0).sum(1) - 1).clamp(min=1)
    rest = (joint - ((kept - diagonal).double() / others)[:, None]).clamp(min=0)
    return rest.long().diagonal_scatter(kept)


def _prune_by_noise_rate(p: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Suspect the examples of each label with the largest margins of each other class."""
    suspects = torch.zeros_like(labels, dtype=torch.bool)
    for label, count in enumerate(counts):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            own = p[rows]
            margin = own - own[:, label : label + 1]
            rank = margin.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
            count = count.clone()
            count[label] = 0
            suspects[rows] = (rank < count).any(1)
    return suspects


def _prune_by_class(p: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Suspect the examples of each label with the smallest probabilities of it."""
    suspects = torch.zeros_like(labels, dtype=torch.bool)
    for label, kept in enumerate(counts.diagonal().tolist()):
        rows = torch.nonzero(labels == label).flatten()
        if len(rows) > 1:
            order = p[rows, label].argsort(stable=True)
            suspects[rows[order[: max(len(rows) - kept, 0)]]] = True
    return suspects


def _check(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the probabilities in float64, or raise a ValueError."""
    shape = [*probabilities.shape]
    if probabilities.ndim != 2 or shape[1] < 2 or not probabilities.is_floating_point():
        raise ValueError(
            f"probabilities must be floating [N, C], C at least 2, not {probabilities.dtype} "
            f"{shape}"
        )
    if labels.dtype != torch.int64 or labels.shape != (shape[0],) or not shape[0]:
        raise ValueError(
            f"labels must be int64 [N], one for each of {shape[0]} examples and at least one, not "
            f"{labels.dtype} {[*labels.shape]}"
        )
    if ((labels < 0) | (labels >= shape[1])).any():
        raise ValueError(f"labels must lie in [0, {shape[1] - 1}]")
    p = probabilities.double()
    if not (((p >= 0) & (p <= 1 + _SUM)).all() and ((p.sum(1) - 1).abs() <= _SUM).all()):
        raise ValueError("probabilities must lie in [0, 1], and sum to 1 for each example")
    return p
