"""Ranks that divide a batch see and learn what one process does with all of it."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.distributed.fake_pg import FakeStore

from fcifar import augment, models, optim, parallel, privacy, random, tree
from fcifar.layers import BatchNorm
from fcifar.models import Model
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.step import Batch, Shard, TrainState, init_train_state, make_train_step
from fcifar.step_transforms import StepInput, shard
from tests.helpers.ranks import together
from tests.helpers.small import SMALL, chosen_models

FLOAT64 = Policy(torch.float64, torch.float64, torch.float64)
NORMED = ("speednet", "resnet18")

DRAWS: dict[str, Callable[[random.Key, tuple[int, ...]], Tensor]] = {
    "bits": random.bits,
    "uniform": random.uniform,
    "scaled": lambda key, shape: random.uniform(key, shape, -3.0, 5.0),
    "bernoulli": lambda key, shape: random.bernoulli(key, 0.3, shape),
    "randint": lambda key, shape: random.randint(key, shape, -5, 77),
    "normal": random.normal,
    "truncated_normal": lambda key, shape: random.truncated_normal(key, -1.0, 2.0, shape),
    "gumbel": random.gumbel,
    "categorical": lambda key, shape: random.categorical(key, torch.zeros(*shape, 7)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("rest", [(), (3, 5)], ids=["rows", "images"])
def test_a_draw_from_a_row_is_those_rows_of_the_whole(draw, rest: tuple[int, ...]) -> None:
    key = random.key(7)
    whole = draw(key, (12, *rest))
    for first, count in ((0, 12), (4, 4), (11, 1)):
        part = draw(random.from_row(key, first), (count, *rest))
        assert torch.equal(part, whole[first : first + count])


def test_keys_of_a_key_begin_at_the_same_row() -> None:
    key, row = random.key(3), torch.tensor(5)
    there = random.from_row(key, row)
    assert torch.equal(random.split(there, 3)[:, :2], random.split(key, 3))
    assert random.split(there, 3)[:, 2].tolist() == [5, 5, 5]
    assert random.fold_in(there, 9).tolist() == [*random.fold_in(key, 9).tolist(), 5]
    assert torch.equal(random.row_keys(there, 4), random.split(key, 9)[5:])
    assert torch.equal(random.common(there), key)
    assert torch.equal(random.from_row(there, 2), random.from_row(key, 2))


def test_a_draw_of_no_row_is_the_same_everywhere() -> None:
    key = random.key(3)
    assert torch.equal(random.normal(random.from_row(key, 5)), random.normal(key))


def test_rows_are_not_ordered_in_part() -> None:
    with pytest.raises(ValueError, match="common"):
        random.permutation(random.from_row(random.key(0), 4), 8)


def test_a_row_is_an_argument_of_a_compiled_draw() -> None:
    """It is a tensor, so that all ranks compile the same."""
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def draw(key: random.Key, row: Tensor) -> Tensor:
        return random.uniform(random.from_row(key, row), (4, 3))

    whole = random.uniform(random.key(1), (12, 3))
    for row in (0, 4, 8):
        assert torch.equal(draw(random.key(1), torch.tensor(row)), whole[row : row + 4])
    assert counter.frame_count == 1


# Sums --------------------------------------------------------------------------------------------


def test_sums_have_the_shapes_and_dtypes_of_what_is_summed() -> None:
    def add_up(rank: int, axis: Axis) -> list[Tensor]:
        one = torch.full((2, 3), 1.5 + rank)
        return axis.psum([one, torch.tensor(rank + 7), torch.tensor([rank == 1, False])])

    for sums in together(3, add_up):
        assert torch.equal(sums[0], torch.full((2, 3), 7.5))
        assert sums[1].dtype == torch.int64
        assert sums[1].item() == 24
        assert sums[2].tolist() == [True, False]


def test_the_mean_over_ranks_and_over_one() -> None:
    means = together(2, lambda rank, axis: parallel.pmean([torch.tensor(4.0 + rank)], axis))
    assert [mean.item() for (mean,) in means] == [4.5, 4.5]
    tensor = torch.ones(2)
    assert parallel.pmean([tensor], ALONE)[0] is tensor


def test_large_counts_are_exact() -> None:
    (count,) = parallel.sum_flat([torch.tensor(2**24)], sum_vector=lambda vector: vector)
    assert count.item() == 2**24


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_are_equal_parts_in_order(size: int) -> None:
    rows = torch.arange(12)
    inputs = StepInput(rows, rows > 5)
    parts = [shard(inputs, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat([part.indices for part in parts]), rows)
    assert torch.equal(torch.cat([part.flip for part in parts]), rows > 5)
    assert [int(part.first_row) for part in parts if size > 1] == [
        rank * 12 // size for rank in range(size) if size > 1
    ]


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="12 rows cannot be divided into 5"):
        parallel.shard(torch.arange(12), 0, 5)


# Steps -------------------------------------------------------------------------------------------


def train(
    model: Model, batches: list[Batch], rank: int, axis: Axis, **options: Any
) -> tuple[TrainState, list[Any]]:
    optimizer = optim.sgd(0.05, momentum=0.9)
    if gradient := options.pop("gradient", None):
        options["gradient"] = gradient(axis)
    state = init_train_state(model, optimizer, key=random.key(2), policy=FLOAT64)
    step = make_train_step(model, optimizer, axis=axis, policy=FLOAT64, **options)
    seen = []
    for batch in batches:
        part: Batch | Shard = batch
        if axis.size > 1:
            images, labels = parallel.shard(batch, rank, axis.size)
            part = Shard(images, labels, torch.tensor(rank * len(labels)))
        state, metrics = step(state, part)
        seen.append(metrics)
    return state, seen


def normed(name: str, axis: Axis) -> Model:
    """A network of one's own for each thread: ``functional_call`` puts values into the skeleton."""
    if name == "lenet":
        return models.lenet(dropout=0.3)
    make = models.MODELS[name]
    takes_axis = "axis" in inspect.signature(make).parameters
    return make(**SMALL.get(name, {}), **({"axis": axis} if takes_axis else {}))


