"""Two classes, a hundred, thousands: all of them in the report, some of them in a table."""

import json
from typing import Any

import pytest
import torch

from fcifar.analysis import calibration
from fcifar.analysis.predictions import LARGEST_MATRIX, summarize
from fcifar.cli import output
from fcifar.step import EvalOutput

MANY = [2, 100, 1000, 3000]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class number {i}" for i in range(count))


def examples(count: int) -> tuple[EvalOutput, torch.Tensor]:
    """Two images of each class; the second of an even class is predicted as the next class."""
    labels = torch.arange(count).repeat(2)
    predictions = labels.clone()
    predictions[count::2] += 1
    predictions %= count
    logits = 5.0 * torch.nn.functional.one_hot(predictions, count)
    return EvalOutput(torch.ones(2 * count), predictions == labels, logits), labels


@pytest.mark.parametrize("count", MANY)
def test_every_confusion_is_in_the_report(count: int) -> None:
    seen, labels = examples(count)
    figures = json.loads(json.dumps(summarize(seen, labels, names(count))))
    assert len(figures["per_class"]) == count
    _, predictions = calibration.softmax_confidence(seen.logits)
    expected = calibration.confusion_matrix(labels, predictions, count)
    if count <= LARGEST_MATRIX:
        assert figures["confusion"] == expected.tolist()
    else:
        assert "confusion" not in figures
        found = torch.zeros_like(expected)
        for true, predicted, number in figures["confusion_cells"]:
            found[true, predicted] = number
        assert torch.equal(found, expected)
    assert output.confusions(figures, 1) == "class number 0 as class number 1 (1)"


def test_the_table_of_classes_shows_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    per_class: dict[str, dict[str, Any]] = {
        f"c{i:03}": {"correct": i, "total": 1000, "accuracy": i / 1000} for i in range(1000)
    }
    per_class["none"] = {"correct": 0, "total": 0, "accuracy": None}
    output.class_table(per_class)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25
    assert lines[1].split() == ["c000", "0.0", "%", "0", "1,000"]
    assert lines[13].split() == ["c999", "99.9", "%", "999", "1,000"]
    assert lines[-1] == "... of 1,001 classes; --json and report.json have all"
    output.class_table(dict(list(per_class.items())[:40]))
    assert len(capsys.readouterr().out.splitlines()) == 41
