"""Evaluation of every example exactly once, and the predictions file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fcifar import tensor_files, tree
from fcifar.augment.tta import Views
from fcifar.errors import ExternalError
from fcifar.models import Variables
from fcifar.parallel import ALONE, Axis
from fcifar.step import Batch, EvalOutput

T = TypeVar("T")
BATCH_SIZE = 500  # constant, because it changes results by rounding


def batch_size_of(views: Views, device: str | torch.device) -> int:
    """Return the number of images that are evaluated at a time: 500, and on the CPU 500 views.

    There a quarter of the time is saved by what stays in the caches; a GPU is faster with more.
    """
    on_cpu = torch.device(device).type == "cpu"
    return -(-BATCH_SIZE // len(views.weights)) if on_cpu else BATCH_SIZE


def padded_rows(size: int, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """Yield the rows below ``size`` in batches of one shape, the last one padded with row 0.

    Each batch is the rows, int64 [B], and how many of them, from the first, are not padding.
    """
    for start in range(0, size, batch_size):
        rows = torch.arange(start, start + batch_size, device=device)
        count = min(batch_size, size - start)
        yield (rows if count == batch_size else torch.where(rows < size, rows, 0)), count


def save_predictions(path: Path, examples: EvalOutput, labels: Tensor) -> None:
    """Write loss, correctness, logits and label of each example, in the data set's order."""
    tensor_files.save(path, {**examples._asdict(), "labels": labels}, {})


def read_predictions(path: Path) -> tuple[EvalOutput, Tensor]:
    """Read what ``save_predictions`` wrote."""
    tensors, _ = tensor_files.read(path)
    try:
        return EvalOutput(*(tensors[name] for name in EvalOutput._fields)), tensors["labels"]
    except KeyError as error:
        raise ExternalError(f"{path} does not hold predictions: {error} is missing") from error


def _take(data: Batch, rows: Tensor) -> Batch:
    """Return rows of a data set, with the layout that is fastest for convolutions on the CPU."""
    images = data.images[rows]
    if images.is_cpu and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, data.labels[rows])


@torch.no_grad()
def evaluate(
    eval_step: Callable[[Variables, Batch], T],
    variables: Variables,
    data: Batch,
    *,
    batch_size: int = BATCH_SIZE,
    axis: Axis = ALONE,
) -> T:
    """Apply a per-example step to every example of ``data``; return the results on the CPU.

    Args:
        eval_step: from ``make_eval_step`` or ``make_score_step``.
        axis: the ranks that divide the batches; each must call this, and gets all results.
    """
    count = len(data.labels)
    parts = []
    batches = list(padded_rows(count, batch_size, data.labels.device))
    for rows, kept in batches[axis.rank :: axis.size] or batches[:1]:
        examples = eval_step(variables, _take(data, rows))
        parts.append(tree.map(lambda x, kept=kept: x[:kept], examples))
    results = tree.on_device(tree.map(lambda *xs: torch.cat(xs), *parts), "cpu")
    if axis.size == 1:
        return results
    own_rows = torch.arange(count).split(batch_size)[axis.rank :: axis.size]
    if not own_rows:  # one batch was evaluated only for the shapes
        own_rows, results = (torch.arange(0),), tree.map(lambda x: x[:0], results)
    # Zero for the examples of other ranks, so that the sum over the ranks has all of them.
    leaves, unflatten = tree.flatten(results)
    index = torch.cat(own_rows)
    own = [x.new_zeros(count, *x.shape[1:]).index_copy(0, index, x) for x in leaves]
    return unflatten(axis.psum(own))
