"""Sheets of predictions: green where right, red where wrong, and who is who."""

import math

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from fcifar.errors import UsageError
from fcifar.report import predictions_grid, training_grid
from fcifar.report.predictions import RIGHT, WRONG, verdict

CLASSES = ("cat", "dog", "$hip_$")
WHITE = torch.full((3, 3, 32, 32), 255, dtype=torch.uint8)


def test_right_is_green_and_wrong_is_red_with_the_truth_in_brackets():
    assert verdict("cat", "cat", 0.973) == ("cat\n97.3 %", RIGHT)
    assert verdict("cat", "dog", 0.5) == ("cat (dog)\n50.0 %", WRONG)
    assert verdict("cat", "dog", math.nan) == ("cat (dog)\nno confidence", WRONG)


def test_right_and_wrong_have_the_colours_of_their_names():
    assert to_rgb(RIGHT)[1] == max(to_rgb(RIGHT))
    assert to_rgb(WRONG)[0] == max(to_rgb(WRONG))


def test_each_title_stands_under_its_picture_in_its_colour(tmp_path):
    truth, guess = torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2])
    confidence = torch.tensor([0.9, 0.8, math.nan], dtype=torch.float64)
    path = predictions_grid(
        WHITE, truth, guess, confidence, CLASSES, tmp_path / "p.png", heading="$5 or $6"
    )
    sheet = torch.from_numpy(imread(path))[..., :3]
    colors = [
        [
            bool(((part - torch.tensor(to_rgb(c))).abs() < 2e-3).all(-1).any())
            for c in (RIGHT, WRONG)
        ]
        for part in sheet.chunk(3, dim=1)
    ]
    assert colors == [[True, False], [False, True], [True, False]]


def test_a_training_batch_of_twenty_is_four_rows_of_five(tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(20) % 3
    path = training_grid(images, labels, CLASSES, tmp_path / "t.png", heading="a batch")
    dark = (torch.from_numpy(imread(path))[..., :3] == 0).all(-1)
    assert (dark.sum(0) >= 4 * 224).sum() == 5 * 224
    assert (dark.sum(1) >= 5 * 224).sum() == 4 * 224
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "one class number each"),
        ([0, 1, 3], "0 to 2, not 0 to 3"),
        ([0, 1, -1], "0 to 2, not -1 to 1"),
        ([0.0, 1.0, 1.0], "float32"),
    ],
)
def test_labels_that_name_no_class_are_refused(tmp_path, labels, message):
    good, bad, sure = torch.tensor([0, 1, 2]), torch.tensor(labels), torch.ones(3)
    path = tmp_path / "p.png"
    with pytest.raises(UsageError, match=message):
        training_grid(WHITE, bad, CLASSES, path, heading="")
    with pytest.raises(UsageError, match=message):
        predictions_grid(WHITE, good, bad, sure, CLASSES, path, heading="")
    with pytest.raises(UsageError, match=message):
        predictions_grid(WHITE, bad, good, sure, CLASSES, path, heading="")
    with pytest.raises(UsageError, match="2 confidences"):
        predictions_grid(WHITE, good, good, sure[:2], CLASSES, path, heading="")
    with pytest.raises(UsageError, match="N at least 1"):
        training_grid(WHITE[:0], good[:0], CLASSES, path, heading="")
    assert not list(tmp_path.iterdir())
