"""The confusion matrix drawn: colours that tell, names of any length, whole files."""

from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from fcifar.errors import ExternalError, UsageError
from fcifar.report import confusion_picture
from fcifar.report.confusion import cell_colors, row_shares
from fcifar.report.figures import ink_on

NAMES = tuple(f"class {i}" for i in range(10))
GOOD = torch.full((10, 10), 5, dtype=torch.int64) + 945 * torch.eye(10, dtype=torch.int64)


def test_a_row_without_examples_has_no_share():
    matrix = torch.tensor([[3, 1], [0, 0]])
    assert row_shares(matrix).tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_right_is_blue_wrong_is_orange_and_nothing_is_white():
    colors = cell_colors(torch.tensor([[0.9, 0.1, 0.0], [0.01, 0.99, 0.0], [0.0, 0.0, 0.0]]))
    red, _, blue = colors.unbind(-1)
    assert (blue > red).nonzero().tolist() == [[0, 0], [1, 1]]
    assert (red > blue).nonzero().tolist() == [[0, 1], [1, 0]]
    assert (colors[2] == 1).all()
    assert (colors[:, 2] == 1).all()


def test_a_rare_confusion_shows_and_a_less_rare_one_more():
    colors = cell_colors(row_shares(GOOD + 5 * torch.eye(10, dtype=torch.int64).roll(1, 0)))
    rare, less_rare = colors[0, 1].sum(), colors[1, 0].sum()
    assert less_rare < rare - 0.3
    assert rare < 3 - 0.1


def test_ink_has_the_better_contrast():
    assert ink_on((0.0, 0.0, 0.0)) == ink_on((0.0, 0.0, 1.0)) == "white"
    assert ink_on((1.0, 1.0, 1.0)) == ink_on((1.0, 1.0, 0.0)) == "black"
    assert ink_on((117 / 255,) * 3) == "white"  # the border lies between these two greys
    assert ink_on((118 / 255,) * 3) == "black"


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        (GOOD, NAMES),
        (torch.zeros(10, 10, dtype=torch.int64), NAMES),
        (GOOD * 100_000, ("an endless name with $ and $ in it " * 5,) * 10),
        (torch.tensor([[7]]), ("only",)),
        (torch.eye(40, dtype=torch.int64), [str(i) for i in range(40)]),
    ],
    ids=["usual", "empty", "long names, large counts", "one class", "forty classes"],
)
def test_a_matrix_of_whatever_came_out(tmp_path, matrix, names):
    path = confusion_picture(matrix, names, tmp_path / "new" / "m.png", title="costs $5 and $6")
    height, width, _ = imread(path).shape
    assert 1000 < width < 2000
    assert 400 < height < 2000
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_confusion_matrix_is_refused(tmp_path):
    path = tmp_path / "m.png"
    for matrix in (GOOD[:9], GOOD.float(), -GOOD, GOOD[0]):
        with pytest.raises(UsageError, match="10 x 10 counts"):
            confusion_picture(matrix, NAMES, path, title="")
    assert not path.exists()


def test_a_disk_that_refuses_leaves_the_old_picture(tmp_path, monkeypatch):
    path = confusion_picture(GOOD, NAMES, tmp_path / "m.png", title="old")
    old = path.read_bytes()

    def half_written(self: object, file: Path, **_: object) -> None:
        file.write_bytes(old[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half_written)
    with pytest.raises(ExternalError, match="No space left"):
        confusion_picture(GOOD, NAMES, path, title="new")
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
