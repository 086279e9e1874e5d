"""Schedule-free optimizers against golden values of their authors' package, in float64.

``golden/make_schedule_free.py`` made the values, and has the problem that both solve.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import models, optim, random, schedules, tree
from fcifar.optim import Optimizer
from fcifar.step import (
    TrainState,
    eval_variables,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from tests.golden.make_schedule_free import CASES, KEPT, STEPS, gradient, start

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/schedule_free.json").read_text())["cases"]


def of_options(name: str, options: dict[str, Any], *, in_tensors: bool = False) -> Optimizer:
    """Our optimizer, given the options of the authors' package."""

    def number(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64) if in_tensors else value

    given = dict(options)
    lr, steps = number(given.pop("lr")), given.pop("warmup_steps", 0)
    rate = lr
    if steps:
        rate = schedules.warmup(schedules.constant_schedule(lr), lr / steps, lr, steps - 1)
    common = {
        "weight_decay": number(given.pop("weight_decay", 0.0)),
        "weight_lr_power": given.pop("weight_lr_power", 2.0),
        "weight_count_power": given.pop("r", 0.0),
    }
    if name.startswith("adamw"):
        b1, b2 = map(number, given.pop("betas", (0.9, 0.999)))
        eps = given.pop("eps", 1e-8)
        assert not given
        return optim.schedule_free_adamw(rate, b1, b2, eps, **common)
    b1 = number(given.pop("momentum", 0.9))
    assert not given
    return optim.schedule_free_sgd(rate, b1, **common)


def trained(optimizer: Optimizer, steps: int = STEPS) -> Iterator[tuple[Any, Any]]:
    """Parameters and state after each step."""
    params = start()
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update(gradient(params, step), state, params)
        params = optim.apply_updates(params, updates)
        yield params, state


@pytest.mark.parametrize("in_tensors", [False, True])
@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_are_the_authors(name: str, in_tensors: bool) -> None:
    """Those that are trained and those that are evaluated, to 1e-12."""
    golden = GOLDEN[name]
    assert golden["options"] == CASES[name]
    optimizer = of_options(name, golden["options"], in_tensors=in_tensors)
    states = [pair for step, pair in enumerate(trained(optimizer)) if step in KEPT]
    for (params, state), expected in zip(states, golden["records"], strict=True):
        for found, theirs in ((params, "y"), (optimizer.value(params, state), "x")):
            for path, leaf in found.items():
                golden_leaf = torch.tensor(expected[theirs][path], dtype=torch.float64)
                torch.testing.assert_close(leaf, golden_leaf, rtol=1e-12, atol=1e-13)


def test_a_base_may_be_any_optimizer() -> None:
    """Against the three sequences as the paper writes them, for clipped SGD and a schedule."""
    rate = schedules.linear_schedule(0.0, 0.5, 20)  # from 0, so that the first step moves nothing
    base = optim.chain(optim.clip(0.4), optim.sgd(rate))
    optimizer = optim.chain(optim.scale(0.7), optim.schedule_free(base, rate, 0.8))
    x, z, total, largest = start(), start(), 0.0, 0.0
    for step, (params, state) in enumerate(trained(optimizer, 30)):
        y = tree.map(lambda a, b: 0.2 * a + 0.8 * b, z, x)
        now = 0.5 * min(step / 20, 1)
        clipped = tree.map(lambda g: (0.7 * g).clamp(-0.4, 0.4), gradient(y, step))
        z = tree.map(lambda a, g, rate=now: a - rate * g, z, clipped)
        largest = max(largest, now)
        total += largest**2
        c = largest**2 / total if total else 0.0
        x = tree.map(lambda a, b, c=c: (1 - c) * a + c * b, x, z)
        torch.testing.assert_close(params, tree.map(lambda a, b: 0.2 * a + 0.8 * b, z, x))
        torch.testing.assert_close(optimizer.value(params, state), x, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rate", [1e-30, 1e18, 1e30])
def test_rates_of_any_size_have_finite_weights(rate: float) -> None:
    optimizer = optim.schedule_free_sgd(rate)
    params = torch.ones(2)
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(torch.zeros(2), state, params)
        params = optim.apply_updates(params, updates)
    assert state.weight_sum == 3
    assert torch.equal(optimizer.value(params, state), torch.ones(2))


def test_groups_and_chains_have_the_value_of_their_parts() -> None:
    """Of leaves by a label; those of another optimizer are evaluated as they are trained."""
    groups = {"kernel": optim.schedule_free_sgd(0.3), "rest": optim.sgd(0.1, momentum=0.9)}
    both = optim.multi_transform(groups, lambda path, leaf: "kernel" if leaf.ndim > 1 else "rest")
    optimizer = optim.chain(optim.clip_by_global_norm(9.0), both)
    *_, (params, state) = trained(optimizer, 10)
    *_, (alone, alone_state) = trained(groups["kernel"], 10)
    value = optimizer.value(params, state)
    assert torch.equal(value["b"], params["b"])
    expected = groups["kernel"].value(alone, alone_state)["w"]
    torch.testing.assert_close(value["w"], expected, rtol=1e-12, atol=1e-13)
    assert not torch.equal(value["w"], params["w"])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_before_the_first_step_the_value_is_the_parameters(name: str) -> None:
    optimizer = optim.OPTIMIZERS[name](0.1)
    params = models.lenet().init(random.key(0)).params
    assert tree.equal(optimizer.value(params, optimizer.init(params)), params)


def test_what_is_evaluated_learns(make_batch) -> None:
    model, optimizer = models.lenet(), optim.schedule_free_sgd(0.5)
    state, batch = init_train_state(model, optimizer, key=random.key(0)), make_batch(32)
    step, eval_step = make_train_step(model, optimizer), make_eval_step(model)

    def loss(state: TrainState) -> float:
        return float(eval_step(eval_variables(state, optimizer), batch).loss.mean())

    first = loss(state)
    for _ in range(80):
        state, _ = step(state, batch)
    assert loss(state) < 0.7 * first
    assert not tree.equal(eval_variables(state, optimizer), state.variables)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.schedule_free_sgd(0.1, 0.0), "needs b1 above 0 and below 1.* not 0.0"),
        (lambda: optim.schedule_free_adamw(0.1, 1.0), "needs b1 above 0 and below 1.* not 1.0"),
        (lambda: optim.schedule_free_sgd(0.1, weight_lr_power=-1), "weight_lr_power of 0 or more"),
        (lambda: optim.schedule_free_sgd(0.1, weight_count_power=-1), "weight_count_power of 0 or"),
    ],
)
def test_misuse_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