def assert_close(state: TrainState, other: TrainState, atol: float = 1e-11) -> None:
    found, wanted = map(tree.named_leaves, (state, other))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", chosen_models())
def test_ranks_learn_what_one_process_learns(name: str, size: int, make_batch) -> None:
    """Draws exactly, the rest to the rounding of float64; every rank the same bits."""
    batches = [make_batch(12, seed=i) for i in range(4)]
    augmented = augment.chain(augment.random_flip(), augment.random_crop(4))
    alone, seen = train(normed(name, ALONE), batches, 0, ALONE, augment=augmented)
    ranks = together(
        size, lambda rank, axis: train(normed(name, axis), batches, rank, axis, augment=augmented)
    )
    for state, metrics in ranks:
        assert tree.equal(state, ranks[0][0])
        assert_close(state, alone)
        for found, wanted in zip(metrics, seen, strict=True):
            torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-9, atol=0)
            assert found.count == wanted.count == 12
            assert found.correct == wanted.correct


@pytest.mark.parametrize("reduction", [torch.mean, torch.sum])
def test_reductions_are_of_the_whole_batch(reduction, make_batch) -> None:
    batches = [make_batch(12, seed=i) for i in range(2)]
    alone, _ = train(models.lenet(), batches, 0, ALONE, reduction=reduction)
    for state, _ in together(
        2, lambda rank, axis: train(models.lenet(), batches, rank, axis, reduction=reduction)
    ):
        assert_close(state, alone)


def test_private_gradients_have_one_noise(make_batch) -> None:
    def gradient(axis: Axis):
        return privacy.dp_gradient(0.5, 0.7, axis=axis)

    batches = [make_batch(12, seed=i) for i in range(2)]
    noiseless = privacy.dp_gradient(0.5, 0.0)
    alone, _ = train(normed("lenet", ALONE), batches, 0, ALONE, gradient=gradient)
    quiet, _ = train(normed("lenet", ALONE), batches, 0, ALONE, gradient=lambda axis: noiseless)
    assert not tree.equal(alone, quiet)
    for state, _ in together(
        3, lambda rank, axis: train(normed("lenet", axis), batches, rank, axis, gradient=gradient)
    ):
        assert_close(state, alone, atol=1e-6)  # noise is drawn in float32, and then divided


