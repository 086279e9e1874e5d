"""A cheap hash of every tensor of a tree, computed on the device of the tensors.

A tensor is read as 32-bit words ``w[0], w[1], ...`` in row-major order. Its hash is

    (m[0] * w[0] + m[1] * w[1] + ...)  modulo 2**64

with odd 64-bit multipliers drawn from a key once: multilinear hashing (Lemire and Kaser, "Strongly
universal string hashing is fast", 2014). A change within a single word always changes the hash; any
other change does so almost certainly. All arithmetic is on integers, so that equal bits have equal
hashes on every device, in every version and in any order of summation.

The hash detects accidental changes, not forgery. For files, use ``tree.digest``, which is SHA-256.
"""

from typing import Any

import torch
from torch import Tensor

from fcifar import random, tree
from fcifar.random import Key
from fcifar.tree import Tree


def draw_multipliers(key: Key, like: Tree) -> Tensor:
    """Draw odd multipliers for trees with the shapes and dtypes of ``like``: int64 [n], on its
    device.
    """
    sizes = [words(leaf).numel() for leaf in tree.leaves(like)]
    high, low = random.bits(key, (max([len(sizes), *sizes]), 2)).unbind(-1)
    return ((high << 32) | low | 1).to(tree.device(like) or key.device)


def hash_leaves(multipliers: Tensor, values: Tree) -> Tensor:
    """Return the hash of each leaf in the order of ``tree.leaves``: int64 [leaves].

    Does not synchronise with the device.
    """
    hashes = [
        (multipliers[: w.numel()] * w).sum()
        for w in (words(leaf).to(torch.int64) for leaf in tree.leaves(values))
    ]
    return torch.stack(hashes) if hashes else multipliers[:0]


def combine(multipliers: Tensor, hashes: Tensor) -> Tensor:
    """Combine the hashes of the leaves into one: int64 []."""
    return (multipliers[: len(hashes)] * hashes).sum()


def hash_tree(multipliers: Tensor, values: Tree) -> Tensor:
    """Return the hash of each leaf, and then that of the tree: int64 [leaves + 1]."""
    hashes = hash_leaves(multipliers, values)
    return torch.cat([hashes, combine(multipliers, hashes).reshape(1)])


def digests(values: Tree, hashes: Tensor) -> dict[str, Any]:
    """Return ``hash_tree`` of values in hex: ``digest`` of the tree, and ``tensors`` of each leaf
    by dotted name.
    """
    *each, whole = map(to_hex, hashes.tolist())
    return {"digest": whole, "tensors": dict(zip(tree.named_leaves(values), each, strict=True))}


def words(leaf: Tensor) -> Tensor:
    """View the bits of a tensor in row-major order as signed integers of at most 32 bits."""
    flat = leaf.detach().contiguous().reshape(-1)
    if flat.dtype == torch.bool:
        return flat.view(torch.uint8)
    return flat.view({1: torch.int8, 2: torch.int16}.get(flat.element_size(), torch.int32))


def to_hex(value: int) -> str:
    """Format a signed 64-bit integer as 16 hexadecimal digits of its two's complement."""
    return f"{value & 0xFFFF_FFFF_FFFF_FFFF:016x}"
