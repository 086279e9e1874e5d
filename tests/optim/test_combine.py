"""Per-group transformations, and freezing."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fcifar import models, optim, random, schedules, tree
from fcifar.models.lenet import _LeNet
from fcifar.optim import Optimizer
from fcifar.precision import FP64
from fcifar.step import init_train_state, make_train_step


def by_kind(path: str, leaf: Tensor) -> str:
    return "bias" if path.endswith("bias") else "weight"


class Layers(NamedTuple):
    first: dict[str, Tensor]
    rest: tuple[dict[str, Tensor], list[Tensor]]


def some_params() -> Layers:
    """One of each container."""
    keys = random.split(random.key(0), 5)
    leaves = [random.normal(key, (3, 2)).double() for key in keys]
    return Layers(
        {"weight": leaves[0], "bias": leaves[1]},
        ({"weight": leaves[2], "bias": leaves[3]}, [leaves[4]]),
    )


def some_grads(i: int) -> Layers:
    return tree.map(lambda p: torch.cos(p + i), some_params())


def run(optimizer: Optimizer, params: Any, grads: list[Any]) -> tuple[Any, Any]:
    state = optimizer.init(params)
    for g in grads:
        updates, state = optimizer.update(g, state, params)
        assert tree.structure(updates) == tree.structure(params)
        params = optim.apply_updates(params, updates)
    return params, state


OPTIMIZERS = {
    "multi_transform": optim.multi_transform(
        {
            "weight": optim.chain(optim.clip_by_global_norm(0.1), optim.adam(0.1)),
            "bias": optim.sgd(schedules.linear_schedule(0.5, 0.0, 8), 0.9),
        },
        by_kind,
    ),
    "freeze_after": optim.chain(optim.sgd(0.1, 0.9), optim.freeze_after(2)),
    "set_to_zero": optim.set_to_zero(),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)


def test_groups_equal_torchs_parameter_groups(make_batch) -> None:
    """Rates, momentum and weight decay of their own, in float64."""
    optimizer = optim.multi_transform(
        {
            "weight": optim.chain(
                optim.add_decayed_weights(0.01), optim.sgd(0.02, 0.85, nesterov=True)
            ),
            "bias": optim.sgd(0.1, 0.5),
        },
        by_kind,
    )
    state = init_train_state(models.lenet(), optimizer, key=random.key(0), policy=FP64)
    step = make_train_step(models.lenet(), optimizer, policy=FP64)

    twin = _LeNet(84, 10).double()
    twin.load_state_dict(state.variables.params)
    named = dict(twin.named_parameters())
    twin_optimizer = torch.optim.SGD(
        [
            {
                "params": [p for n, p in named.items() if n.endswith("weight")],
                "lr": 0.02,
                "momentum": 0.85,
                "nesterov": True,
                "weight_decay": 0.01,
            },
            {
                "params": [p for n, p in named.items() if n.endswith("bias")],
                "lr": 0.1,
                "momentum": 0.5,
            },
        ]
    )
    for i in range(20):
        batch = make_batch(4, seed=i)
        state, _ = step(state, batch)
        twin_optimizer.zero_grad()
        images = (batch.images.float() / 255 - 0.5) / 0.5
        nn.functional.cross_entropy(twin(images.double()), batch.labels).backward()
        twin_optimizer.step()
    for name, p in named.items():
        torch.testing.assert_close(state.variables.params[name], p.detach(), rtol=0, atol=1e-10)


def test_groups_equal_optimizers_apart_in_any_tree() -> None:
    """What takes a norm takes that of its own leaves."""
    parts = {
        "weight": optim.chain(optim.clip_by_global_norm(0.1), optim.adam(0.1)),
        "bias": optim.sgd(0.5, 0.9),
    }
    grads = [some_grads(i) for i in range(5)]
    together, _ = run(optim.multi_transform(parts, by_kind), some_params(), grads)

    paths = list(tree.named_leaves(some_params()))
    assert paths == ["first.bias", "first.weight", "rest.0.bias", "rest.0.weight", "rest.1.0"]
    for name, part in parts.items():
        own = [path for path in paths if by_kind(path, torch.ones(())) == name]
        alone, _ = run(
            part,
            {path: tree.named_leaves(some_params())[path] for path in own},
            [{path: tree.named_leaves(g)[path] for path in own} for g in grads],
        )
        for path in own:
            assert torch.equal(tree.named_leaves(together)[path], alone[path])


def test_labels_may_go_by_shape_and_a_label_may_be_unused() -> None:
    optimizer = optim.multi_transform(
        {"cube": optim.adam(0.1), "matrix": optim.scale(-1.0)},
        lambda path, leaf: "cube" if leaf.ndim == 3 else "matrix",
    )
    params, state = run(optimizer, some_params(), [some_grads(0)])
    assert tree.equal(params, tree.map(lambda p, g: p - g, some_params(), some_grads(0)))
    assert list(state.inner_states) == ["matrix"]


def test_groups_nest() -> None:
    inner = optim.multi_transform({"weight": optim.scale(-2.0), "bias": optim.scale(-3.0)}, by_kind)
    outer = optim.multi_transform(
        {"inner": inner, "still": optim.set_to_zero()},
        lambda path, leaf: "inner" if path.startswith("first") else "still",
    )
    ones = tree.map(torch.ones_like, some_params())
    moved, _ = run(outer, tree.zeros_like(ones), [ones])
    found = {path: leaf[0, 0].item() for path, leaf in tree.named_leaves(moved).items()}
    assert found == {
        "first.bias": -3,
        "first.weight": -2,
        "rest.0.bias": 0,
        "rest.0.weight": 0,
        "rest.1.0": 0,
    }


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_frozen_after_so_many_steps(steps: int) -> None:
    optimizer = optim.chain(optim.sgd(0.1, 0.9), optim.freeze_after(steps))
    grads = [some_grads(i) for i in range(6)]
    expected, _ = run(optim.sgd(0.1, 0.9), some_params(), grads[:steps])
    found, _ = run(optimizer, some_params(), grads)
    assert tree.equal(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_frozen_has_updates_of_exactly_zero(value: float) -> None:
    g = torch.tensor([value, -0.0, 1.0], dtype=torch.bfloat16)
    for optimizer in (optim.freeze_after(0), optim.set_to_zero()):
        updates, _ = optimizer.update(g, optimizer.init(g), g)
        assert tree.equal(updates, torch.zeros_like(g))


@every_optimizer
def test_states_hold_tensors_alone(optimizer: Optimizer) -> None:
    state = optimizer.init(some_params())
    _, after = run(optimizer, some_params(), [some_grads(0)])
    assert tree.structure(after) == tree.structure(state)
    for a, b in zip(tree.leaves(after), tree.leaves(state), strict=True):
        assert isinstance(a, Tensor)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)


@every_optimizer
def test_mapped_over_seeds(optimizer: Optimizer) -> None:
    starts = [tree.map(lambda p, i=i: p + i, some_params()) for i in range(3)]
    grads = [some_grads(i) for i in range(4)]
    together = torch.vmap(lambda p: run(optimizer, p, grads))(
        tree.map(lambda *xs: torch.stack(xs), *starts)
    )
    for i, start in enumerate(starts):
        alone = run(optimizer, start, grads)
        picked = tree.map(lambda x, i=i: x[i], together)
        assert tree.structure(picked) == tree.structure(alone)
        for x, y in zip(tree.leaves(picked), tree.leaves(alone), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


@every_optimizer
def test_compiles_to_one_graph_and_never_again(optimizer: Optimizer) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(optimizer.update, backend=counting, fullgraph=True)
    params = other = some_params()
    state = other_state = optimizer.init(params)
    for i in range(4):
        updates, state = compiled(some_grads(i), state, params)
        params = optim.apply_updates(params, updates)
        updates, other_state = optimizer.update(some_grads(i), other_state, other)
        other = optim.apply_updates(other, updates)
        assert tree.equal((params, state), (other, other_state))
    assert len(graphs) <= 1  # set_to_zero computes nothing
    assert graphs or optimizer is OPTIMIZERS["set_to_zero"]


def test_misuse_is_named() -> None:
    optimizer = optim.multi_transform({"weight": optim.sgd(0.1), "other": optim.sgd(1)}, by_kind)
    message = "no transformation 'bias', the label of first.bias; it has weight, other"
    with pytest.raises(ValueError, match=message):
        optimizer.init(some_params())
    with pytest.raises(ValueError, match="distinct path"):
        optimizer.init({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
    for steps in (-1, 2.5, True):
        with pytest.raises(ValueError, match="0 or more"):
            optim.freeze_after(steps)  # type: ignore[arg-type]
