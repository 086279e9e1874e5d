"""The confusion matrix: colours, names of any length, many classes."""

import pytest
import torch
from matplotlib.colors import to_rgb

from fcifar.errors import UsageError
from fcifar.report.figures import confusion
from fcifar.report.figures.canvas import BLUE, VERMILION, save
from fcifar.report.figures.confusion import COUNTED, most_confused, opacity, row_shares

NAMES = tuple(f"class {i}" for i in range(10))
GOOD = torch.full((10, 10), 5, dtype=torch.int64) + 945 * torch.eye(10, dtype=torch.int64)


def cells(figure) -> dict[tuple[int, int], tuple[float, ...]]:
    """The colour of each drawn cell, red, green, blue and opacity, by row and column."""
    (collection,) = figure.axes[0].collections
    corners = (path.vertices[0] for path in collection.get_paths())
    colors = map(tuple, collection.get_facecolors())
    return {
        (round(y + 0.48), round(x + 0.48)): c for (x, y), c in zip(corners, colors, strict=True)
    }


def test_a_row_without_examples_has_no_share():
    matrix = torch.tensor([[3, 1], [0, 0]])
    assert row_shares(matrix).tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_the_largest_error_is_visible_and_the_diagonal_is_its_share():
    found = opacity(torch.tensor([[90, 10, 0], [1, 99, 0], [0, 0, 0]]))
    assert found.diagonal().tolist() == [0.9, 0.99, 0.0]
    assert found[0, 1] == pytest.approx(0.8)
    assert 0.05 < found[1, 0] < found[0, 1] - 0.3
    assert found[0, 2] == found[2, 0] == 0


def test_right_is_blue_wrong_is_orange_and_zero_is_not_drawn():
    drawn = cells(confusion.draw(torch.tensor([[9, 1, 0], [0, 5, 0], [0, 2, 0]]), NAMES[:3]))
    assert set(drawn) == {(0, 0), (0, 1), (1, 1), (2, 1)}
    for (i, j), color in drawn.items():
        assert color[:3] == pytest.approx(to_rgb(BLUE if i == j else VERMILION)), (i, j)
    assert drawn[0, 0][3] == pytest.approx(0.9)


def test_counts_recalls_and_precisions_are_written():
    axes = confusion.draw(torch.tensor([[3, 1], [2, 2]]), ("cat", "dog")).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        *("3", "1", "2", "2"),
        *("75.0 %", "60.0 %", "50.0 %", "66.7 %", "recall", "precision"),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


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
def test_a_matrix_of_any_counts_is_drawn(tmp_path, matrix, names):
    figure = confusion.draw(matrix, names, title="costs $5 and $6")
    path = save(figure, tmp_path / "new" / "m.png")
    width, height = figure.get_size_inches()
    assert 4 < width < 12
    assert 4 < height < 12
    assert list(path.parent.iterdir()) == [path]


def test_of_many_classes_the_most_confused_are_drawn():
    matrix = torch.eye(500, dtype=torch.int64) * 10
    matrix[7, 300], matrix[300, 7], matrix[450, 2] = 9, 8, 7
    assert most_confused(matrix, 4).tolist() == [2, 7, 300, 450]
    assert most_confused(matrix, 3).tolist() == [0, 7, 300], "a pair is complete, or left out"
    assert most_confused(torch.eye(500, dtype=torch.int64), 3).tolist() == [0, 1, 2]
    figure = confusion.draw(matrix, [f"class {i}" for i in range(500)], title="many")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == COUNTED
    assert {"class 2", "class 7", "class 300", "class 450"} <= set(labels)
    assert max(figure.get_size_inches()) < 20


def test_what_is_not_a_confusion_matrix_is_refused():
    for matrix in (GOOD[:9], GOOD.float(), -GOOD, GOOD[0]):
        with pytest.raises(UsageError, match="10 x 10 counts"):
            confusion.draw(matrix, NAMES)
