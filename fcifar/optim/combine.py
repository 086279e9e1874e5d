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
"""``(dotted path, leaf) -> label``, a function of name, shape and dtype only."""


class MultiTransformState(NamedTuple):
    """The states of the transformations, by label."""

    inner_states: dict[str, Any]


def multi_transform(transforms: Mapping[str, Optimizer], label: Label) -> Optimizer:
    """Apply to each leaf the transformation of its label.

    For biases at a tenth of the learning rate::

        multi_transform(
            {"weight": sgd(0.1), "bias": sgd(0.01)},
            lambda name, leaf: "bias" if name.endswith("bias") else "weight",
        )

    A transformation sees only its own leaves, as a dict by dotted path (as in
    ``tree.named_leaves``); norms are taken over these leaves. A transformation without leaves is
    left out and has no state.

    Args:
        transforms: by label.
        label: called at each update, and must always return the same label. It may read the shape
            and dtype of the leaf, but not its values.

    Raises:
        ValueError: from ``init``, if a label is not in ``transforms`` or two leaves have the same
            path.
    """

    def paths_by_label(params: Tree) -> dict[str, list[str]]:
        leaves = tree.named_leaves(params)
        if len(leaves) != len(tree.leaves(params)):
            raise ValueError("multi_transform needs a distinct path for every leaf")
        paths: dict[str, list[str]] = {}
        for path, leaf in leaves.items():
            name = label(path, leaf)
            if name not in transforms:
                raise ValueError(
                    f"multi_transform has no transformation {shown(name)}, the label of {path}; "
                    f"it has {', '.join(transforms)}"
                )
            paths.setdefault(name, []).append(path)
        return paths

    def init(params: Tree) -> MultiTransformState:
        leaves = tree.named_leaves(params)
        states = {
            name: transforms[name].init({path: leaves[path] for path in paths})
            for name, paths in paths_by_label(params).items()
        }
        return MultiTransformState(states)

    def update(
        grads: Tree, state: MultiTransformState, params: Tree
    ) -> tuple[Tree, MultiTransformState]:
        grad_leaves, param_leaves = tree.named_leaves(grads), tree.named_leaves(params)
        updates: dict[str, Tensor] = {}
        inner_states = {}
        for name, paths in paths_by_label(params).items():
            own_updates, inner_states[name] = transforms[name].update(
                {path: grad_leaves[path] for path in paths},
                state.inner_states[name],
                {path: param_leaves[path] for path in paths},
            )
            updates.update(own_updates)
        _, unflatten = tree.flatten(grads)
        return unflatten([updates[path] for path in grad_leaves]), MultiTransformState(inner_states)

    def value(params: Tree, state: MultiTransformState) -> Tree:
        leaves = tree.named_leaves(params)
        values = dict(leaves)
        for name, paths in paths_by_label(params).items():
            own = {path: leaves[path] for path in paths}
            values.update(transforms[name].value(own, state.inner_states[name]))
        _, unflatten = tree.flatten(params)
        return unflatten([values[path] for path in leaves])

    return Optimizer(init, update, value)


def set_to_zero() -> Optimizer:
    """Replace updates with zeros, which freezes the parameters."""
    return stateless(lambda grads, params: tree.zeros_like(grads))


def freeze_after(steps: int) -> Optimizer:
    """Pass on the first ``steps`` (an integer >= 0) updates, then replace updates with zeros.

    Use it at the end of a chain. The zeros are exact even if gradients are infinite.

    >>> optimizer = fcifar.optim.chain(fcifar.optim.sgd(1.0), fcifar.optim.freeze_after(1))
    >>> g, state = torch.tensor(2.0), optimizer.init(torch.tensor(0.0))
    >>> first, state = optimizer.update(g, state, g)
    >>> first, optimizer.update(g, state, g)[0]
    (tensor(-2.), tensor(0.))
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"freeze_after needs an integer number of steps, 0 or more, not {steps}")

    def update(grads: Tree, state: CountState, params: Tree) -> tuple[Tree, CountState]:
        moving = state.count < steps
        # Not a product with 0, which is NaN for an infinite gradient.
        updates = tree.map(lambda g: torch.where(moving, g, torch.zeros_like(g)), grads)
        return updates, CountState(state.count + 1)

    return Optimizer(lambda params: CountState(zero_count(params)), update)
