"""Transformations of a step: fed with row numbers, compiled, and over replicas."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fcifar import (
    augment,
    kernels,
    metrics,
    models,
    optim,
    random,
    recipes,
    step_transforms,
    tree,
)
from fcifar.metrics import Metrics
from fcifar.models import Variables
from fcifar.precision import Policy
from fcifar.step import Batch, Shard, TrainState, TrainStep, init_train_state, make_train_step
from fcifar.step_transforms import (
    StepInput,
    accumulate,
    alternate,
    compile_pure,
    compile_step,
    init_loop_state,
    make_loop_step,
    on_indices,
    shard,
)
from tests.helpers.small import compiled_models, make_model

SIZE = 12
MODELS = ["lenet", "conv3", "speednet"]
DOUBLE = torch.float64
FLOAT64 = Policy(DOUBLE, DOUBLE, DOUBLE)

# Fed with row numbers: images mirrored in every other epoch ---------------------------------------


@pytest.fixture
def data() -> Batch:
    """Images of which none is its own mirror image."""
    ramp = torch.arange(4).expand(SIZE, 1, 2, 4) + 10 * torch.arange(SIZE)[:, None, None, None]
    return Batch(ramp.to(torch.uint8), torch.arange(SIZE))


def batch_of(data: Batch, inputs: StepInput) -> Batch:
    """What the step inside a step of the loop is given."""
    batches = []

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batches.append(batch)
        return state, metrics.zeros()

    nothing = TrainState(torch.tensor(0), Variables({}, {}), (), random.key(0))
    make_loop_step(lambda hparams: step, data)(init_loop_state(nothing), inputs)
    (batch,) = batches
    return batch


def seen(data: Batch, mirrored: Tensor, epoch: int, rows: Tensor) -> Tensor:
    """Whether each image comes mirrored."""
    images, labels = batch_of(data, StepInput(rows, alternate(mirrored, rows, epoch)))
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
    """As ``on_indices`` with the images mirrored beforehand, and ``accumulate``."""
    model, optimizer, data = models.lenet(), optim.sgd(0.1, 0.9), make_batch(20)
    step = make_train_step(model, optimizer)
    mirrored = random.bernoulli(random.key(1), 0.5, (20,))
    twice = [
        Batch(torch.where(m[:, None, None, None], data.images.flip(-1), data.images), data.labels)
        for m in (mirrored, ~mirrored)
    ]
    loop_step = make_loop_step(lambda hparams: step, data)
    a = b = init_loop_state(init_train_state(model, optimizer, key=random.key(0)))
    for i in range(7):
        rows = (torch.arange(8) + 5 * i) % 20
        a, m = loop_step(a, StepInput(rows, alternate(mirrored, rows, i // 3)))
        b, n = accumulate(on_indices(step, twice[i // 3 % 2]))(b, rows)
        assert tree.equal((a, m), (b, n))
    assert a.totals.count == 7 * 8


def test_an_input_without_flips_is_the_batch_of_its_rows(data: Batch) -> None:
    rows = torch.tensor([3, 0])
    plain = on_indices(lambda state, batch: batch, data)
    assert tree.equal(batch_of(data, StepInput(rows)), plain((), rows))


def test_a_shard_knows_which_row_is_its_first(data: Batch) -> None:
    rows = torch.arange(6).flip(0)
    inputs = StepInput(rows, rows > 3)
    assert shard(inputs, 0, 1) is inputs
    whole = batch_of(data, inputs)
    for rank in range(3):
        part = batch_of(data, shard(inputs, rank, 3))
        assert isinstance(part, Shard)
        assert part.first == 2 * rank
        mine = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(part.images, whole.images[mine])
        assert torch.equal(part.labels, whole.labels[mine])


@pytest.mark.slow
def test_compiled_by_inductor_values_and_flips_change_without_another_compilation(
    make_batch,
) -> None:
    model, data = models.lenet(), make_batch(6)

    def step_with(hparams: Mapping[str, Tensor]) -> TrainStep:
        return make_train_step(model, optim.sgd(hparams["learning_rate"]))

    step, fast = make_loop_step(step_with, data), make_loop_step(step_with, data, compile=True)
    mirrored, rows = torch.arange(6) % 2 == 0, torch.arange(6)
    eager = init_loop_state(init_train_state(model, optim.sgd(0.1), key=random.key(0)))
    compiled = tree.map(torch.clone, eager)
    for i in range(5):
        values = {"learning_rate": torch.tensor(0.1 / (i + 1))}
        inputs = StepInput(rows, alternate(mirrored, rows, i // 2), values)
        eager, _ = step(eager, inputs)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            compiled, _ = fast(compiled, inputs)
    for a, b in zip(tree.leaves(compiled), tree.leaves(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert int(compiled.state.step) == 5


# Compiled: when anew, and when not --------------------------------------------------------------


def add_and_double(state: dict[str, Tensor], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return {name: leaf + batch.sum() for name, leaf in state.items()}, batch * 2


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _count_afresh():
    counters.clear()


def test_one_graph_for_each_shape() -> None:
    step = compile_step(add_and_double, donate=False)
    state = {"a": torch.zeros(3)}
    for size in (2, 2, 3, 2, 3):
        state, doubled = step(state, torch.ones(size))
        assert torch.equal(doubled, torch.full((size,), 2.0))
    assert torch.equal(state["a"], torch.full((3,), 12.0))
    assert graphs() == 2


def test_another_state_is_not_taken_for_the_first() -> None:
    step = compile_step(add_and_double, donate=False)
    ones = torch.ones(2)
    states: list[dict[str, Tensor]] = [
        {"a": torch.zeros(3)},
        {"a": torch.zeros(4)},
        {"a": torch.zeros(3, dtype=torch.float64)},
        {"b": torch.zeros(3)},
        {"a": torch.zeros(3), "b": torch.ones(1)},
    ]
    for state in states:
        new, _ = step(state, ones)
        assert new.keys() == state.keys()
        for name, leaf in state.items():
            assert torch.equal(new[name], leaf + 2)
            assert new[name].dtype == leaf.dtype


def test_torchs_switches_are_looked_at_before_each_call() -> None:
    step = compile_step(add_and_double, donate=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for enabled in (False, True, False, True):
            torch.use_deterministic_algorithms(enabled)
            step({"a": torch.zeros(3)}, torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(before)
    assert graphs() == 2


def test_what_a_step_closes_over_is_read_once() -> None:
    factor = [1.0]

    def scale(state: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return state * factor[0], batch

    step = compile_step(scale, donate=False)
    step(torch.ones(2), torch.ones(1))
    factor[0] = 5.0
    assert torch.equal(step(torch.ones(2), torch.ones(1))[0], torch.ones(2))
    assert graphs() == 1


def test_steps_of_one_code_are_not_taken_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in what they close over alone, such as a learning rate."""
    monkeypatch.setattr(kernels, "step_backend", lambda graph, inputs: graph)
    model = models.from_module(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2))
    for rate in (0.1, 0.2):
        step = make_train_step(model, optim.sgd(rate))
        state = init_train_state(model, optim.sgd(rate), key=random.key(0))
        expected, _ = step(state, batch)
        for donate in (False, True):
            got, _ = compile_step(step, donate=donate)(state, batch)
            for a, b in zip(tree.leaves(expected), tree.leaves(got), strict=True):
                torch.testing.assert_close(a, b)


