"""Evaluation: every example exactly once, and what follows from it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from fcifar import tensor_files, tree
from fcifar.errors import ExternalError
from fcifar.models import Variables
from fcifar.parallel import ALONE, Axis
from fcifar.step import Batch, EvalOutput
from fcifar.step_transforms import on_indices

T = TypeVar("T")
BATCH_SIZE = 500  # always the same, for results depend on it in the last bits


def padded_rows(
    size: int, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows below ``size`` in order, in batches of one shape; the last is padded with row 0.

    Each is int64 [B], with what is not padding, bool [B].
    """
    for start in range(0, size, batch_size):
        rows = torch.arange(start, start + batch_size, device=device)
        yield torch.where(rows < size, rows, 0), rows < size


def save_predictions(path: Path, examples: EvalOutput, labels: Tensor) -> None:
    """Write what was made of each example: loss, correct, logits, labels, in the set's order."""
    tensor_files.save(path, {**examples._asdict(), "labels": labels}, {})


def read_predictions(path: Path) -> tuple[EvalOutput, Tensor]:
    """What ``save_predictions`` wrote."""
    tensors, _ = tensor_files.read(path)
    try:
        return EvalOutput(*(tensors[name] for name in EvalOutput._fields)), tensors["labels"]
    except KeyError as error:
        raise ExternalError(f"{path} does not hold predictions: {error} is missing") from error


@torch.no_grad()
def evaluate(
    eval_step: Callable[[Variables, Batch], T],
    variables: Variables,
    data: Batch,
    *,
    batch_size: int = BATCH_SIZE,
    axis: Axis = ALONE,
) -> T:
    """What a step makes of every example of ``data``, in its order, on the CPU.

    Loss, correctness and logits for ``make_eval_step``; scores for ``make_score_step``.

    Args:
        axis: the ranks that divide the batches; each must call this, and gets all examples.
    """
    count = len(data.labels)
    step = on_indices(eval_step, data)
    places, parts = [], []
    batches = list(padded_rows(count, batch_size, data.labels.device))
    for rows, keep in batches[axis.rank :: axis.size] or batches[:1]:
        examples = step(variables, rows)
        parts.append(tree.map(lambda x, keep=keep: x[keep], examples))
        places.append(rows[keep])
    found = tree.map(lambda *xs: torch.cat(xs).cpu(), *parts)
    if axis.size == 1:
        return found
    place = torch.cat(places).cpu()
    if axis.rank >= len(batches):  # evaluated one batch, for the shapes alone
        found = tree.zeros_like(found)
    # Zero for the examples of other ranks: the sum over the ranks has all of them.
    leaves, unflatten = tree.flatten(found)
    own = [x.new_zeros(count, *x.shape[1:]).index_copy(0, place, x) for x in leaves]
    return unflatten(axis.psum(own))
