"""Confident learning: against cleanlab, by hand, and by what it must never do."""

import json
from pathlib import Path

import pytest
import torch

from fcifar.analysis import label_errors
from tests.golden.make_label_errors import CASES, draw

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/label_errors.json").read_text())["cases"]


@pytest.mark.parametrize("name", CASES)
def test_it_finds_what_cleanlab_finds_in_the_same_order(name: str) -> None:
    (p, labels), expected = draw(CASES[name]), GOLDEN[name]
    found = label_errors.thresholds(p, labels)
    torch.testing.assert_close(found, torch.tensor(expected["thresholds"], dtype=found.dtype))
    joint = label_errors.confident_joint(p, labels)
    assert joint.tolist() == expected["joint"]
    calibrated = label_errors.calibrated_joint(joint, labels)
    assert calibrated.tolist() == expected["calibrated"]
    for rank in label_errors.RANKINGS:
        scores = torch.tensor(expected["scores"][rank], dtype=torch.float64)
        torch.testing.assert_close(getattr(label_errors, rank)(p, labels)[:20], scores)
        for by in label_errors.FILTERS:
            found = label_errors.find(p, labels, filter_by=by, rank_by=rank)
            assert found.rows.tolist() == expected["rows"][by][rank], (by, rank)
            assert torch.equal(found.suggested, p[found.rows].argmax(1))
            assert torch.equal(found.joint, calibrated)


def test_the_goldens_are_not_empty() -> None:
    for case in GOLDEN.values():
        assert all(len(ranked) for by in case["rows"].values() for ranked in by.values())


def test_by_hand() -> None:
    """Thresholds 0.6 and 0.8: rows 0, 1, 3, 4 are confident, and row 2 is of the other class."""
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert label_errors.thresholds(p, labels).tolist() == pytest.approx([0.6, 0.8])
    joint = label_errors.confident_joint(p, labels)
    assert joint.tolist() == [[2, 1], [0, 2]]
    found = label_errors.find(p, labels)
    assert (found.rows.tolist(), found.suggested.tolist()) == ([2], [1])
    assert found.estimated == 1
    assert found.scores.tolist() == pytest.approx([0.1])
    assert label_errors.normalized_margin(p, labels).tolist() == pytest.approx(
        [0.9, 0.8, 0.1, 0.8, 0.8]
    )


def test_a_row_is_scaled_to_its_number_of_labels_and_rounded_within_it() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 7)
    joint = torch.tensor([[2, 2, 2], [1, 1, 0], [1, 0, 2]])
    scaled = label_errors.calibrated_joint(joint, labels)
    assert scaled.sum(1).tolist() == [10, 5, 7]
    # 10/3 each: two round down, and the first gets what is missing; 2.5 each: half to even.
    assert scaled.tolist() == [[4, 3, 3], [3, 2, 0], [2, 0, 5]]


@pytest.mark.parametrize("name", CASES)
def test_what_a_model_agrees_with_is_never_suspected(name: str) -> None:
    p, labels = draw(CASES[name])
    for by in label_errors.FILTERS:
        rows = label_errors.find(p, labels, filter_by=by).rows
        assert (p[rows].argmax(1) != labels[rows]).all()
        assert len(set(rows.tolist())) == len(rows)
        own = label_errors.self_confidence(p, labels)[rows]
        assert torch.equal(own, own.sort().values)
    by_class, by_rate, both = (
        {*label_errors.find(p, labels, filter_by=by).rows.tolist()}
        for by in ("prune_by_class", "prune_by_noise_rate", "both")
    )
    assert both == by_class & by_rate


def test_the_order_of_the_examples_does_not_matter() -> None:
    p, labels = draw(CASES["seven classes"])
    rows = label_errors.find(p, labels).rows
    flipped = label_errors.find(p.flip(0), labels.flip(0)).rows
    assert (len(p) - 1 - flipped).tolist() == rows.tolist()


def test_a_class_without_examples_is_never_confident() -> None:
    p, labels = draw(CASES["seven classes"])
    wide = torch.cat([p / 2, p.new_full((len(p), 1), 0.5)], 1)
    assert label_errors.thresholds(wide, labels)[-1] == 2
    joint = label_errors.confident_joint(wide, labels)
    assert joint[:, -1].tolist() == [0] * 7 + [1]
    assert label_errors.calibrated_joint(joint, labels)[-1].sum() == 0


@pytest.mark.parametrize(
    ("p", "labels", "options", "message"),
    [
        ([[0.5, 0.5]], [0, 1], {}, "one for each of 1 examples"),
        ([[0.5, 0.5]], [2], {}, r"labels must lie in \[0, 1\]"),
        ([[0.5, 0.4]], [0], {}, "sum to 1"),
        ([[1.5, -0.5]], [0], {}, r"lie in \[0, 1\]"),
        ([[float("nan"), 0.5]], [0], {}, r"lie in \[0, 1\]"),
        ([[1.0]], [0], {}, "C at least 2"),
        ([[0.5, 0.5]], [0], {"filter_by": "all"}, "filter_by is 'all'"),
        ([[0.5, 0.5]], [0], {"rank_by": "loss"}, "rank_by 'loss'"),
    ],
)
def test_invalid_arguments(p, labels, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_errors.find(torch.tensor(p), torch.tensor(labels), **options)
    with pytest.raises(ValueError, match="at least one"):
        label_errors.find(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