def test_a_donated_state_is_the_new_state() -> None:
    step = compile_step(add_and_double)
    state = {"a": torch.zeros(3)}
    new, _ = step(state, torch.ones(2))
    assert new is state
    assert torch.equal(state["a"], torch.full((3,), 2.0))


def test_any_function_of_two_trees_can_be_compiled() -> None:
    add = compile_pure(lambda a, b: tree.map(torch.add, a, b))
    assert torch.equal(add({"x": torch.ones(2)}, {"x": torch.ones(2)})["x"], torch.full((2,), 2.0))


@pytest.mark.slow
@pytest.mark.parametrize("network", compiled_models("speednet", "conv3"))
def test_what_was_compiled_before_is_found_in_the_cache(network: str) -> None:
    """By the second process as by the first, for the key is made of contents alone."""
    model, optimizer = make_model(network), optim.sgd(0.1)
    state = init_train_state(model, optimizer, key=random.key(0))
    batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2))

    def once() -> tuple[TrainState, Any]:
        torch._dynamo.reset()
        counters.clear()
        return compile_step(make_train_step(model, optimizer), donate=False)(state, batch)

    first = once()
    assert counters["inductor"]["fxgraph_cache_bypass"] == 0
    second = once()
    assert counters["inductor"]["fxgraph_cache_hit"] == 1
    assert tree.equal(first, second)


# Replicas: a row of the stack is what it is alone ------------------------------------------------


def double(value):
    return tree.map(lambda x: x.double() if x.is_floating_point() else x, value)


def as_double(images):
    return images.double() / 255 - 0.5


def parts(name: str):
    model, optimizer = make_model(name), optim.sgd(0.05, 0.9)
    step = make_train_step(
        model,
        optimizer,
        preprocess=as_double,
        policy=FLOAT64,
        augment=augment.chain(augment.random_flip(0.5), augment.random_crop(4)),
    )
    return step, lambda key: double(init_train_state(model, optimizer, key=key))


def batches(make_batch, count: int, size: int = 4) -> Batch:
    return step_transforms.stack([make_batch(size, seed=i) for i in range(count)])


