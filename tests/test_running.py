"""A step fed with row numbers: images mirrored in every other epoch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import models, optim, random, tree
from fcifar.compiling import compile_step
from fcifar.running import accumulate, on_alternating_indices, on_indices, start_running
from fcifar.step import Batch, TrainState, init_train_state, make_train_step

SIZE = 12


@pytest.fixture
def data() -> Batch:
    """Images of which none is its own mirror image."""
    ramp = torch.arange(4).expand(SIZE, 1, 2, 4) + 10 * torch.arange(SIZE)[:, None, None, None]
    return Batch(ramp.to(torch.uint8), torch.arange(SIZE))


def at(step: int) -> TrainState:
    empty: Any = ()
    return TrainState(torch.tensor(step), empty, empty, random.key(0))


def seen(data: Batch, mirrored: Tensor, steps_per_epoch: int, step: int, rows: Tensor) -> Tensor:
    """Whether each image comes mirrored."""
    fed = on_alternating_indices(lambda state, batch: batch, data, mirrored, steps_per_epoch)
    images, labels = fed(at(step), rows)
    assert torch.equal(labels, data.labels[rows])
    assert images.dtype == data.images.dtype
    original = data.images[rows]
    flipped = (images == original.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped, (images != original).flatten(1).any(1)), "one or the other"
    return flipped


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 4, 7])
def test_two_epochs_in_succession_show_every_image_both_ways(
    data: Batch, steps_per_epoch: int
) -> None:
    mirrored = random.bernoulli(random.key(1), 0.5, (SIZE,))
    assert 0 < mirrored.sum() < SIZE
    rows = torch.arange(SIZE).flip(0)
    for epoch in range(4):
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            flipped = seen(data, mirrored, steps_per_epoch, step, rows)
            assert torch.equal(flipped, mirrored[rows] ^ (epoch % 2 == 1)), step


def test_an_image_is_mirrored_by_its_own_row_whatever_the_batch(data: Batch) -> None:
    mirrored = torch.arange(SIZE) % 3 == 0
    for rows in ([5], [3, 3, 4], [11, 0, 6, 2]):
        index = torch.tensor(rows)
        assert torch.equal(seen(data, mirrored, 5, 0, index), mirrored[index])
        assert torch.equal(seen(data, mirrored, 5, 5, index), ~mirrored[index])


def test_nothing_else_of_a_step_changes(make_batch) -> None:
    """As ``on_indices`` with the images mirrored beforehand."""
    model, optimizer, data = models.lenet(), optim.sgd(0.1, 0.9), make_batch(20)
    step = make_train_step(model, optimizer)
    mirrored = random.bernoulli(random.key(1), 0.5, (20,))
    twice = [
        Batch(torch.where(m[:, None, None, None], data.images.flip(-1), data.images), data.labels)
        for m in (mirrored, ~mirrored)
    ]
    fed = on_alternating_indices(step, data, mirrored, 3)
    a = b = init_train_state(model, optimizer, key=random.key(0))
    for i in range(7):
        rows = (torch.arange(8) + 5 * i) % 20
        a, m = fed(a, rows)
        b, n = on_indices(step, twice[i // 3 % 2])(b, rows)
        assert tree.equal((a, m), (b, n))


def test_compiled_it_is_the_same_and_compiled_once(make_batch) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    data, mirrored = make_batch(SIZE), torch.arange(SIZE) % 2 == 0
    fed = on_alternating_indices(lambda state, batch: batch, data, mirrored, 3)
    compiled = torch.compile(fed, backend=counting, fullgraph=True)
    rows = torch.tensor([7, 0, 3])
    for step in range(8):
        assert tree.equal(compiled(at(step), rows), fed(at(step), rows))
    assert len(graphs) == 1


def test_compiled_by_inductor_it_changes_at_the_right_step(make_batch) -> None:
    """The step that counts is in the state, which the compiled step overwrites."""
    model, optimizer, data = models.lenet(), optim.sgd(0.1), make_batch(6)
    step = make_train_step(model, optimizer)
    feed = accumulate(on_alternating_indices(step, data, torch.arange(6) % 2 == 0, 2))
    eager = start_running(init_train_state(model, optimizer, key=random.key(0)))
    compiled, fast = tree.map(torch.clone, eager), compile_step(feed)
    rows = torch.arange(6)
    for _ in range(5):
        eager, _ = feed(eager, rows)
        compiled, _ = fast(compiled, rows)
    for a, b in zip(tree.leaves(compiled), tree.leaves(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert int(compiled.state.step) == 5
