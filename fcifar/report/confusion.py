"""The confusion matrix as a figure: what is taken for what."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.errors import UsageError
from fcifar.report.figures import INK, SOFT, cut, ink_on, save, titled, with_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTED = 30  # with more classes than this the cells are too small for numbers
NAMED = 100  # with more classes than this only some are drawn
LONGEST_NAME = 16  # letters


@with_fonts
def confusion_picture(matrix: Tensor, classes: Sequence[str], path: Path, *, title: str) -> Path:
    """Draw a confusion matrix with the count in each cell.

    What was right is blue, what was wrong is orange. Each is coloured by its share of the row, in
    a scale of its own, so that the confusions show beside a diagonal that holds nearly everything.
    Of more than ``NAMED`` classes, the ``COUNTED`` that are most often confused are drawn, with
    shares and rates of the whole.

    Args:
        matrix: int64 [C, C]; row i and column j count the examples of class i predicted as j.
        classes: C names.
        path: the PNG file, written whole or not at all.
        title: what was evaluated.

    Returns:
        ``path``.
    """
    n = len(classes)
    if matrix.shape != (n, n) or n == 0 or matrix.is_floating_point() or (matrix < 0).any():
        raise UsageError(
            f"a confusion matrix of {n} classes is {n} x {n} counts, not {matrix.dtype} "
            f"{[*matrix.shape]}"
        )
    matrix = matrix.cpu()
    summary, rates, shares = _summary(matrix), _rates(matrix), row_shares(matrix)
    if n > NAMED:
        chosen = most_confused(matrix, COUNTED)
        summary += f"  Shown: {COUNTED} of {n:,} classes, those most often confused."
        matrix, shares = (values[chosen][:, chosen] for values in (matrix, shares))
        rates, classes = ([values[i] for i in chosen.tolist()] for values in (rates, classes))
        n = COUNTED
    cell = 0.62 if n <= COUNTED else 0.2
    side, left, right, above, below = n * cell, 1.6, 0.75, 0.95, 1.55
    width, height = max(left + side + right, 6.6), above + side + below
    figure = titled(width, height, title, summary)
    axes = figure.add_axes((left / width, below / height, side / width, side / height))
    colors = cell_colors(shares)
    axes.imshow(colors.numpy(), interpolation="nearest")
    if n <= COUNTED:
        _write_counts(axes, matrix, colors)
        _write_rates(axes, rates)
    _name_classes(axes, classes, size=10 if n <= COUNTED else 5)
    return save(figure, path)


def row_shares(matrix: Tensor) -> Tensor:
    """Each count as a share of its row: float64 [C, C] in [0, 1], zeros where a row is empty."""
    return matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)


def most_confused(matrix: Tensor, count: int) -> Tensor:
    """The classes of the most frequent confusions: at most ``count`` numbers, int64, ascending.

    Pairs join in the order of their counts, for as long as there is room for both.
    """
    cells = torch.nonzero(matrix * (1 - torch.eye(len(matrix), dtype=matrix.dtype)))
    order = torch.argsort(matrix[cells[:, 0], cells[:, 1]], descending=True, stable=True)
    chosen: set[int] = set()
    for pair in cells[order].tolist():
        if len(chosen | set(pair)) <= count:
            chosen |= set(pair)
        if len(chosen) == count:
            break
    # Where next to nothing is confused, the first classes fill up the room.
    rest = (i for i in range(len(matrix)) if i not in chosen)
    chosen |= {i for i, _ in zip(rest, range(count - len(chosen)), strict=False)}
    return torch.tensor(sorted(chosen), dtype=torch.int64)


def cell_colors(shares: Tensor) -> Tensor:
    """The colour of each cell.

    Args:
        shares: [C, C] in [0, 1].

    Returns:
        float64 [C, C, 3], red, green and blue in [0, 1]: white for nothing; up to the darkest blue
        for 1 on the diagonal, up to the darkest orange for the largest share off it.
    """
    from matplotlib import colormaps

    diagonal = torch.eye(len(shares), dtype=torch.bool)
    off = shares.masked_fill(diagonal, 0.0)
    # Not from end to end of the maps: white is for nothing, and the darkest end has lost its hue.
    wrong = 0.06 + 0.7 * off / off.max().clamp(min=1e-12)
    right = colormaps["Blues"]((0.85 * shares).numpy())
    mixed = torch.where(
        diagonal[..., None],
        torch.from_numpy(right),
        torch.from_numpy(colormaps["Oranges"](wrong.numpy())),
    )
    return torch.where((shares > 0)[..., None], mixed, 1.0)[..., :3]


def _summary(matrix: Tensor) -> str:
    total, right = int(matrix.sum()), int(matrix.diagonal().sum())
    if not total:
        return "no examples"
    off = row_shares(matrix).fill_diagonal_(0.0)
    return (
        f"{right:,} of {total:,} right ({100 * right / total:.1f} %).  Blue: right.  "
        f"Orange: wrong; the darkest is {100 * off.max().item():.1f} % of its row."
    )


def _write_counts(axes: "Axes", matrix: Tensor, colors: Tensor) -> None:
    for i, row in enumerate(matrix.tolist()):
        for j, count in enumerate(row):
            axes.text(
                j,
                i,
                f"{count:,}" if count < 1e5 else f"{count:.0e}",
                ha="center",
                va="center",
                size=10 if count < 1e4 else 8,
                weight="bold" if i == j else "normal",
                color=ink_on(colors[i, j].tolist()) if count else "#bbbbbb",
            )


def _rates(matrix: Tensor) -> list[tuple[str, str]]:
    """Recall and precision of each class."""
    return [
        (_percent(hits, of_row), _percent(hits, of_column))
        for hits, of_row, of_column in zip(
            matrix.diagonal().tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist(), strict=True
        )
    ]


def _write_rates(axes: "Axes", rates: Sequence[tuple[str, str]]) -> None:
    """Recall at the right of each row, precision below each column."""
    n = len(rates)
    for i, (recall, precision) in enumerate(rates):
        axes.text(n - 0.4, i, recall, va="center", size=9, color=SOFT)
        axes.text(i, n - 0.25, precision, ha="center", va="center", size=9, color=SOFT)
    axes.text(n - 0.4, -0.75, "recall", va="center", size=9, color=SOFT)
    axes.text(-0.6, n - 0.25, "precision", ha="right", va="center", size=9, color=SOFT)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _name_classes(axes: "Axes", classes: Sequence[str], size: float) -> None:
    names = [cut(name, LONGEST_NAME) for name in classes]
    places = range(len(names))
    axes.set_yticks(places, names, size=size, parse_math=False)
    axes.set_xticks(
        places, names, size=size, rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.tick_params(axis="x", length=0, pad=20 if len(names) <= COUNTED else 3, labelcolor=INK)
    axes.tick_params(axis="y", length=0, pad=6, labelcolor=INK)
    axes.set_ylabel("true class", size=11, color=INK)
    axes.set_xlabel("predicted class", size=11, color=INK)
    axes.spines[:].set_visible(False)
    edges = [place - 0.5 for place in places][1:]
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