@pytest.mark.parametrize("name", NORMED)
def test_without_the_axis_ranks_keep_the_mean_of_what_they_saw(name: str, make_batch) -> None:
    """Each normalises by its own rows, which is another training than that of one process."""
    batch = make_batch(12)
    halves = [tree.map(lambda x, rank=rank: parallel.shard(x, rank, 2), batch) for rank in (0, 1)]
    ranks = together(2, lambda rank, axis: train(normed(name, ALONE), [batch], rank, axis))
    (alone, _), *own = (train(normed(name, ALONE), [part], 0, ALONE) for part in (batch, *halves))
    mean = tree.map(lambda a, b: (a + b) / 2, *(state.variables.buffers for state, _ in own))
    (first, _), (second, _) = ranks
    assert tree.equal(first, second)
    torch.testing.assert_close(first.variables.buffers, mean, rtol=1e-9, atol=1e-11)
    weight = "conv1.weight" if name == "resnet18" else "groups.0.convs.0.weight"
    assert not torch.allclose(first.variables.params[weight], alone.variables.params[weight])


def test_constant_buffers_stay_as_they_are(make_batch) -> None:
    """Thirds of them do not add up again; they are not exchanged, only what changes is."""
    batches = [make_batch(12, seed=i) for i in range(3)]
    init_key = random.split(random.key(2))[0]
    before = normed("speednet", ALONE).init(init_key).buffers["whiten.weight"]
    for state, _ in together(
        3, lambda rank, axis: train(normed("speednet", axis), batches, rank, axis)
    ):
        assert torch.equal(state.variables.buffers["whiten.weight"], before.double())


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_over_ranks_are_those_of_all_rows(offset: float) -> None:
    """Also where the mean is large and close to the running one, and the variance is not."""
    rows = random.normal(random.key(0), (24, 5, 4, 4)) + offset
    state = {
        "bias": torch.zeros(5),
        "weight": torch.ones(5),
        "running_mean": torch.full((5,), offset),
        "running_var": torch.ones(5),
    }

    def normalize(x: Tensor, axis: Axis) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.device("meta"):
            layer = BatchNorm(5, axis=axis)
        return torch.func.functional_call(layer, state, (x, True))

    whole, running = normalize(rows, ALONE)
    parts = together(4, lambda rank, axis: normalize(parallel.shard(rows, rank, 4), axis))
    torch.testing.assert_close(torch.cat([y for y, _ in parts]), whole, rtol=1e-3, atol=2e-3)
    for _, found in parts:
        torch.testing.assert_close(found, running, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", chosen_models("wrn", "vit_tiny", "mlp_mixer", "resnet18"))
def test_a_step_has_one_sum_and_two_for_each_batch_norm(name: str, make_batch) -> None:
    """Counted in the recorded graph, with a process group that does nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        axis = parallel.across_ranks()
        model, optimizer = normed(name, axis), optim.sgd(0.05, momentum=0.9)
        step = make_train_step(model, optimizer, axis=axis)
        state = init_train_state(model, optimizer, key=random.key(0))
        leaves, unflatten = tree.flatten((state, Shard(*make_batch(4), torch.tensor(0))))
        module = make_fx(lambda *xs: tree.leaves(step(*unflatten(list(xs)))))(*leaves)
    finally:
        distributed.destroy_process_group()
    called = [str(node.target) for node in module.graph.nodes if "c10d" in str(node.target)]
    norms = sum("running_mean" in path for path in model.init(random.key(0)).buffers)
    assert called.count("_c10d_functional.all_reduce.default") == 1 + 2 * norms
    assert set(called) <= {
        "_c10d_functional.all_reduce.default",
        "_c10d_functional.wait_tensor.default",
    }
