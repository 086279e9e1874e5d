"""Optimizers, their parts and schedules against golden values of optax, in float64.

``golden/optax.json`` says what made it. What is called there by a name is called here by the same
name with the same arguments. On purpose different, and not compared:

* ``muon``: optax's corrects a bias and has other defaults; ``test_muon.py`` compares its part.
* ``averaging.ema`` averages the network; ``optax.ema`` averages gradients.
* ``piecewise_linear_schedule`` takes points, ``warmup`` any schedule, and ``multi_transform`` a
  function for its labels.
* A schedule is computed in the dtype of the gradients, where optax has float32 from its int32
  count: the golden values are of schedules that were given the count in float64.
* Counts are int64; a correction of a bias near 1 keeps the digits that optax's
  ``1 - decay**count`` loses, so Adam is compared to 1e-12 and all else to 1e-14.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fcifar import averaging, optim, schedules, tree
from fcifar.optim import Optimizer
from tests.golden.make_optax import made

GOLDEN = json.loads((Path(__file__).parent / "golden/optax.json").read_text())


def find(name: str) -> Any:
    return getattr(optim, name, None) or getattr(schedules, name)


def tensors(leaves: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.tensor(leaf, dtype=torch.float64) for name, leaf in leaves.items()}


def steps(optimizer: Optimizer) -> Iterator[tuple[Any, Any, Any]]:
    """Updates, parameters and state after each of the gradients."""
    params = tensors(GOLDEN["params"])
    state = optimizer.init(params)
    for grads in GOLDEN["grads"]:
        updates, state = optimizer.update(tensors(grads), state, params)
        params = optim.apply_updates(params, updates)
        yield updates, params, state


def parts(state: Any) -> dict[str, Any]:
    """Moments, traces and counts, wherever they are in a state."""
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return {name: value for each in state for name, value in parts(each).items()}
    return state._asdict()


def check(found: Any, golden: dict[str, Any], name: str = "") -> None:
    rtol = 1e-12 if "adam" in name else 1e-14
    assert found.keys() == golden.keys()
    for path, leaf in tensors(golden).items():
        torch.testing.assert_close(found[path], leaf, rtol=rtol, atol=1e-16)


@pytest.mark.parametrize("name", GOLDEN["optimizers"])
def test_updates_parameters_and_states_are_optaxs(name: str) -> None:
    golden = GOLDEN["optimizers"][name]
    ours = list(steps(made(golden["case"], find)))
    for (updates, _, _), expected in zip(ours, golden["updates"], strict=True):
        check(updates, expected, name)
    _, params, state = ours[-1]
    check(params, golden["params"], name)
    found = parts(state)
    assert found.keys() == golden["state"].keys()
    for field, value in found.items():
        if field == "count":
            assert value == golden["state"][field]
        else:
            check(value, golden["state"][field], name)


def test_clipping_was_tried_on_both_sides() -> None:
    norms = [tree.norm(tensors(grads)) for grads in GOLDEN["grads"]]
    assert all(0.5 < norm < 50 for norm in norms)


def test_groups_are_optaxs() -> None:
    optimizer = optim.multi_transform(
        {"kernel": optim.sgd(0.1, momentum=0.9), "rest": optim.adam(0.01)},
        lambda path, leaf: "kernel" if leaf.ndim > 1 else "rest",
    )
    for (updates, _, _), expected in zip(steps(optimizer), GOLDEN["multi_transform"], strict=True):
        check(updates, expected, "adam")


def test_lookahead_is_optaxs() -> None:
    """``decay`` is 1 - ``slow_step_size``."""
    params = tensors(GOLDEN["params"])
    optimizer, average = optim.sgd(0.1, momentum=0.9), averaging.lookahead(0.7, every=2)
    state, slow = optimizer.init(params), average.init(params)
    for grads, fast in zip(GOLDEN["grads"], GOLDEN["lookahead"]["fast"], strict=True):
        updates, state = optimizer.update(tensors(grads), state, params)
        params, slow = average.update(optim.apply_updates(params, updates), slow)
        check(params, fast)
    check(average.value(params, slow), GOLDEN["lookahead"]["slow"])


@pytest.mark.parametrize("name", GOLDEN["schedules"])
def test_schedules_are_optaxs(name: str) -> None:
    golden = GOLDEN["schedules"][name]
    check_schedule(made(golden["case"], find), golden["values"])


def test_warmup_is_optaxs() -> None:
    cosine = schedules.cosine_decay_schedule(0.9, 8, alpha=0.1)
    golden = GOLDEN["warmup_cosine_decay_schedule"]
    check_schedule(schedules.warmup(cosine, 0.1, 0.9, 3), golden)


def check_schedule(schedule: Any, values: list[float]) -> None:
    for count, expected in zip(GOLDEN["counts"], values, strict=True):
        found = schedule(torch.tensor(count, dtype=torch.float64))
        assert float(found) == pytest.approx(expected, rel=1e-14, abs=1e-16)
