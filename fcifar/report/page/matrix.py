"""The confusion matrix as inline SVG: what is right is blue, what is wrong is orange."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fcifar.report.confusion import row_shares
from fcifar.report.figures import cut
from fcifar.report.page.charts import drawing
from fcifar.report.page.html import Html, join, tag

COUNTED = 30  # with more classes than this the cells are too small for numbers
NAME = 14  # letters of a class that are shown
LIGHT = 0.65  # from this share on, a number on the diagonal is light
LETTER = 6.6  # the width of one


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Html:
    """Draw a confusion matrix.

    As in ``confusion_picture``, each cell is coloured by its share of the row: on the diagonal up
    to the full colour at 1, beside it up to the full colour at the largest share there is.

    Args:
        counts: C rows of C; row i and column j count the examples of class i predicted as j.
        classes: C names.
        title: what a reader who cannot see it is told.
    """
    matrix = torch.tensor(counts, dtype=torch.int64)
    n = len(classes)
    cell = 36.0 if n <= 12 else 26.0 if n <= COUNTED else 11.0
    names = [cut(name, NAME) for name in classes]
    longest = LETTER * max(map(len, names)) + 14
    side = n * cell
    parts = [
        _cell(matrix, strength, i, j, longest, cell, classes)
        for strength in [strengths(matrix)]
        for i in range(n)
        for j in range(n)
        if matrix[i, j]
    ]
    parts.append(tag("rect", x=longest, y=1, width=side, height=side, class_="frame"))
    type_size = "small" if n > COUNTED else None
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        parts.append(
            tag(
                "text",
                name,
                x=longest - 8,
                y=1 + middle,
                class_=_words("axis end middle", type_size),
            )
        )
        x, y = longest + middle, side + 12
        parts.append(
            tag(
                "text",
                name,
                x=x,
                y=y,
                transform=f"rotate(-45 {x:g} {y:g})",
                class_=_words("axis end middle", type_size),
            )
        )
    width, height = longest + side + 2, side + 0.75 * longest + 14
    svg = drawing([join(parts)], width, height, title)
    return tag("div", svg, class_="matrix", style=f"--wide:{width:.0f}px")


def strengths(matrix: Tensor) -> Tensor:
    """How strong the colour of each cell is: float64 [C, C] in [0, 1].

    Args:
        matrix: int64 [C, C].
    """
    shares = row_shares(matrix)
    off = shares.clone().fill_diagonal_(0.0)
    wrong = 0.08 + 0.72 * off / off.max().clamp(min=1e-12)
    diagonal = torch.eye(len(matrix), dtype=torch.bool)
    return torch.where(diagonal, shares, torch.where(off > 0, wrong, 0.0))


def worst(counts: Sequence[Sequence[int]], classes: Sequence[str], number: int) -> list[str]:
    """The most frequent mistakes in words, such as ``cat as dog (120)``."""
    found = [
        (count, true, said)
        for true, row in zip(classes, counts, strict=True)
        for said, count in zip(classes, row, strict=True)
        if true != said and count
    ]
    ranked = sorted(found, key=lambda each: -each[0])[:number]
    return [f"{true} as {said} ({count:,})" for count, true, said in ranked]


def _cell(
    matrix: Tensor,
    strength: Tensor,
    i: int,
    j: int,
    left: float,
    cell: float,
    classes: Sequence[str],
) -> Html:
    count, share = int(matrix[i, j]), float(strength[i, j])
    x, y = left + j * cell, 1 + i * cell
    about = f"{classes[i]} taken for {classes[j]}: {count:,} of {int(matrix[i].sum()):,}"
    box = tag(
        "rect",
        tag("title", about),
        x=f"{x + 0.5:g}",
        y=f"{y + 0.5:g}",
        width=cell - 1,
        height=cell - 1,
        rx=2,
        class_="right" if i == j else "wrong",
        fill_opacity=f"{share:.2f}",
    )
    if len(classes) > COUNTED:
        return box
    size = "count" if cell > 30 and count < 10_000 else "count tiny"
    text = f"{count:,}" if count < 1e5 else f"{count:.0e}"
    words = _words(size, "light" if i == j and share > LIGHT else None)
    return join([box, tag("text", text, x=x + cell / 2, y=y + cell / 2, class_=words)])


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)
