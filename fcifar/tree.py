"""Pytrees: the one place that knows optree.

A tree is made of ``NamedTuple`` s, tuples, lists and dicts with tensors at the leaves. ``None`` is
not a leaf. Dicts are visited in the sorted order of their keys, so that two dicts that hold the
same things are the same tree.

The containers are kept to these few because optree, ``torch.vmap`` and ``torch.compile`` all treat
them alike.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

Tree = Any  # a nested structure of tensors; Python's type system cannot say more


def map(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``function`` to corresponding leaves; the result has the structure of ``tree``.

    >>> fcifar.tree.map(torch.mul, {"a": torch.tensor(2)}, {"a": torch.tensor(3)})
    {'a': tensor(6)}
    """
    return optree.tree_map(function, tree, *rest)


def leaves(tree: Tree) -> list[Any]:
    """The leaves in traversal order.

    >>> fcifar.tree.leaves({"b": 1, "a": (2, 3)})
    [2, 3, 1]
    """
    return optree.tree_leaves(tree)


def flatten(tree: Tree) -> tuple[list[Any], Callable[[list[Any]], Tree]]:
    """The leaves, and the function that puts leaves back into the same structure.

    >>> leaves, unflatten = fcifar.tree.flatten({"b": 1, "a": (2, 3)})
    >>> unflatten([10 * leaf for leaf in leaves])
    {'b': 10, 'a': (20, 30)}
    """
    flat, structure = optree.tree_flatten(tree)
    return flat, structure.unflatten


def structure(tree: Tree) -> Any:
    """A hashable, comparable description of the containers alone."""
    return optree.tree_structure(tree)


def named_leaves(tree: Tree) -> dict[str, Tensor]:
    """Leaves by dotted path, in traversal order: ``{"params.conv1.weight": ...}``.

    Fields of a NamedTuple appear by name, entries of a dict by key, items of a tuple or list by
    number. A tree that is a single leaf has the empty path.

    >>> model = fcifar.models.lenet()
    >>> variables = model.init(fcifar.random.key(0))
    >>> list(fcifar.tree.named_leaves(variables))[:2]
    ['params.conv1.bias', 'params.conv1.weight']
    """
    accessors, flat, _ = optree.tree_flatten_with_accessor(tree)
    return {
        ".".join(_part(entry) for entry in accessor): leaf
        for accessor, leaf in zip(accessors, flat, strict=True)
    }


def _part(entry: Any) -> str:
    if isinstance(entry, optree.NamedTupleEntry):
        return entry.field
    return str(entry.entry)


def device(tree: Tree) -> torch.device | None:
    """That of the first leaf; None, which is torch's default device, where there is no leaf."""
    flat = leaves(tree)
    return flat[0].device if flat else None


def zeros_like(tree: Tree) -> Tree:
    """The same tree with every leaf zero."""
    return map(torch.zeros_like, tree)


def add(a: Tree, b: Tree) -> Tree:
    """Leafwise sum."""
    return map(torch.add, a, b)


def norm(tree: Tree) -> Tensor:
    """Euclidean norm of all leaves taken as one vector, a 0-d tensor; 0 where there is no leaf.

    >>> fcifar.tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    tensor(5.)
    """
    flat = leaves(tree)
    if not flat:
        return torch.zeros(())
    return torch.stack([torch.sum(torch.square(leaf)) for leaf in flat]).sum().sqrt()


def equal(a: Tree, b: Tree) -> bool:
    """Same structure, dtypes, shapes and bits. NaN equals the same NaN; 0.0 is not -0.0.

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
    """A tensor's elements in row-major order, as bytes."""
    return memoryview(_raw(leaf)).tobytes()


def _raw(leaf: Tensor) -> Any:
    return leaf.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()


def digest(tree: Tree) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the leaves in sorted order of names.

    Equal digests mean equal trees, bit for bit, on whatever device they lie.

    >>> fcifar.tree.digest({"a": torch.zeros(2)})[:16]
    'd783eb36c02c1d3d'
    """
    sha = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        dtype = str(leaf.dtype).removeprefix("torch.")
        sha.update(f"{name} {dtype} {list(leaf.shape)}\n".encode())
        sha.update(memoryview(_raw(leaf)))
    return sha.hexdigest()


def differences(then: Tree, now: Tree) -> list[dict[str, Any]]:
    """Each tensor that differs in a bit, in the order of the tree: by how much, and where."""
    a, b = named_leaves(then), named_leaves(now)
    return [
        {"tensor": name, **_distance(a[name], b[name])}
        for name in a
        if leaf_bytes(a[name]) != leaf_bytes(b[name])
    ]


def _distance(then: Tensor, now: Tensor) -> dict[str, Any]:
    gap = (then.cpu().double() - now.cpu().double()).abs()
    gap = gap.nan_to_num(float("inf"))
    return {
        "largest_difference": gap.max().item(),
        "elements_differing": int((gap != 0).sum()) or None,  # None: only in the sign of a zero
        "elements": gap.numel(),
    }


def on_device(tree: Tree, device: str | torch.device) -> Tree:
    """The tree with every leaf on ``device``."""
    return map(lambda leaf: leaf.to(device), tree)
