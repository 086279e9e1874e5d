"""A step as the loop runs it: fed with row numbers, adding up its metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import metrics, transforms, tree
from fcifar.metrics import Metrics
from fcifar.step import Batch, TrainState


def on_indices(step: Callable[[Any, Batch], Any], data: Batch) -> Callable[[Any, Tensor], Any]:
    """The same step, fed with row numbers (int64 [B]) of a data set that lies on the device.

    Compiled, the gather is part of the step: no image is touched outside it.
    """

    def step_on_indices(state: Any, rows: Tensor) -> Any:
        return step(state, Batch(data.images[rows], data.labels[rows]))

    return step_on_indices


def on_alternating_indices(
    step: Callable[[TrainState, Batch], Any],
    data: Batch,
    mirrored: Tensor,
    steps_per_epoch: int,
) -> Callable[[TrainState, Tensor], Any]:
    """``on_indices``, with every image mirrored in every other epoch.

    Images whose ``mirrored`` (bool, one for each row of ``data``) is true are mirrored in the
    epochs 0, 2, 4, ..., the others in 1, 3, 5, .... So any two epochs in succession show all images
    both ways, which flips at random do for half of them.

    Jordan, https://arxiv.org/abs/2404.00498, "alternating flip".
    """

    def step_on_indices(state: TrainState, rows: Tensor) -> Any:
        odd = state.step // steps_per_epoch % 2 == 1
        images = transforms.mirror(data.images[rows], mirrored[rows] ^ odd)
        return step(state, Batch(images, data.labels[rows]))

    return step_on_indices


class Running(NamedTuple):
    """A state, and what is known of the steps since somebody last looked."""

    state: TrainState
    totals: Metrics  # of those steps
    nonfinite: Tensor  # int64 [], the first step of all whose loss was not finite; 0 for none


def start_running(state: TrainState) -> Running:
    """A state of which nobody knows anything yet, on the device of its key."""
    device = state.key.device
    return Running(
        state, metrics.zeros(device=device), torch.zeros((), dtype=torch.int64, device=device)
    )


def accumulate(
    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
) -> Callable[[Running, Any], tuple[Running, tuple[()]]]:
    """The same step, adding up its metrics: ``(running, batch) -> (running, ())``.

    There is nothing to look at after a step, hence nothing to wait for, until somebody reads the
    totals, or whether a loss was ever not finite. Steps are counted from 1.
    """

    def accumulating(running: Running, batch: Any) -> tuple[Running, tuple[()]]:
        state, latest = step(running.state, batch)
        fine = torch.logical_or(running.nonfinite > 0, latest.loss.isfinite())
        nonfinite = torch.where(fine, running.nonfinite, state.step)
        return Running(state, tree.add(running.totals, latest), nonfinite), ()

    return accumulating
