"""Many at once: the same step for several states, as one more axis.

    keys = random.split(random.key(0), 8)
    states = init_replicas(lambda key: init_train_state(model, optimizer, key=key), keys)
    step = map_replicas(make_train_step(model, optimizer))
    states, metrics = step(states, Batch(images, labels))    # [8, B, 3, 32, 32], [8, B]

A replica is a row of every leaf. It differs from the others in its key, hence in its parameters and
its draws, and in whatever else the step takes as a tensor: a learning rate, say.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import tree
from fcifar.random import Key
from fcifar.tree import Tree

Step = Callable[[Any, Any], tuple[Any, Any]]


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one structure as one, with an axis in front: R leaves [...] become one [R, ...].

    Raises:
        ValueError: there are none.

    >>> fcifar.replicas.stack([{"w": torch.tensor(1)}, {"w": torch.tensor(2)}])
    {'w': tensor([1, 2])}
    """
    if not trees:
        raise ValueError("stack needs at least one tree")
    return tree.map(lambda *leaves: torch.stack(leaves), *trees)


def unstack(stacked: Tree, count: int) -> list[Tree]:
    """The ``count`` trees that ``stack`` was given, as views."""
    return [take(stacked, i) for i in range(count)]


def take(stacked: Tree, i: int) -> Tree:
    """Replica ``i`` of a stack, as views."""
    return tree.map(lambda leaf: leaf[i], stacked)


def init_replicas(init: Callable[[Key], Tree], keys: Tensor) -> Tree:
    """The states of several replicas in one.

    Args:
        init: the state of one, from its key.
        keys: [R, 2], as ``random.split`` gives them.

    >>> keys = fcifar.random.split(fcifar.random.key(0), 3)
    >>> states = fcifar.replicas.init_replicas(fcifar.models.lenet().init, keys)
    >>> states.params["fc3.bias"].shape
    torch.Size([3, 10])
    """
    return stack([init(key) for key in keys])


def map_replicas(step: Step) -> Step:
    """A step over the first axis of all that goes in and comes out, through ``torch.func.vmap``.

    One kernel then serves all replicas: that pays where kernels are small and cost a launch each,
    on a GPU. Convolutions whose weights differ become grouped ones, which the CPU is slow at: one
    compiled step, called for one replica after another, is faster there (docs/many-at-once.md).

    A replica's draws are those it has alone, to the bit; the rest agrees to rounding.

    >>> step = fcifar.replicas.map_replicas(lambda w, x: (w - x.mean(), x.sum()))
    >>> step(torch.tensor([1.0, 2.0]), torch.ones(2, 5))
    (tensor([0., 1.]), tensor([5., 5.]))
    """
    return vmap(step)
