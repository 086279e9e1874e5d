"""Gradients of a step: in micro-batches, against the whole batch; SAM, against plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from fcifar import augment, grads, models, optim, parallel, random, tree
from fcifar.grads import Gradient, accumulated, sam
from fcifar.models import Model, Variables
from fcifar.models.lenet import _LeNet
from fcifar.parallel import ALONE, Axis
from fcifar.precision import FP64
from fcifar.step import Batch, Shard, TrainState, init_train_state, make_train_step
from fcifar.step_transforms import map_replicas, stack, take
from tests.helpers.ranks import together
from tests.helpers.small import make_model

OPTIMIZER = optim.sgd(0.1, momentum=0.9)
REDUCTIONS = (torch.mean, torch.sum)
AUGMENT = augment.chain(augment.random_flip(), augment.random_crop(4))
DROPPING: dict[str, Callable[[], Model]] = {
    "lenet": lambda: models.lenet(dropout=0.3),
    "conv3": lambda: models.conv3(dropout=0.5),
}


def start(model: Model, seed: int = 0) -> TrainState:
    return init_train_state(model, OPTIMIZER, key=random.key(seed), policy=FP64)


def step_of(model: Model, gradient: Gradient, **options: Any) -> Any:
    return make_train_step(model, OPTIMIZER, policy=FP64, gradient=gradient, **options)


def moved(after: TrainState, before: TrainState) -> dict[str, Tensor]:
    """The gradient that the first step from a state descended."""
    a, b = after.variables.params, before.variables.params
    return tree.map(lambda x, y: (y - x) / 0.1, a, b)


def assert_close(found: Any, expected: Any) -> None:
    assert tree.structure(found) == tree.structure(expected)
    torch.testing.assert_close(
        tree.named_leaves(found), tree.named_leaves(expected), rtol=1e-10, atol=1e-13
    )


# Micro-batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", DROPPING)
def test_micro_batches_are_the_whole_batch(name: str, reduction: Any, make_batch) -> None:
    """Draws of dropout exactly, the rest to the rounding of float64; the last may be incomplete."""
    model, batches = DROPPING[name](), [make_batch(7, seed=i) for i in range(3)]
    options = {"reduction": reduction, "augment": AUGMENT}
    plain, state = step_of(model, grads.of_batch, **options), start(model)
    path = []
    for batch in batches:
        state, metrics = plain(state, batch)
        path.append((state, metrics))
    for size in (1, 3, 4, 6):
        step = step_of(model, accumulated(size, reduction=reduction), **options)
        state = start(model)
        for batch, expected in zip(batches, path, strict=True):
            state, metrics = step(state, batch)
            assert_close((state, metrics), expected)


@pytest.mark.parametrize("size", [7, 100])
def test_a_batch_that_is_not_larger_is_not_split(size: int, make_batch) -> None:
    model, batch = models.conv3(dropout=0.5), make_batch(7)
    state = start(model)
    expected = step_of(model, grads.of_batch)(state, batch)
    assert tree.equal(step_of(model, accumulated(size))(state, batch), expected)


def test_outputs_are_in_the_order_of_the_rows() -> None:
    def objective(params: Tensor, batch: Batch, key: Tensor) -> Any:
        losses = params * batch.labels + random.uniform(key, (len(batch.labels), 2))[:, 0]
        return losses.mean(), (losses, 2 * losses[:, None], {})

    batch, key = Batch(torch.zeros(5), torch.arange(5.0)), random.key(3)
    whole = grads.of_batch(objective)(torch.tensor(2.0), batch, key)
    assert_close(accumulated(2)(objective)(torch.tensor(2.0), batch, key), whole)
    there = random.from_row(key, 4)
    of_shard = grads.of_batch(objective)(torch.tensor(2.0), batch, there)
    assert_close(accumulated(2)(objective)(torch.tensor(2.0), batch, there), of_shard)
    assert not torch.equal(whole[1][1][0], of_shard[1][1][0])


@pytest.mark.parametrize("count", [0, 5])
def test_rows_are_skipped_from_the_row_of_the_key(count: int) -> None:
    key = random.key(1)
    there = random.from_row(key, torch.tensor(3))
    assert torch.equal(random.skip_rows(there, count), random.from_row(key, 3 + count))
    assert torch.equal(random.skip_rows(key, count), random.from_row(key, count))


@pytest.mark.parametrize("name", ["speednet", "resnet18"])
def test_batch_norm_sees_each_micro_batch_alone(name: str, make_batch) -> None:
    """The gradient is the mean of the parts' own; buffers are the mean of theirs by rows."""
    model, batch = make_model(name), make_batch(7)
    state = start(model)
    after, metrics = step_of(model, accumulated(3))(state, batch)
    parts = [
        step_of(model, grads.of_batch)(state, Batch(batch.images[a:b], batch.labels[a:b]))
        for a, b in ((0, 3), (3, 6), (6, 7))
    ]
    weights = (3 / 7, 3 / 7, 1 / 7)

    def mean(*leaves: Tensor) -> Tensor:
        if not leaves[0].is_floating_point():
            return leaves[0]
        return torch.stack([w * x for w, x in zip(weights, leaves, strict=True)]).sum(0)

    expected = tree.map(mean, *(moved(part, state) for part, _ in parts))
    torch.testing.assert_close(moved(after, state), expected, rtol=1e-8, atol=1e-11)
    buffers = tree.map(mean, *(part.variables.buffers for part, _ in parts))
    torch.testing.assert_close(after.variables.buffers, buffers, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(metrics.loss, sum(m.loss for _, m in parts))
    for key, value in after.variables.buffers.items():
        assert torch.equal(value, state.variables.buffers[key]) == ("running" not in key), key


def test_counts_of_batches_are_counted_once() -> None:
    def objective(params: Tensor, batch: Tensor, key: Tensor) -> Any:
        buffers = {"seen": torch.tensor(8), "constant": torch.full((), 0.1), "mean": batch.mean()}
        losses = params * batch
        return losses.mean(), (losses, losses, buffers)

    batch = torch.tensor([1.0, 3.0, 5.0])
    run = accumulated(2)(objective)
    gradient, (value, (_, _, buffers)) = run(torch.tensor(1.0), batch, random.key(0))
    assert (gradient, value) == (3, 3)
    assert buffers == {"seen": 8, "constant": torch.full((), 0.1), "mean": 3}


class _Peak(TorchDispatchMode):
    """The most bytes that tensors made within it held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for leaf in tree.leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {k: pair for k, pair in self.live.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@pytest.mark.parametrize("around", [lambda g: g, lambda g: sam(0.1, gradient=g)])
def test_memory_is_that_of_one_micro_batch(around: Any, make_batch) -> None:
    model, batch = models.conv3(), make_batch(256)
    state = init_train_state(model, optim.sgd(0.1), key=random.key(0))

    def peak(gradient: Gradient, batch: Batch) -> int:
        step = make_train_step(model, optim.sgd(0.1), gradient=around(gradient))
        with _Peak() as found:
            step(state, batch)
        return found.peak

    whole, small = (
        peak(grads.of_batch, batch),
        peak(grads.of_batch, Batch(*(x[:16] for x in batch))),
    )
    split = peak(accumulated(16), batch)
    images = batch.images.numel() * 4  # preprocessed at once
    gradients = sum(p.numel() for p in state.variables.params.values()) * 4
    assert split < small + 2 * images + 2 * gradients
    assert split < whole / 3


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_size_is_a_whole_number(size: Any) -> None:
    with pytest.raises(ValueError, match="accumulated needs a whole number of rows, 1 or more"):
        accumulated(size)


# SAM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_sam_is_the_two_passes_of_plain_pytorch(rho: float, make_batch) -> None:
    """Ten steps of SGD with momentum, perturbed and restored in place; metrics of the first."""
    model = models.lenet()
    state, step = start(model), step_of(model, sam(rho))
    net = _LeNet(84, 10).double()
    net.load_state_dict(state.variables.params)
    twin = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for i in range(10):
        batch = make_batch(6, seed=i)
        state, metrics = step(state, batch)
        images = ((batch.images.float() / 255 - 0.5) / 0.5).double()
        twin.zero_grad()
        loss = F.cross_entropy(net(images), batch.labels)
        loss.backward()
        kept = [p.detach().clone() for p in net.parameters()]
        with torch.no_grad():
            norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
            for p in net.parameters():
                p += rho * p.grad / norm
        twin.zero_grad()
        F.cross_entropy(net(images), batch.labels).backward()
        with torch.no_grad():
            for p, value in zip(net.parameters(), kept, strict=True):
                p.copy_(value)
        twin.step()
        torch.testing.assert_close(metrics.loss / 6, loss.detach(), rtol=1e-10, atol=0)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state.variables.params[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["conv3", "resnet18"])
def test_both_passes_have_the_same_draws_and_the_first_is_reported(name: str, make_batch) -> None:
    """Dropout, and batch norm's statistics: only the gradient is another than the plain step's."""
    model = DROPPING["conv3"]() if name == "conv3" else make_model(name)
    batch, state, seen = make_batch(6), start(model), []

    def apply(variables: Variables, images: Tensor, *, key: Any = None, train: bool = False) -> Any:
        seen.append(key)
        return model.apply(variables, images, key=key, train=train)

    plain, metrics = step_of(model, grads.of_batch)(state, batch)
    after, found = step_of(model._replace(apply=apply), sam(0.5))(state, batch)
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert tree.equal(found, metrics)
    assert tree.equal(after.variables.buffers, plain.variables.buffers)
    assert not tree.equal(after.variables.params, plain.variables.params)
    tiny, _ = step_of(model, sam(1e-13))(state, batch)
    torch.testing.assert_close(moved(tiny, state), moved(plain, state), rtol=1e-4, atol=1e-6)


def test_without_a_gradient_nothing_is_perturbed() -> None:
    def objective(params: Any, batch: Any, key: Any) -> Any:
        return (params["w"] ** 2).sum(), ()

    zeros, key = {"w": torch.zeros(3, dtype=torch.float64)}, random.key(0)
    gradient, _ = sam(0.5)(objective)(zeros, (), key)
    assert torch.equal(gradient["w"], zeros["w"])
    slope = torch.func.grad(lambda p: sam(0.5)(objective)(p, (), key)[0]["w"].sum())(zeros)
    assert slope["w"].isfinite().all()
    assert sam(0.5)(lambda p, b, k: (torch.ones(()), ()))({}, (), key)[0] == {}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sam_in_micro_batches_perturbs_for_the_whole_batch(reduction: Any, make_batch) -> None:
    model, batch = models.conv3(dropout=0.5), make_batch(7)
    state, parts = start(model), accumulated(3, reduction=reduction)
    expected = step_of(model, sam(0.5), reduction=reduction)(state, batch)
    found = step_of(model, sam(0.5, gradient=parts), reduction=reduction)(state, batch)
    assert_close(found, expected)
    each = accumulated(3, reduction=reduction, gradient=sam(0.5))
    other, metrics = step_of(model, each, reduction=reduction)(state, batch)
    assert_close(metrics, expected[1])
    assert not torch.allclose(
        other.variables.params["conv1.weight"], expected[0].variables.params["conv1.weight"]
    )


@pytest.mark.parametrize("rho", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rho_is_above_0(rho: float) -> None:
    with pytest.raises(ValueError, match="sam needs a rho above 0, such as"):
        sam(rho)


# Ranks, replicas, compilation --------------------------------------------------------------------

GRADIENTS: dict[str, Callable[[Axis], Gradient]] = {
    "micro-batches": lambda axis: accumulated(4),
    "sam": lambda axis: sam(0.2, axis=axis),
    "both": lambda axis: sam(0.2, gradient=accumulated(4), axis=axis),
}


def over_ranks(rank: int, axis: Axis, batch: Batch, make: Any, model: Model) -> Any:
    state = start(model)
    step = step_of(model, make(axis), axis=axis, augment=AUGMENT)
    part: Any = batch
    if axis.size > 1:
        images, labels = parallel.shard(batch, rank, axis.size)
        part = Shard(images, labels, torch.tensor(rank * len(labels)))
    state, _ = step(state, part)
    return step(state, part)


@pytest.mark.parametrize("name", GRADIENTS)
def test_ranks_learn_what_one_process_learns(name: str, make_batch) -> None:
    """With draws of dropout by row, and the perturbation of the whole batch."""
    batch, make = make_batch(12), GRADIENTS[name]
    alone = over_ranks(0, ALONE, batch, make, models.conv3(dropout=0.5))
    found = together(
        2, lambda rank, axis: over_ranks(rank, axis, batch, make, models.conv3(dropout=0.5))
    )
    assert tree.equal(found[0], found[1])
    assert_close(found[0], alone)


def test_without_the_axis_each_rank_perturbs_for_its_own_rows(make_batch) -> None:
    """As in micro-batches of the size of a rank's part that are perturbed each: m-sharpness."""
    batch = make_batch(12)
    each = over_ranks(
        0, ALONE, batch, lambda axis: accumulated(6, gradient=sam(0.2)), models.lenet()
    )
    found = together(
        2, lambda rank, axis: over_ranks(rank, axis, batch, lambda _: sam(0.2), models.lenet())
    )
    assert_close(found[0], each)


def test_synchronised_batch_norm_is_over_the_micro_batches_of_all_ranks(make_batch) -> None:
    batch = make_batch(12)
    order = [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]  # rows of the first micro-batches, and the rest
    sorted_batch = Batch(batch.images[order], batch.labels[order])
    step = step_of(models.resnet18(width=4), accumulated(6))
    alone, _ = step(start(models.resnet18(width=4)), sorted_batch)

    def play(rank: int, axis: Axis) -> TrainState:
        model = models.resnet18(width=4, axis=axis)
        images, labels = parallel.shard(batch, rank, 2)
        shard = Shard(images, labels, torch.tensor(rank * 6))
        return step_of(model, accumulated(3), axis=axis)(start(model), shard)[0]

    for state in together(2, play):
        torch.testing.assert_close(
            tree.named_leaves(state), tree.named_leaves(alone), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("name", GRADIENTS)
def test_mapped_over_replicas(name: str, make_batch) -> None:
    model, batches = models.conv3(dropout=0.5), [make_batch(7, seed=i) for i in range(2)]
    states = [start(model, seed) for seed in range(2)]
    step = step_of(model, GRADIENTS[name](ALONE))
    together = map_replicas(step)(stack(states), stack(batches))
    for i in range(2):
        alone = step(states[i], batches[i])
        torch.testing.assert_close(
            tree.named_leaves(take(together, i)), tree.named_leaves(alone), rtol=1e-9, atol=1e-12
        )


@pytest.mark.slow
def test_a_rho_may_be_a_tensor_of_a_compiled_step(make_batch) -> None:
    model, batch, made = models.lenet(dropout=0.3), make_batch(5), []

    def counting(graph, inputs):
        made.append(graph)
        return graph

    def step(rho: Tensor, state: TrainState, batch: Batch) -> Any:
        return step_of(model, sam(rho, gradient=accumulated(2)))(state, batch)

    compiled = torch.compile(step, backend=counting, fullgraph=True)
    state = start(model)
    for rho in (0.1, 0.7):
        found = compiled(torch.tensor(rho, dtype=torch.float64), state, batch)
        assert_close(found, step_of(model, sam(rho, gradient=accumulated(2)))(state, batch))
    assert len(made) == 1
