"""The cheap hash: every bit counts, and nothing else does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcifar import random, tree
from fcifar.step import init_train_state
from fcifar.train import fingerprint

VALUES = {
    "float32": torch.tensor([1.5, -0.0, float("nan"), 3e38]),
    "float64": torch.tensor([1.5, 2.5], dtype=torch.float64),
    "bfloat16": torch.tensor([1.5, 2.5, 3.5], dtype=torch.bfloat16),
    "int64": torch.tensor([[-1, 2**40], [3, 4]]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(0.25),
    "empty": torch.zeros(0, 3),
}


def hashes(values: tree.Tree, seed: int = 0) -> list[int]:
    multipliers = fingerprint.draw_multipliers(random.key(seed), values)
    return fingerprint.hash_leaves(multipliers, values).tolist()


def whole(values: tree.Tree) -> int:
    multipliers = fingerprint.draw_multipliers(random.key(0), values)
    leaves = fingerprint.hash_leaves(multipliers, values)
    return int(fingerprint.combine(multipliers, leaves))


def test_a_tree_without_leaves_has_a_hash() -> None:
    assert hashes({}) == []
    assert whole({}) == 0


def flipped(leaf: torch.Tensor, bit: int) -> torch.Tensor:
    data = bytearray(tree.leaf_bytes(leaf))
    data[bit // 8] ^= 1 << bit % 8
    return torch.frombuffer(data, dtype=leaf.dtype).reshape(leaf.shape)


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("empty", "bool")])
def test_each_bit_of_each_dtype_counts(name: str) -> None:
    before, total = hashes(VALUES), whole(VALUES)
    position = list(tree.named_leaves(VALUES)).index(name)
    for bit in range(8 * len(tree.leaf_bytes(VALUES[name]))):
        values = {**VALUES, name: flipped(VALUES[name], bit)}
        after = hashes(values)
        assert [a != b for a, b in zip(after, before, strict=True)] == [
            i == position for i in range(len(before))
        ]
        assert whole(values) != total


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40), st.integers(0, 99))
def test_it_is_the_sum_that_the_docstring_says(words: list[int], seed: int) -> None:
    leaf = torch.tensor(words, dtype=torch.int32)
    multipliers = fingerprint.draw_multipliers(random.key(seed), leaf)
    assert all(m % 2 for m in multipliers.tolist())
    expected = sum(m * w for m, w in zip(multipliers.tolist(), words, strict=True)) % 2**64
    assert fingerprint.hash_leaves(multipliers, leaf).item() % 2**64 == expected
    assert (
        fingerprint.to_hex(fingerprint.hash_leaves(multipliers, leaf).item()) == f"{expected:016x}"
    )


def test_layout_in_memory_does_not_count(make_batch) -> None:
    images = make_batch(3).images
    other = images.contiguous(memory_format=torch.channels_last)
    assert hashes(images) == hashes(other)
    assert hashes(images) != hashes(images.permute(0, 1, 3, 2))


def test_moved_values_are_found() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 1.0, 3.0])
    assert hashes(a) != hashes(b)
    assert whole({"a": a, "b": b}) != whole({"a": b, "b": a})


def test_larger_trees_have_the_same_first_multipliers() -> None:
    """So that a tensor has the same hash in two networks, and two logs compare."""
    small, large = torch.ones(5), {"a": torch.ones(5), "b": torch.ones(500)}
    assert hashes(small)[0] == hashes(large)[0]
    assert hashes(small, seed=1) != hashes(small)


def test_it_follows_the_state_of_a_training_step(make_batch) -> None:
    from fcifar import models, optim

    model, optimizer = models.lenet(), optim.sgd(0.1, momentum=0.9)
    one, other = (init_train_state(model, optimizer, key=random.key(seed)) for seed in (0, 1))
    assert hashes(one) == hashes(init_train_state(model, optimizer, key=random.key(0)))
    assert hashes(one) != hashes(other)


@pytest.mark.cuda
def test_it_is_the_same_on_every_device() -> None:
    there = tree.map(lambda leaf: leaf.to("cuda"), VALUES)
    assert hashes(there) == hashes(VALUES)
