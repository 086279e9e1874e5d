"""Optimizers, their parts and schedules against golden values of optax, in float64.

``golden/optax.json`` says what made it. What is called there by a name is called here by the same
name with the same arguments. On purpose different, and not compared:

* ``muon``: optax's corrects a bias and has other defaults; ``test_muon.py`` compares its part.
* ``averaging.ema`` averages the network; ``optax.ema`` averages gradients.
* ``piecewise_linear_schedule`` takes points, ``warmup`` any schedule, and ``multi_transform`` a
  function for its labels.
* A schedule is computed in the dtype of the gradients, where optax has float32 from its int32
  count: the golden values are of schedules that were given the count in float64.
* ``multi_transform`` leaves out, state and all, what no leaf has as its label.
* Counts are int64; a correction of a bias near 1 keeps the digits that optax's
  ``1 - decay**count`` loses, so Adam is compared to 1e-12 and all else to 1e-14.

With ``--long`` an installed optax (the extra ``jax``) takes many more steps beside ours, with drawn
options.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fcifar import averaging, optim, random, schedules, tree
from fcifar.optim import Optimizer
from tests.golden.make_optax import call, made

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/optax.json").read_text())


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


# An installed optax ------------------------------------------------------------------------------


def drawn_schedule(draw: Random) -> dict[str, Any]:
    start, end, steps = draw.uniform(0, 1), draw.choice([0.0, 1e-8, 0.3]), draw.randint(1, 60)
    kinds = {
        "constant_schedule": lambda: call("constant_schedule", start),
        "linear_schedule": lambda: call("linear_schedule", start, end, steps),
        "cosine_decay_schedule": lambda: call("cosine_decay_schedule", start, steps, end),
        "join_schedules": lambda: call(
            "join_schedules",
            [call("linear_schedule", end, start, steps), call("constant_schedule", start)],
            [steps],
        ),
    }
    return kinds[draw.choice(list(kinds))]()


def drawn_part(draw: Random, name: str) -> dict[str, Any]:
    """A call of that name with arguments that are drawn."""
    rate = drawn_schedule(draw) if draw.random() < 0.4 else 10 ** draw.uniform(-5, 0)
    decay = draw.choice([0.0, 0.5, 0.9, 0.99, draw.random()])
    moments = {"b1": decay, "b2": draw.uniform(0.5, 0.9999), "eps": 10 ** draw.uniform(-10, -2)}
    kinds = {
        "sgd": lambda: call(
            "sgd", rate, momentum=draw.choice([None, decay]) if draw.random() < 0.5 else decay
        ),
        "nesterov": lambda: call("sgd", rate, momentum=decay, nesterov=True),
        "adam": lambda: call("adam", rate, **moments),
        "adamw": lambda: call("adamw", rate, **moments, weight_decay=draw.uniform(0, 0.3)),
        "scale": lambda: call("scale", draw.gauss(0, 1)),
        "scale_by_learning_rate": lambda: call("scale_by_learning_rate", rate),
        "scale_by_schedule": lambda: call("scale_by_schedule", drawn_schedule(draw)),
        "scale_by_adam": lambda: call("scale_by_adam", **moments),
        "trace": lambda: call("trace", decay, nesterov=draw.random() < 0.5),
        "add_decayed_weights": lambda: call("add_decayed_weights", draw.uniform(0, 0.3)),
        "clip": lambda: call("clip", draw.uniform(0.1, 2)),
        "clip_by_global_norm": lambda: call("clip_by_global_norm", draw.uniform(0.1, 6)),
        "set_to_zero": lambda: call("set_to_zero"),
    }
    if name == "chain":
        return call("chain", *(drawn_part(draw, draw.choice(list(kinds))) for _ in range(3)))
    return kinds[name]()


NAMES = (
    *("sgd", "nesterov", "adam", "adamw", "scale", "scale_by_learning_rate", "scale_by_schedule"),
    *("scale_by_adam", "trace", "add_decayed_weights", "clip", "clip_by_global_norm"),
    *("set_to_zero", "chain"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_steps_equal_an_installed_optaxs(name: str) -> None:
    """Sixty float64 steps with drawn options, on leaves of several shapes, one without elements."""
    jax = pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    optax = pytest.importorskip("optax", reason="needs optax: pip install 'fcifar[jax]'")

    def theirs(found: str) -> Any:
        function = getattr(optax, found)
        if not found.endswith("_schedule") or found.startswith("scale_by"):
            return function
        return lambda *args: lambda count: function(*args)(count.astype(jax.numpy.float64))

    leaves = {"a": (2, 3), "c": (4,), "d": (), "e": (0,)}
    with jax.enable_x64(True):
        for seed in range(5):
            case = drawn_part(Random(f"{name} {seed}"), name)
            ours, optimizer = made(case, find), made(case, theirs)
            keys = iter(random.split(random.key(seed), 1000))
            params = {n: random.normal(next(keys), s).double() for n, s in leaves.items()}
            state, twin = ours.init(params), {n: p.numpy() for n, p in params.items()}
            twin_state, step = optimizer.init(twin), jax.jit(optimizer.update)
            for _ in range(60):
                grads = {n: random.normal(next(keys), s).double() for n, s in leaves.items()}
                grads["a"][0, 0] = 0.0
                updates, state = ours.update(grads, state, params)
                params = optim.apply_updates(params, updates)
                given = {n: g.numpy() for n, g in grads.items()}
                twin_updates, twin_state = step(given, twin_state, twin)
                twin = optax.apply_updates(twin, twin_updates)
                for path, leaf in params.items():
                    expected = torch.from_numpy(np.array(twin[path]))
                    torch.testing.assert_close(leaf, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_schedules_equal_an_installed_optaxs_at_every_step() -> None:
    """In float32, where optax's own lines end an unit in the last place or two from their ends."""
    jax = pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    optax = pytest.importorskip("optax", reason="needs optax: pip install 'fcifar[jax]'")
    counts = list(range(70))
    for seed in range(100):
        case = drawn_schedule(Random(seed))
        schedule = made(case, lambda name: getattr(optax, name))
        theirs = [float(schedule(jax.numpy.asarray(i))) for i in counts]
        found = made(case, find)(torch.tensor(counts))
        torch.testing.assert_close(found, torch.tensor(theirs), rtol=1e-5, atol=2e-7)


@pytest.mark.slow
def test_without_parameters_states_are_an_installed_optaxs() -> None:
    jax = pytest.importorskip("jax", reason="needs jax: pip install 'fcifar[jax]'")
    optax = pytest.importorskip("optax", reason="needs optax: pip install 'fcifar[jax]'")
    assert float(optax.tree.norm({})) == float(tree.norm({})) == 0
    for name in NAMES:
        case = drawn_part(Random(name), name)
        ours, theirs = made(case, find), made(case, lambda found: getattr(optax, found))
        updates, state = ours.update({}, ours.init({}), {})
        twin_updates, twin_state = theirs.update({}, theirs.init({}), {})
        assert updates == twin_updates == {}
        counts = [int(leaf) for leaf in tree.leaves(state)]
        assert counts == [int(leaf) for leaf in jax.tree.leaves(twin_state)], name