def test_take_gives_back_what_was_stacked() -> None:
    trees = [{"a": torch.full((2, 3), i), "b": (torch.tensor(i), ())} for i in range(3)]
    stacked = step_transforms.stack(trees)
    assert stacked["a"].shape == (3, 2, 3)
    assert all(tree.equal(step_transforms.take(stacked, i), trees[i]) for i in range(3))
    with pytest.raises(ValueError, match="at least one"):
        step_transforms.stack([])


@pytest.mark.parametrize("name", MODELS)
def test_mapped_replicas_equal_single_ones_in_float64(name: str, make_batch) -> None:
    """With augmentation, dropout and batch norm: the draws are the same, the rest to rounding."""
    step, init = parts(name)
    keys = random.split(random.key(7), 3)
    stacked, mapped = step_transforms.init_replicas(init, keys), step_transforms.map_replicas(step)
    singles = [init(key) for key in keys]
    same = [tree.equal(step_transforms.take(stacked, i), singles[i]) for i in range(3)]
    assert all(same), "they begin with the same bits"
    for _ in range(3):
        batch = batches(make_batch, 3)
        stacked, metrics = mapped(stacked, batch)
        for i in range(3):
            singles[i], alone = step(singles[i], step_transforms.take(batch, i))
            torch.testing.assert_close(metrics.loss[i], alone.loss, rtol=1e-9, atol=1e-9)
            assert metrics.correct[i] == alone.correct
    for i in range(3):
        one = step_transforms.take(stacked, i)
        assert torch.equal(one.key, singles[i].key)
        for a, b in zip(tree.leaves(one), tree.leaves(singles[i]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_replica_does_not_look_at_the_others(make_batch) -> None:
    step, init = parts("lenet")
    keys = random.split(random.key(1), 3)
    mapped, batch = step_transforms.map_replicas(step), batches(make_batch, 3)
    state, _ = mapped(step_transforms.init_replicas(init, keys), batch)
    others = step_transforms.init_replicas(init, torch.stack([keys[0], keys[2], keys[1]]))
    moved, _ = mapped(others, tree.map(lambda x: x[[0, 2, 1]], batch))
    assert tree.equal(step_transforms.take(state, 0), step_transforms.take(moved, 0))
    assert tree.equal(step_transforms.take(state, 1), step_transforms.take(moved, 2))


@pytest.mark.slow
def test_compiled_they_are_the_same(make_batch) -> None:
    model, optimizer = models.lenet(), optim.sgd(0.01, 0.9)
    step = step_transforms.map_replicas(make_train_step(model, optimizer))
    state = step_transforms.init_replicas(
        lambda key: init_train_state(model, optimizer, key=key), random.split(random.key(0), 2)
    )
    fast, batch = compile_step(step, donate=False), batches(make_batch, 2)
    (a, m), (b, n) = step(state, batch), fast(state, batch)
    for x, y in zip(tree.leaves((a, m)), tree.leaves((b, n)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({}, {"learning_rate": 0.05}),
        ({"momentum": 0.9, "nesterov": True}, {"momentum": 0.5}),
        ({"optimizer": "adam"}, {"learning_rate": 0.01, "weight_decay": 0.1}),
        ({"optimizer": "adamw"}, {"weight_decay": 0.1}),
        ({"schedule": "cosine", "warmup_steps": 2}, {"learning_rate": 0.05}),
        ({"schedule": "linear", "final_rate": 0.1}, {"learning_rate": 0.05}),
        ({"schedule": "constant", "warmup_steps": 2}, {"learning_rate": 0.05}),
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.3}),
        (
            {"optimizer": "muon", "group_learning_rates": {"linear": 0.1}, "momentum": 0.6},
            {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 0.01},
        ),
    ],
)
def test_hyperparameters_as_tensors_train_as_the_recipe_with_them(
    changes, values, make_batch
) -> None:
    """A cell of a sweep equals the run with those values, in float64."""
    base = recipes.get("blitz").replace(**{"momentum": 0.0, **changes})
    model, data = models.lenet(), make_batch(12)

    def step_of(recipe, given):
        hparams = recipes.make_hyperparams(recipe, given)
        return make_train_step(
            model,
            recipes.make_optimizer(recipe, 6, hparams),
            loss=recipes.make_loss(recipe, hparams),
            preprocess=as_double,
            policy=FLOAT64,
        )

    tensors = {name: torch.tensor(value, dtype=DOUBLE) for name, value in values.items()}
    own = base.replace(**values)
    optimizer = recipes.make_optimizer(own, 6)
    swept = make_loop_step(lambda hparams: step_of(base, hparams), data)
    plain = make_loop_step(lambda hparams: step_of(own, {}), data)
    a = b = init_loop_state(double(init_train_state(model, optimizer, key=random.key(0))))
    for i in range(5):
        rows = torch.arange(6) + i
        a, _ = swept(a, StepInput(rows, (), tensors))
        b, _ = plain(b, StepInput(rows))
    for x, y in zip(tree.leaves(a.state.variables), tree.leaves(b.state.variables), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
