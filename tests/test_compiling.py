"""``compile_step``: when it compiles anew, and when not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fcifar import models, optim, random, tree
from fcifar.compiling import compile_pure, compile_step
from fcifar.step import Batch, TrainState, init_train_state, make_train_step
from tests.small import compiled_models, make_model


def double(state: dict[str, Tensor], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return {name: leaf + batch.sum() for name, leaf in state.items()}, batch * 2


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _count_afresh():
    counters.clear()


def test_one_graph_for_each_shape() -> None:
    step = compile_step(double, donate=False)
    state = {"a": torch.zeros(3)}
    for size in (2, 2, 3, 2, 3):
        state, doubled = step(state, torch.ones(size))
        assert torch.equal(doubled, torch.full((size,), 2.0))
    assert torch.equal(state["a"], torch.full((3,), 12.0))
    assert graphs() == 2


def test_another_state_is_not_taken_for_the_first() -> None:
    step = compile_step(double, donate=False)
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
    step = compile_step(double, donate=False)
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


def test_steps_of_one_code_are_not_taken_for_each_other() -> None:
    """They differ in what they close over alone, such as a learning rate."""
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
    step = compile_step(double)
    state = {"a": torch.zeros(3)}
    new, _ = step(state, torch.ones(2))
    assert new is state
    assert torch.equal(state["a"], torch.full((3,), 2.0))


def test_any_function_of_two_trees_can_be_compiled() -> None:
    add = compile_pure(lambda a, b: tree.map(torch.add, a, b))
    assert torch.equal(add({"x": torch.ones(2)}, {"x": torch.ones(2)})["x"], torch.full((2,), 2.0))


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
