"""Pytrees, by optree; no other module imports it.

A tree is a nested structure of NamedTuples, tuples, lists and dicts with tensors at the leaves.
``None`` is not a leaf. Dicts are traversed in sorted key order, so insertion order does not matter.
Only these containers are supported because optree, ``torch.vmap`` and ``torch.compile`` treat them
alike.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor

Tree = Any  # a nested structure of tensors, which Python's type system cannot express


def map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to corresponding leaves; the result has the structure of ``tree``.

    >>> fcifar.tree.map(torch.mul, {"a": torch.tensor(2)}, {"a": torch.tensor(3)})
    {'a': tensor(6)}
    """
    return optree.tree_map(function, tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves in traversal order.

    >>> fcifar.tree.leaves({"b": 1, "a": (2, 3)})
    [2, 3, 1]
    """
    if torch.compiler.is_dynamo_compiling():
        return _traced_leaves(tree)
    return optree.tree_leaves(tree)


def flatten(tree: Tree) -> tuple[list[Any], Callable[[list[Any]], Tree]]:
    """Return the leaves, and a function that rebuilds the structure from leaves.

    >>> leaves, unflatten = fcifar.tree.flatten({"b": 1, "a": (2, 3)})
    >>> unflatten([10 * leaf for leaf in leaves])
    {'b': 10, 'a': (20, 30)}
    """
    if torch.compiler.is_dynamo_compiling():
        return _traced_leaves(tree), lambda values: _rebuilt(tree, iter(values))
    flat, structure = optree.tree_flatten(tree)
    return flat, structure.unflatten


# Dynamo cannot trace optree's functions of a tree that is made inside and has an empty dict in it.


def _traced_leaves(tree: Tree) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in _traced_leaves(tree[name])]
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in _traced_leaves(part)]
    return [] if tree is None else [tree]


def _rebuilt(tree: Tree, leaves: Iterator[Any]) -> Tree:
    """Return ``tree`` with other leaves."""
    if isinstance(tree, dict):
        values = {name: _rebuilt(tree[name], leaves) for name in sorted(tree)}
        return {name: values[name] for name in tree}
    if isinstance(tree, tuple | list):
        parts = [_rebuilt(part, leaves) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return None if tree is None else next(leaves)


def structure(tree: Tree) -> Any:
    """Return the structure without leaves, hashable and comparable."""
    return optree.tree_structure(tree)


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """Return leaves by dotted path in traversal order: ``{"params.conv1.weight": ...}``.

    Path parts are field names of NamedTuples, keys of dicts, and indices of tuples and lists. A
    tree that is a single leaf has the empty path.

    >>> model = fcifar.models.lenet()
    >>> variables = model.init(fcifar.random.key(0))
    >>> list(fcifar.tree.named_leaves(variables))[:2]
    ['params.conv1.bias', 'params.conv1.weight']
    """
    accessors, flat, _ = optree.tree_flatten_with_accessor(tree)
    paths = (
        ".".join(e.field if isinstance(e, optree.NamedTupleEntry) else str(e.entry) for e in path)
        for path in accessors
    )
    return dict(zip(paths, flat, strict=True))


def device(tree: Tree) -> torch.device | None:
    """Return the device of the first leaf; None, torch's default device, if there is no leaf."""
    flat = leaves(tree)
    return flat[0].device if flat else None


def zeros_like(tree: Tree) -> Tree:
    """Return the tree with every leaf set to zero."""
    return map(torch.zeros_like, tree)


def add(a: Tree, b: Tree) -> Tree:
    """Add corresponding leaves."""
    return map(torch.add, a, b)


def norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, 0-d; 0 if there is no leaf.

    >>> fcifar.tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    tensor(5.)
    """
    flat = leaves(tree)
    if not flat:
        return torch.zeros(())
    return torch.stack([torch.sum(torch.square(leaf)) for leaf in flat]).sum().sqrt()


def equal(a: Tree, b: Tree) -> bool:
    """Whether structures, dtypes, shapes and bits are equal; 0.0 is not equal to -0.0.

    >>> fcifar.tree.equal({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)})
    False
    """
    if structure(a) != structure(b):
        return False
    return all(
        x.dtype == y.dtype and x.shape == y.shape and leaf_bytes(x) == leaf_bytes(y)
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )


def leaf_bytes(leaf: Tensor) -> bytes:
    """Return the elements of a tensor in row-major order, as bytes."""
    return memoryview(_raw(leaf)).tobytes()


def _raw(leaf: Tensor) -> Any:
    return leaf.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()


def digest(tree: Tree) -> str:
    """Return a SHA-256 over names, dtypes, shapes and bytes of the leaves, sorted by name.

    Equal digests mean bit-equal trees, on any device.

    >>> fcifar.tree.digest({"a": torch.zeros(2)})[:16]
    'd783eb36c02c1d3d'
    """
    sha = hashlib.sha256()
    for name, leaf in sorted(named_leaves(on_device(tree, "cpu")).items()):
        dtype = str(leaf.dtype).removeprefix("torch.")
        sha.update(f"{name} {dtype} {list(leaf.shape)}\n".encode())
        sha.update(memoryview(_raw(leaf)))
    return sha.hexdigest()


def differences(then: Tree, now: Tree) -> list[dict[str, Any]]:
    """Return where and by how much two trees differ: one entry per tensor with different bits."""
    a, b = named_leaves(then), named_leaves(now)
    return [
        {"tensor": name, **_distance(a[name], b[name])}
        for name in a
        if leaf_bytes(a[name]) != leaf_bytes(b[name])
    ]


def _distance(then: Tensor, now: Tensor) -> dict[str, Any]:
    gap = (then.cpu().double() - now.cpu().double()).abs().nan_to_num(float("inf"))
    return {
        "largest_difference": gap.max().item(),
        "elements_differing": int((gap != 0).sum()) or None,  # None: only in the sign of a zero
        "elements": gap.numel(),
    }


def on_device(tree: Tree, device: str | torch.device) -> Tree:
    """Move every leaf to ``device``: to or from the CPU, all in one copy."""
    flat, unflatten = flatten(tree)
    to_cpu = torch.device(device) == torch.device("cpu")
    crosses = all(leaf.is_cuda if to_cpu else leaf.is_cpu for leaf in flat)
    if len(flat) < 2 or not crosses or not all(leaf.is_contiguous() for leaf in flat):
        return map(lambda leaf: leaf.to(device), tree)
    # The largest elements first, so that every leaf is aligned in the common memory.
    order = sorted(range(len(flat)), key=lambda i: -flat[i].element_size())
    parts = [flat[i].detach().reshape(-1).view(torch.uint8) for i in order]
    moved = torch.cat(parts).to(device).split([len(part) for part in parts])
    for i, part in zip(order, moved, strict=True):
        flat[i] = part.view(flat[i].dtype).reshape(flat[i].shape).clone()
    return unflatten(flat)
