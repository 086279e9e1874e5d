"""A step as the loop runs it: fed with row numbers, adding up its metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import metrics, parallel, transforms, tree
from fcifar.metrics import Metrics
from fcifar.step import Batch, Shard, TrainState


def on_indices(step: Callable[[Any, Batch], Any], data: Batch) -> Callable[[Any, Tensor], Any]:
    """The same step, fed with row numbers (int64 [B]) of a data set that lies on the device.

    Compiled, the gather is part of the step: no image is touched outside it.

    >>> data = fcifar.Batch(torch.zeros(9, 3, 32, 32, dtype=torch.uint8), torch.arange(9))
    >>> step = fcifar.on_indices(lambda state, batch: (state + 1, batch.labels), data)
    >>> step(torch.tensor(0), torch.tensor([7, 2]))
    (tensor(1), tensor([7, 2]))
    """

    def step_on_indices(state: Any, rows: Tensor) -> Any:
        return step(state, Batch(data.images[rows], data.labels[rows]))

    return step_on_indices


class Feed(NamedTuple):
    """What the loop gives to one step. What a run does without is empty, and costs nothing."""

    rows: Tensor  # int64 [B], of the training images
    mirrored: Any = ()  # bool [B], the images to mirror before anything else
    values: Any = {}  # noqa: RUF012 - numbers of the recipe that are arguments: 0-d by name
    first: Any = ()  # of a shard: which row of the batch its first one is, int64 []


def shard(feed: Feed, rank: int, size: int) -> Feed:
    """What one of ``size`` ranks is fed with; all of it where there is one.

    Raises:
        ValueError: the rows cannot be divided into ``size`` equal parts.
    """
    if size == 1:
        return feed
    rows, mirrored = parallel.shard((feed.rows, feed.mirrored), rank, size)
    first = torch.tensor(rank * len(rows), device=rows.device)
    return feed._replace(rows=rows, mirrored=mirrored, first=first)


def on_feed(
    step_with: Callable[[dict[str, Tensor]], Callable[[Any, Any], Any]], data: Batch
) -> Callable[[Any, Feed], Any]:
    """As ``on_indices``, for a step that is made of numbers which come with each batch.

    Args:
        step_with: the step with those numbers in place of the recipe's.
        data: the data set, on the device.
    """

    def step_on_feed(state: Any, feed: Feed) -> Any:
        images = data.images[feed.rows]
        if isinstance(feed.mirrored, Tensor):
            images = transforms.mirror(images, feed.mirrored)
        labels = data.labels[feed.rows]
        is_part = isinstance(feed.first, Tensor)
        batch = Shard(images, labels, feed.first) if is_part else Batch(images, labels)
        return step_with(feed.values)(state, batch)

    return step_on_feed


def alternate(mirrored: Tensor, rows: Tensor, epoch: int) -> Tensor:
    """Which images of a batch to mirror, so that every image is mirrored in every other epoch.

    Images whose ``mirrored`` (bool, one for each row of the data) is true are mirrored in the
    epochs 0, 2, 4, ..., the others in 1, 3, 5, .... So any two epochs in succession show all images
    both ways, which flips at random do for half of them.

    Jordan, https://arxiv.org/abs/2404.00498, "alternating flip".

    Args:
        rows: int64 [B], those of the batch.

    Returns:
        bool [B].

    >>> mirrored, rows = torch.tensor([True, False, True]), torch.tensor([2, 1])
    >>> [fcifar.running.alternate(mirrored, rows, epoch).tolist() for epoch in (0, 1)]
    [[True, False], [False, True]]
    """
    return mirrored[rows] ^ (epoch % 2 == 1)


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
