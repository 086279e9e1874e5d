"""The confusion matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures.canvas import (
    BLUE,
    FAINT,
    INK,
    ON_DARK,
    SOFT,
    VERMILION,
    label_axes,
    new_figure,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTED = 30  # with more classes the cells are too small for numbers
NAMED = 100  # with more classes only some are drawn
_LONGEST_NAME = 16  # characters
_DARK = 0.85  # from this opacity on, the text of a blue cell is light


def draw(matrix: Tensor, classes: Sequence[str], *, title: str = "") -> "Figure":
    """Draw a confusion matrix with the count in each cell, recalls and precisions.

    Correct predictions are blue, errors are orange. The opacity of a cell is its share of the row,
    on a separate scale for the errors, so that they are visible beside a diagonal that holds nearly
    all. Of more than ``NAMED`` classes, the ``COUNTED`` that are most often confused are drawn,
    with shares and rates of the whole matrix.

    Args:
        matrix: int64 [C, C]; row i and column j count the examples of class i predicted as j.
        classes: C names.
        title: above the matrix.
    """
    n = len(classes)
    if matrix.shape != (n, n) or n == 0 or matrix.is_floating_point() or (matrix < 0).any():
        raise UsageError(
            f"a confusion matrix of {n} classes is {n} x {n} counts, not {matrix.dtype} "
            f"{[*matrix.shape]}"
        )
    matrix = matrix.cpu()
    summary, rates, alphas = _summary(matrix), _rates(matrix), opacity(matrix)
    if n > NAMED:
        chosen = most_confused(matrix, COUNTED)
        summary += f"  Shown: {COUNTED} of {n:,} classes, those most often confused."
        matrix, alphas = (values[chosen][:, chosen] for values in (matrix, alphas))
        rates, classes = ([values[i] for i in chosen.tolist()] for values in (rates, classes))
        n = COUNTED
    cell = 0.5 if n <= 12 else 0.4 if n <= COUNTED else 0.15
    side = cell * max(n, 6)
    figure = new_figure(side + 2.1, side + 1.9, title, summary if title else "")
    axes = figure.add_subplot(aspect="equal")
    _draw_cells(axes, matrix, alphas, size=9.5 if cell == 0.5 else 7.5)
    if n <= COUNTED:
        _write_rates(axes, rates)
    _name_classes(axes, classes)
    return figure


def row_shares(matrix: Tensor) -> Tensor:
    """Return each count as a share of its row: float64 [C, C] in [0, 1], zero in an empty row."""
    return matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)


def opacity(matrix: Tensor) -> Tensor:
    """Return the opacity of each cell, float64 [C, C] in [0, 1]: 0 for a count of 0."""
    shares = row_shares(matrix)
    off = shares.clone().fill_diagonal_(0.0)
    wrong = torch.where(off > 0, 0.08 + 0.72 * off / off.max().clamp(min=1e-12), 0.0)
    return torch.where(torch.eye(len(matrix), dtype=torch.bool), shares, wrong)


def most_confused(matrix: Tensor, count: int) -> Tensor:
    """Return the classes of the most frequent confusions: at most ``count`` indices, ascending.

    Pairs of classes are added by descending count, while there is room for both.
    """
    cells = torch.nonzero(matrix * (1 - torch.eye(len(matrix), dtype=matrix.dtype)))
    order = torch.argsort(matrix[cells[:, 0], cells[:, 1]], descending=True, stable=True)
    chosen: set[int] = set()
    for pair in cells[order].tolist():
        if len(chosen | set(pair)) <= count:
            chosen |= set(pair)
        if len(chosen) == count:
            break
    # If few classes are confused, the first ones fill the rest.
    rest = (i for i in range(len(matrix)) if i not in chosen)
    chosen |= {i for i, _ in zip(rest, range(count - len(chosen)), strict=False)}
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def _summary(matrix: Tensor) -> str:
    total, right = int(matrix.sum()), int(matrix.diagonal().sum())
    if not total:
        return "no examples"
    off = row_shares(matrix).fill_diagonal_(0.0)
    return (
        f"Confusion matrix: {right:,} of {total:,} right ({100 * right / total:.1f} %, blue).  "
        f"Orange: wrong, at most {100 * off.max().item():.1f} % of a row."
    )


def _rates(matrix: Tensor) -> list[tuple[str, str]]:
    """Recall and precision of each class."""

    def percent(part: int, whole: int) -> str:
        return f"{100 * part / whole:.1f} %" if whole else "-"

    parts = (matrix.diagonal(), matrix.sum(1), matrix.sum(0))
    return [
        (percent(hits, of_row), percent(hits, of_column))
        for hits, of_row, of_column in zip(*(part.tolist() for part in parts), strict=True)
    ]


def _draw_cells(axes: "Axes", matrix: Tensor, alphas: Tensor, size: float) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    n, cells = len(matrix), torch.nonzero(matrix).tolist()
    boxes = [Rectangle((j - 0.48, i - 0.48), 0.96, 0.96) for i, j in cells]
    colors = [to_rgba(BLUE if i == j else VERMILION, float(alphas[i, j])) for i, j in cells]
    axes.add_collection(PatchCollection(boxes, facecolors=colors, linewidths=0))
    if n > COUNTED:
        return
    for i, j in cells:
        count = int(matrix[i, j])
        axes.text(
            *(j, i, f"{count:,}" if count < 1e5 else f"{count:.0e}"),
            ha="center",
            va="center",
            size=size if count < 1e4 else 0.75 * size,
            weight="bold" if i == j else "normal",
            color=ON_DARK if i == j and alphas[i, j] > _DARK else INK,
        )


def _write_rates(axes: "Axes", rates: Sequence[tuple[str, str]]) -> None:
    """Recall at the right of each row, precision above each column."""
    n = len(rates)
    for i, (recall, precision) in enumerate(rates):
        axes.text(n - 0.35, i, recall, va="center", size=8, color=SOFT)
        axes.text(i, -0.75, precision, ha="center", va="center", size=7.5, color=SOFT)
    axes.text(n - 0.35, -0.75, "recall", va="center", size=8, color=SOFT)
    axes.text(-0.6, -0.75, "precision", ha="right", va="center", size=8, color=SOFT)


def _name_classes(axes: "Axes", classes: Sequence[str]) -> None:
    n = len(classes)
    names = [shorten(name, _LONGEST_NAME) for name in classes]
    size = 9.5 if n <= COUNTED else 4.5
    axes.set_yticks(range(n), names, size=size, parse_math=False)
    axes.set_xticks(
        range(n),
        names,
        size=size,
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), facecolor="none")
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_color(FAINT)
    label_axes(axes, "predicted class", "true class")
