"""Evaluation: every example exactly once, and what follows from it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fcifar import calibration, tree
from fcifar.errors import WorldError
from fcifar.metrics import wilson_interval
from fcifar.models import Variables
from fcifar.running import on_indices
from fcifar.runs import checkpoint
from fcifar.step import Batch, Examples

T = TypeVar("T")
LARGEST_MATRIX = 200  # classes; of more, a report would be mostly zeros
BATCH_SIZE = 500  # always the same, for results depend on it in the last bits


class Rows(NamedTuple):
    """Row numbers of a batch of full size, and which of them are not padding."""

    index: Tensor  # int64 [B]
    weight: Tensor  # float32 [B], 1 for an example and 0 for padding


def padded_rows(size: int, batch_size: int, device: torch.device) -> Iterator[Rows]:
    """All rows below ``size`` in order, in batches of one shape; the last is padded with row 0."""
    for start in range(0, size, batch_size):
        index = torch.arange(start, start + batch_size, device=device)
        real = index < size
        yield Rows(torch.where(real, index, 0), real.to(torch.float32))


def save_predictions(path: Path, examples: Examples, labels: Tensor) -> None:
    """Write what was made of each example: loss, correct, logits, labels, in the set's order."""
    checkpoint.save(path, {**examples._asdict(), "labels": labels}, {})


def read_predictions(path: Path) -> tuple[Examples, Tensor]:
    """What ``save_predictions`` wrote."""
    tensors, _ = checkpoint.read(path)
    try:
        return Examples(*(tensors[name] for name in Examples._fields)), tensors["labels"]
    except KeyError as error:
        raise WorldError(f"{path} does not hold predictions: {error} is missing") from error


@torch.no_grad()
def evaluate(
    eval_step: Callable[[Variables, Batch], T],
    variables: Variables,
    data: Batch,
    *,
    batch_size: int = BATCH_SIZE,
    rank: int = 0,
    size: int = 1,
) -> T:
    """What a step makes of every example of ``data``, in its order, on the CPU.

    Loss, correctness and logits for ``make_eval_step``; scores for ``make_score_step``.

    Args:
        rank, size: evaluate every ``size``-th batch from number ``rank`` on, and leave what belongs
            to the other examples zero.
    """
    count = len(data.labels)
    step = on_indices(eval_step, data)
    places, parts = [], []
    batches = list(padded_rows(count, batch_size, data.labels.device))
    for rows in batches[rank::size] or batches[:1]:
        keep = rows.weight > 0
        examples = step(variables, rows.index)
        parts.append(tree.map(lambda x, keep=keep: x[keep], examples))
        places.append(rows.index[keep])
    found = tree.map(lambda *xs: torch.cat(xs).cpu(), *parts)
    if size == 1:
        return found
    place = torch.cat(places).cpu()
    if rank >= len(batches):  # looked at one batch, for the shapes alone
        found = tree.zeros_like(found)
    return tree.map(lambda x: x.new_zeros(count, *x.shape[1:]).index_copy(0, place, x), found)


def of_views(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a test-time augmentation adds to those without."""
    return {f"tta_{name}": figures[name] for name in ("accuracy", "loss", "interval95")}


def summarize(examples: Examples, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Figures of an evaluation, as values that JSON holds.

    accuracy, loss (mean), n, interval95 (Wilson's, of the accuracy), per_class, confusion (counts,
    a row for each true class), mean_confidence, and ece (expected calibration error, 15 bins).
    With more than ``LARGEST_MATRIX`` classes, confusion_cells stands in place of confusion: true
    class, predicted class and count, where that is not 0.
    """
    labels = labels.cpu()
    count, correct = len(labels), int(examples.correct.sum())
    confidence, predictions = calibration.softmax_confidence(examples.logits)
    per_class = {}
    for i, name in enumerate(classes):
        of_class = labels == i
        total, right = int(of_class.sum()), int(examples.correct[of_class].sum())
        accuracy = right / total if total else None
        per_class[name] = {"correct": right, "total": total, "accuracy": accuracy}
    return {
        "accuracy": correct / count,
        "loss": examples.loss.double().mean().item(),
        "n": count,
        "interval95": list(wilson_interval(correct, count)),
        "per_class": per_class,
        **_confusion(calibration.confusion_matrix(labels, predictions, len(classes))),
        "mean_confidence": confidence.mean().item(),
        "ece": calibration.expected_calibration_error(
            calibration.reliability(confidence, examples.correct)
        ).item(),
    }


def _confusion(matrix: Tensor) -> dict[str, Any]:
    if len(matrix) <= LARGEST_MATRIX:
        return {"confusion": matrix.tolist()}
    cells = torch.nonzero(matrix)
    counts = matrix[cells[:, 0], cells[:, 1]]
    return {"confusion_cells": torch.cat([cells, counts[:, None]], 1).tolist()}
