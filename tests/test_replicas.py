"""Replicas: a row of the stack is what it is alone."""

import pytest
import torch

from fcifar import augment, models, optim, random, recipes, replicas, tree
from fcifar.compiling import compile_step
from fcifar.precision import Policy
from fcifar.running import Feed, accumulate, on_feed, start_running
from fcifar.step import Batch, init_train_state, make_train_step
from tests.small import make_model

MODELS = ["lenet", "conv3", "speednet"]
DOUBLE = torch.float64
FLOAT64 = Policy(DOUBLE, DOUBLE, DOUBLE)


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
    return replicas.stack([make_batch(size, seed=i) for i in range(count)])


def test_stack_and_unstack_are_inverse() -> None:
    trees = [{"a": torch.full((2, 3), i), "b": (torch.tensor(i), ())} for i in range(3)]
    stacked = replicas.stack(trees)
    assert stacked["a"].shape == (3, 2, 3)
    assert all(tree.equal(x, y) for x, y in zip(replicas.unstack(stacked, 3), trees, strict=True))
    with pytest.raises(ValueError, match="at least one"):
        replicas.stack([])


@pytest.mark.parametrize("name", MODELS)
def test_mapped_replicas_equal_single_ones_in_float64(name: str, make_batch) -> None:
    """With augmentation, dropout and batch norm: the draws are the same, the rest to rounding."""
    step, init = parts(name)
    keys = random.split(random.key(7), 3)
    stacked, mapped = replicas.init_replicas(init, keys), replicas.map_replicas(step)
    singles = [init(key) for key in keys]
    assert all(
        tree.equal(a, b) for a, b in zip(replicas.unstack(stacked, 3), singles, strict=True)
    ), "they begin with the same bits"
    for _ in range(3):
        batch = batches(make_batch, 3)
        stacked, metrics = mapped(stacked, batch)
        for i in range(3):
            singles[i], alone = step(singles[i], replicas.take(batch, i))
            torch.testing.assert_close(metrics.loss[i], alone.loss, rtol=1e-9, atol=1e-9)
            assert metrics.correct[i] == alone.correct
    for i in range(3):
        one = replicas.take(stacked, i)
        assert torch.equal(one.key, singles[i].key)
        for a, b in zip(tree.leaves(one), tree.leaves(singles[i]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_replica_does_not_look_at_the_others(make_batch) -> None:
    step, init = parts("lenet")
    keys = random.split(random.key(1), 3)
    mapped, batch = replicas.map_replicas(step), batches(make_batch, 3)
    state, _ = mapped(replicas.init_replicas(init, keys), batch)
    others = replicas.init_replicas(init, torch.stack([keys[0], keys[2], keys[1]]))
    moved, _ = mapped(others, tree.map(lambda x: x[[0, 2, 1]], batch))
    assert tree.equal(replicas.take(state, 0), replicas.take(moved, 0))
    assert tree.equal(replicas.take(state, 1), replicas.take(moved, 2))


@pytest.mark.slow
def test_compiled_they_are_the_same(make_batch) -> None:
    model, optimizer = models.lenet(), optim.sgd(0.01, 0.9)
    step = replicas.map_replicas(make_train_step(model, optimizer))
    state = replicas.init_replicas(
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
def test_numbers_as_tensors_train_as_the_recipe_with_them(changes, values, make_batch) -> None:
    """A cell of a sweep equals the run with those values, in float64."""
    base = recipes.get("blitz").replace(**{"momentum": 0.0, **changes})
    model, data = models.lenet(), make_batch(12)

    def step_of(recipe, given):
        numbers = recipes.make_numbers(recipe, given)
        return make_train_step(
            model,
            recipes.make_optimizer(recipe, 6, numbers),
            loss=recipes.make_loss(recipe, numbers),
            preprocess=as_double,
            policy=FLOAT64,
        )

    tensors = {name: torch.tensor(value, dtype=DOUBLE) for name, value in values.items()}
    own = base.replace(**values)
    optimizer = recipes.make_optimizer(own, 6)
    swept = on_feed(lambda given: step_of(base, given), data)
    plain = on_feed(lambda given: step_of(own, {}), data)
    a = b = start_running(double(init_train_state(model, optimizer, key=random.key(0))))
    for i in range(5):
        rows = torch.arange(6) + i
        a, _ = accumulate(swept)(a, Feed(rows, (), tensors))
        b, _ = accumulate(plain)(b, Feed(rows))
    for x, y in zip(tree.leaves(a.state.variables), tree.leaves(b.state.variables), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
