"""Held-out rows: a partition, at random, and of each class alike when asked."""

import pytest
import torch

from fcifar import random
from fcifar.data.split import folds, holdout

LABELS = torch.arange(10).repeat_interleave(100)  # sorted by class, as folders are


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.5])
def test_the_parts_make_the_whole(fraction: float, stratify: bool) -> None:
    train, valid = holdout(random.key(0), LABELS, fraction, stratify=stratify)
    assert len(valid) == fraction * 1000
    assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(1000))


def test_it_is_a_random_sample_of_the_key() -> None:
    valid = [holdout(random.key(seed), LABELS, 0.2)[1] for seed in (0, 0, 1)]
    assert torch.equal(valid[0], valid[1])
    assert not torch.equal(valid[0], valid[2])
    counts = torch.bincount(LABELS[valid[0]], minlength=10)
    assert counts.min() > 5, "not a run of rows"
    assert counts.max() > counts.min(), "not stratified unless asked"


def test_stratified_means_the_same_part_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    _, valid = holdout(random.key(0), labels, 0.2, stratify=True)
    assert torch.bincount(labels[valid]).tolist() == [10, 6, 4]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_folds_are_parts_of_equal_size_and_of_each_class_alike(count: int) -> None:
    labels = torch.tensor([0] * 53 + [1] * 31 + [2] * 20)
    parts = folds(random.key(0), labels, count)
    sizes = torch.bincount(parts, minlength=count)
    assert sizes.sum() == len(labels)
    assert sizes.max() - sizes.min() <= 1
    for label in range(3):
        of_class = torch.bincount(parts[labels == label], minlength=count)
        assert of_class.max() - of_class.min() <= 1
    assert torch.equal(parts, folds(random.key(0), labels, count))
    assert not torch.equal(parts, folds(random.key(1), labels, count))
    assert not torch.equal(parts, torch.arange(len(labels)) % count), "at random"


def test_folds_of_few_rows() -> None:
    assert folds(random.key(0), torch.empty(0, dtype=torch.int64), 3).tolist() == []
    assert sorted(folds(random.key(0), torch.tensor([4, 4]), 3).tolist()) == [0, 1]
