"""Per-group transformations, and freezing."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.errors import shown
from fcifar.optim.base import CountState, Optimizer, stateless, zero_count
from fcifar.tree import Tree

Label = Callable[[str, Tensor], str]
"""``(dotted path, leaf) -> label``, of names, shapes and dtypes alone."""


class MultiTransformState(NamedTuple):
    """The states of the transformations, by label."""

    inner_states: dict[str, Any]


def multi_transform(transforms: Mapping[str, Optimizer], label: Label) -> Optimizer:
    """Each leaf to the transformation that its label names.

    For biases at a tenth of the rate::

        multi_transform(
            {"weight": sgd(0.1), "bias": sgd(0.01)},
            lambda name, leaf: "bias" if name.endswith("bias") else "weight",
        )

    A transformation sees its own leaves only, as a dict by dotted path (those of
    ``tree.named_leaves``): a norm that it takes is theirs. One whose label no leaf has is left out,
    and has no state.

    Args:
        transforms: by label.
        label: is asked again at each update, and must always answer the same; of the leaf it may
            read the shape and the dtype, not the values.

    Raises:
        ValueError: from ``init``, of a label that ``transforms`` lacks, or of two leaves with the
            same path.
    """

    def members(params: Tree) -> dict[str, list[str]]:
        """The paths of the leaves that each label in use names."""
        leaves = tree.named_leaves(params)
        if len(leaves) != len(tree.leaves(params)):
            raise ValueError("multi_transform needs a path of its own for every leaf")
        paths: dict[str, list[str]] = {}
        for path, leaf in leaves.items():
            found = label(path, leaf)
            if found not in transforms:
                raise ValueError(
                    f"multi_transform has no {shown(found)}, which is the label of {path}; "
                    f"it has {', '.join(transforms)}"
                )
            paths.setdefault(found, []).append(path)
        return paths

    def init(params: Tree) -> MultiTransformState:
        leaves = tree.named_leaves(params)
        return MultiTransformState(
            {
                name: transforms[name].init({path: leaves[path] for path in paths})
                for name, paths in members(params).items()
            }
        )

    def update(
        grads: Tree, state: MultiTransformState, params: Tree
    ) -> tuple[Tree, MultiTransformState]:
        grad_leaves, param_leaves = tree.named_leaves(grads), tree.named_leaves(params)
        updates: dict[str, Tensor] = {}
        inner_states = {}
        for name, paths in members(params).items():
            own_updates, inner_states[name] = transforms[name].update(
                {path: grad_leaves[path] for path in paths},
                state.inner_states[name],
                {path: param_leaves[path] for path in paths},
            )
            updates.update(own_updates)
        _, unflatten = tree.flatten(grads)
        in_order = [updates[path] for path in grad_leaves]
        return unflatten(in_order), MultiTransformState(inner_states)

    return Optimizer(init, update)


def set_to_zero() -> Optimizer:
    """Updates of zero: what it is given to stands still."""
    return stateless(lambda grads, params: tree.zeros_like(grads))


def freeze_after(steps: int) -> Optimizer:
    """The updates as they are for the first ``steps`` of them, then zero.

    It belongs at the end of a chain. The zeros are exact, whatever the gradients are.

    Raises:
        ValueError: ``steps`` is not a whole number of 0 or more.

    >>> optimizer = fcifar.optim.chain(fcifar.optim.sgd(1.0), fcifar.optim.freeze_after(1))
    >>> g, state = torch.tensor(2.0), optimizer.init(torch.tensor(0.0))
    >>> first, state = optimizer.update(g, state, g)
    >>> first, optimizer.update(g, state, g)[0]
    (tensor(-2.), tensor(0.))
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"freeze_after needs a number of steps, 0 or more, not {steps}")

    def update(grads: Tree, state: CountState, params: Tree) -> tuple[Tree, CountState]:
        moving = state.count < steps
        # where, not a product with 0: a gradient may be infinite.
        updates = tree.map(lambda g: torch.where(moving, g, torch.zeros_like(g)), grads)
        return updates, CountState(state.count + 1)

    return Optimizer(lambda params: CountState(zero_count(params)), update)
