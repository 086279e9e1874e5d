"""A step fed with row numbers: images mirrored in every other epoch."""

import pytest
import torch
from torch import Tensor

from fcifar import models, optim, random, tree
from fcifar.compiling import compile_step
from fcifar.running import Feed, accumulate, alternate, on_feed, on_indices, start_running
from fcifar.step import Batch, init_train_state, make_train_step

SIZE = 12


@pytest.fixture
def data() -> Batch:
    """Images of which none is its own mirror image."""
    ramp = torch.arange(4).expand(SIZE, 1, 2, 4) + 10 * torch.arange(SIZE)[:, None, None, None]
    return Batch(ramp.to(torch.uint8), torch.arange(SIZE))


def seen(data: Batch, mirrored: Tensor, epoch: int, rows: Tensor) -> Tensor:
    """Whether each image comes mirrored."""
    fed = on_feed(lambda values: lambda state, batch: batch, data)
    images, labels = fed((), Feed(rows, alternate(mirrored, rows, epoch)))
    assert torch.equal(labels, data.labels[rows])
    assert images.dtype == data.images.dtype
    original = data.images[rows]
    flipped = (images == original.flip(-1)).flatten(1).all(1)
    assert torch.equal(flipped, (images != original).flatten(1).any(1)), "one or the other"
    return flipped


def test_two_epochs_in_succession_show_every_image_both_ways(data: Batch) -> None:
    mirrored = random.bernoulli(random.key(1), 0.5, (SIZE,))
    assert 0 < mirrored.sum() < SIZE
    rows = torch.arange(SIZE).flip(0)
    for epoch in range(4):
        flipped = seen(data, mirrored, epoch, rows)
        assert torch.equal(flipped, ~mirrored[rows] if epoch % 2 else mirrored[rows]), epoch


def test_an_image_is_mirrored_by_its_own_row_whatever_the_batch(data: Batch) -> None:
    mirrored = torch.arange(SIZE) % 3 == 0
    for rows in ([5], [3, 3, 4], [11, 0, 6, 2]):
        index = torch.tensor(rows)
        assert torch.equal(seen(data, mirrored, 0, index), mirrored[index])
        assert torch.equal(seen(data, mirrored, 1, index), ~mirrored[index])


def test_nothing_else_of_a_step_changes(make_batch) -> None:
    """As ``on_indices`` with the images mirrored beforehand."""
    model, optimizer, data = models.lenet(), optim.sgd(0.1, 0.9), make_batch(20)
    step = make_train_step(model, optimizer)
    mirrored = random.bernoulli(random.key(1), 0.5, (20,))
    twice = [
        Batch(torch.where(m[:, None, None, None], data.images.flip(-1), data.images), data.labels)
        for m in (mirrored, ~mirrored)
    ]
    fed = on_feed(lambda values: step, data)
    a = b = init_train_state(model, optimizer, key=random.key(0))
    for i in range(7):
        rows = (torch.arange(8) + 5 * i) % 20
        a, m = fed(a, Feed(rows, alternate(mirrored, rows, i // 3)))
        b, n = on_indices(step, twice[i // 3 % 2])(b, rows)
        assert tree.equal((a, m), (b, n))


def test_a_feed_without_flips_is_the_batch_of_its_rows(data: Batch) -> None:
    fed, rows = on_feed(lambda values: lambda state, batch: batch, data), torch.tensor([3, 0])
    plain = on_indices(lambda state, batch: batch, data)
    assert tree.equal(fed((), Feed(rows)), plain((), rows))


@pytest.mark.slow
def test_compiled_by_inductor_values_and_flips_change_without_another_compilation(
    make_batch,
) -> None:
    model, data = models.lenet(), make_batch(6)
    feed = accumulate(
        on_feed(lambda values: make_train_step(model, optim.sgd(values["learning_rate"])), data)
    )
    mirrored, rows = torch.arange(6) % 2 == 0, torch.arange(6)
    eager = start_running(init_train_state(model, optim.sgd(0.1), key=random.key(0)))
    compiled, fast = tree.map(torch.clone, eager), compile_step(feed)
    for i in range(5):
        values = {"learning_rate": torch.tensor(0.1 / (i + 1))}
        given = Feed(rows, alternate(mirrored, rows, i // 2), values)
        eager, _ = feed(eager, given)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            compiled, _ = fast(compiled, given)
    for a, b in zip(tree.leaves(compiled), tree.leaves(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert int(compiled.state.step) == 5
