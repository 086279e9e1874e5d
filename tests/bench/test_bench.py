"""The reference models do what fcifar does: the same network, data, optimizer and values."""

import itertools

import pytest
import torch

from fcifar import models, optim, random, recipes
from fcifar.bench import bench, reference_models, timing
from fcifar.bench.bench import Case
from fcifar.bench.timing import Candidate
from fcifar.recipes import Recipe
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.train.runtime import Runtime

RUNTIME = Runtime(threads=1)


def still(recipe: Recipe) -> Recipe:
    """Without dropout, which draws other numbers in PyTorch."""
    return recipe.replace(model_options={**recipe.model_options, "dropout": 0.0})


@pytest.mark.parametrize("network", reference_models.MODULES)
def test_contenders_compute_the_same(network: str) -> None:
    recipe, data = still(bench.recipe_for(Case(network, 4))), bench.synthetic(20)
    made = {
        name: bench.CANDIDATES[name](recipe, RUNTIME, data) for name in ("module", "fcifar_eager")
    }
    for _ in range(8):  # more than an epoch, so that rows begin again
        for candidate in made.values():
            candidate.once()
    expected, found = (candidate.params() for candidate in made.values())
    assert list(expected) == list(found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [recipe.name for recipe in TUTORIALS])
def test_the_module_is_the_model(name: str) -> None:
    """The same logits, in float64, with dropout switched off in both."""
    recipe = recipes.get(name)
    model = recipes.make_model(recipe, 10)
    data = bench.synthetic(6)
    params = model.init(random.key(7)).params
    params = {n: p.double() for n, p in params.items()}
    images = recipes.make_preprocess(recipe)(data.train_images).double()
    normalised = reference_models.make_normalise(recipe, "cpu")(data.train_images).double()
    assert torch.equal(images, normalised)
    net = reference_models.make_module(recipe, params).eval()
    logits, _ = model.apply(models.Variables(params, {}), images)
    torch.testing.assert_close(net(images), logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_is_the_recipes(name: str, fused: bool) -> None:
    recipe = recipes.get("blitz").replace(
        optimizer=name, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.01
    )
    ours = recipes.make_optimizer(recipe, total_steps=10)
    start, grad = torch.linspace(-1, 1, 5).double(), torch.linspace(2, -3, 5).double()
    theirs = torch.nn.Parameter(start.clone())
    optimizer = reference_models.make_optimizer(recipe, [theirs], fused=fused)
    params = {"x": start}
    state = ours.init(params)
    for step in range(4):
        updates, state = ours.update({"x": grad * (step + 1)}, state, params)
        params = optim.apply_updates(params, updates)
        theirs.grad = grad * (step + 1)
        optimizer.step()
    torch.testing.assert_close(theirs.detach(), params["x"], rtol=1e-9, atol=1e-12)


def test_each_is_called_as_often_as_it_says() -> None:
    calls = {"a": 0, "b": 0, "c": 0}
    order = []

    def make(name: str) -> Candidate:
        def once() -> None:
            calls[name] += 1
            order.append(name)

        return Candidate(once)

    figures = timing.measure({name: make(name) for name in calls}, seconds=0.0, repetitions=3)
    assert set(calls.values()) == {1 + 2 + 2 + 3 * (1 + 1)}
    turns = [name for name, _ in itertools.groupby(order)]
    assert turns == [*"abc", *"abc", *"bca", *"cab"]
    for figure in figures.values():
        assert len(figure["seconds"]) == 3
        assert figure["median_seconds"] == sorted(figure["seconds"])[1]


def test_a_call_of_several_steps_counts_as_that_many(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    figures = timing.measure({"a": Candidate(lambda: None, steps=4)}, seconds=0.0, repetitions=2)
    assert figures["a"]["seconds"] == [0.25, 0.25]
    assert figures["a"]["first_call_seconds"] == 1.0


def test_ratios_are_to_the_module() -> None:
    makes = {name: bench.CANDIDATES[name] for name in ("fcifar_eager", "module")}
    figures = bench.measure_step(
        Case("lenet", 2), makes, RUNTIME, bench.synthetic(4), seconds=0.0, repetitions=2
    )
    ours, theirs = figures["fcifar_eager"], figures["module"]
    assert theirs["times_module"] == 1
    assert ours["times_module"] == theirs["median_seconds"] / ours["median_seconds"]
    assert ours["images_per_second"] == 2 / ours["median_seconds"]
    alone = bench.measure_step(
        Case("lenet", 2),
        {"fcifar_eager": bench.fcifar_eager},
        RUNTIME,
        bench.synthetic(4),
        seconds=0.0,
        repetitions=1,
    )
    assert "times_module" not in alone["fcifar_eager"]
