"""Trees: names, equality, digest."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.models import Variables


class Point(NamedTuple):
    y: Tensor
    x: dict


def example() -> Point:
    return Point(y=torch.arange(3.0), x={"b": (torch.ones(2),), "a": torch.zeros(())})


def test_names_follow_fields_keys_and_positions() -> None:
    assert list(tree.named_leaves(example())) == ["y", "x.a", "x.b.0"]
    assert list(tree.named_leaves(torch.ones(1))) == [""]


def test_flatten_and_back() -> None:
    leaves, unflatten = tree.flatten(example())
    assert tree.equal(unflatten(leaves), example())


def test_equal_looks_at_bits_dtypes_shapes_and_structure() -> None:
    a = {"w": torch.tensor([0.0, float("nan")])}
    assert tree.equal(a, {"w": torch.tensor([0.0, float("nan")])})
    assert not tree.equal(a, {"w": torch.tensor([-0.0, float("nan")])})
    assert not tree.equal(a, {"w": a["w"].double()})
    assert not tree.equal(a, {"w": a["w"][None]})
    assert not tree.equal(a, {"v": a["w"]})
    assert not tree.equal((a,), [a])


def test_digest_is_of_content_alone() -> None:
    """The same names, dtypes, shapes and bytes; not the layout in memory or the order of a dict."""
    w, b = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    digest = tree.digest({"w": w, "b": b})
    assert digest == tree.digest({"b": b.clone(), "w": w.t().contiguous().t()})
    others = [
        {"w": w, "c": b},
        {"w": w.reshape(3, 2), "b": b},
        {"w": w.double(), "b": b},
        {"w": w + torch.eye(2, 3) * 1e-6, "b": b},
        {"w": w.to(torch.int32), "b": b},
    ]
    assert len({digest, *(tree.digest(x) for x in others)}) == 1 + len(others)
    # Written down once, to notice if the format ever changes.
    assert digest == "5d7e0095bd37ee13328b4189d56a8f17bcb2f9c76d717e87a3b1309e819d82c1"


def test_digest_takes_any_dtype() -> None:
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64):
        assert (
            len(tree.digest({"x": torch.ones(3, dtype=dtype), "y": torch.ones((), dtype=dtype)}))
            == 64
        )
        assert tree.digest(torch.empty(0, dtype=dtype))


def test_norm_is_of_all_leaves_together() -> None:
    assert tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor(4.0)}) == 5
    assert torch.equal(tree.norm({}), torch.zeros(())), "as optax.global_norm"
    assert tree.device({}) is None


def test_a_move_in_one_copy_changes_no_bit() -> None:
    values = {
        "a": torch.tensor([True, False, True]),
        "b": torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
        "c": (torch.tensor(7), torch.zeros(0, 3), torch.arange(5, dtype=torch.uint8)),
        "d": torch.arange(6.0, dtype=torch.float64).reshape(2, 3),
    }
    moved = tree.on_device(values, "cpu:0")  # another name, so that nothing is taken as it is
    assert tree.equal(values, moved)
    assert [leaf.dtype for leaf in tree.leaves(moved)] == [x.dtype for x in tree.leaves(values)]
    pointers = [leaf.untyped_storage().data_ptr() for leaf in tree.leaves(moved) if leaf.numel()]
    assert len(set(pointers)) == len(pointers)  # each can be saved and overwritten by itself
    turned = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(1)}
    assert tree.equal(turned, tree.on_device(turned, "cpu:0"))


def test_dynamo_traces_trees_with_empty_dicts() -> None:
    """The variables of a model without buffers, made inside of a compiled step."""

    def doubled(params: dict[str, Tensor]) -> tuple[Any, ...]:
        variables = Variables({name: value + 1 for name, value in params.items()}, {})
        flat, unflatten = tree.flatten(variables)
        return unflatten([2 * leaf for leaf in flat]), tree.leaves(variables), tree.norm(variables)

    params = {"b": torch.ones(2), "a": torch.zeros(3)}
    compiled = torch.compile(doubled, backend="eager", fullgraph=True)
    assert tree.equal(compiled(params), doubled(params))
