"""Evaluation: every example exactly once, and what follows from it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.metrics import wilson_interval
from fcifar.models import Variables
from fcifar.step import Batch, EvalStep, Examples, on_indices


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


@torch.no_grad()
def evaluate(
    eval_step: EvalStep, variables: Variables, data: Batch, *, batch_size: int = 500
) -> Examples:
    """Loss, correctness and logits of every example of ``data``, in its order, on the CPU."""
    size = len(data.labels)
    step = on_indices(eval_step, data)
    parts = []
    for rows in padded_rows(size, min(batch_size, size), data.labels.device):
        examples = step(variables, rows.index)
        parts.append(tree.map(lambda x, keep=rows.weight > 0: x[keep], examples))
    return tree.map(lambda *xs: torch.cat(xs).cpu(), *parts)


def summarize(examples: Examples, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Accuracy, mean loss, 95 % interval and per-class counts, as values that JSON holds."""
    count, correct = len(labels), int(examples.correct.sum())
    per_class = {}
    for i, name in enumerate(classes):
        of_class = labels.cpu() == i
        total, right = int(of_class.sum()), int(examples.correct[of_class].sum())
        accuracy = right / total if total else None
        per_class[name] = {"correct": right, "total": total, "accuracy": accuracy}
    return {
        "accuracy": correct / count,
        "loss": examples.loss.double().mean().item(),
        "n": count,
        "interval95": list(wilson_interval(correct, count)),
        "per_class": per_class,
    }
