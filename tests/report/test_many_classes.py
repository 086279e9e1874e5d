"""Two classes, a hundred, thousands: pictures of a bounded size, and all in the report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fcifar import random
from fcifar.analysis import calibration
from fcifar.analysis.predictions import LARGEST_MATRIX, summarize
from fcifar.cli import output
from fcifar.data import Split, make_dataset
from fcifar.report import evaluation, pictures
from fcifar.report.confusion import confusion_picture, most_confused
from fcifar.report.plots import MOST_BARS, per_class_bars
from fcifar.step import Batch, EvalOutput

MANY = [2, 100, 1000, 3000]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class number {i}" for i in range(count))


def examples(count: int) -> tuple[EvalOutput, torch.Tensor]:
    """Two images of each class; the second of an even class is taken for the class behind it."""
    labels = torch.arange(count).repeat(2)
    predictions = labels.clone()
    predictions[count::2] += 1
    predictions %= count
    logits = 5.0 * torch.nn.functional.one_hot(predictions, count)
    return EvalOutput(torch.ones(2 * count), predictions == labels, logits), labels


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


@pytest.mark.parametrize("count", [2, pytest.param(200, marks=pytest.mark.slow)])
def test_the_pictures_of_an_evaluation(tmp_path: Path, count: int) -> None:
    seen, labels = examples(count)
    images = torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8)
    evaluation.draw(tmp_path, Batch(images, labels), seen, names(count), title="many")
    figures = summarize(seen, labels, names(count))
    per_class_bars(figures["per_class"], tmp_path / "per_class.png", title="many")
    assert len(list(tmp_path.glob("*.png"))) == 6
    for path in tmp_path.glob("*.png"):
        assert max(size(path)) < 7000, path


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


def test_the_most_confused_classes_are_drawn(tmp_path: Path) -> None:
    matrix = torch.eye(500, dtype=torch.int64) * 10
    matrix[7, 300], matrix[300, 7], matrix[450, 2] = 9, 8, 7
    assert most_confused(matrix, 4).tolist() == [2, 7, 300, 450]
    assert most_confused(matrix, 3).tolist() == [0, 7, 300], "a pair comes whole, or not"
    assert most_confused(torch.eye(500, dtype=torch.int64), 3).tolist() == [0, 1, 2]
    path = confusion_picture(matrix, names(500), tmp_path / "a.png", title="many")
    assert max(size(path)) < 4000


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


def test_bars_of_both_ends(tmp_path: Path) -> None:
    def bars(count: int) -> tuple[int, int]:
        row = {"correct": 1, "total": 2, "accuracy": 0.5}
        path = per_class_bars(dict.fromkeys(names(count), row), tmp_path / "a.png", title="many")
        return size(path)

    assert bars(MOST_BARS)[1] < bars(MOST_BARS + 1)[1] == bars(5000)[1]


@pytest.mark.parametrize("count", [2, 1000])
def test_a_preview_shows_some_of_many_classes(tmp_path: Path, count: int) -> None:
    labels = torch.arange(count)
    images = labels[:, None, None, None].expand(count, 3, 32, 32).to(torch.uint8)
    split = Split(images.contiguous(), labels)
    dataset = make_dataset("many", split, split, names(count), "tests")
    one, two = (
        pictures.preview(dataset, tmp_path / f"{i}.png", rows_per_class=1, key=random.key(i))
        for i in range(2)
    )
    assert size(one)[1] < 11_000
    assert (one.read_bytes() == two.read_bytes()) == (count == 2), "the key chooses classes"
