"""A model of which some parameters are not trained."""

import fnmatch
from collections.abc import Sequence

from torch import Tensor

from fcifar import random
from fcifar.errors import names_of, shown
from fcifar.models.base import Buffers, Model, Params, Variables, keep
from fcifar.precision import cast
from fcifar.random import Key

_STATISTICS = ".running_mean"


def freeze(model: Model, patterns: Sequence[str]) -> Model:
    """Return the model with the parameters that match a pattern as buffers.

    Gradients, optimizer and weight decay see the other parameters only. Training changes no buffer
    that matches, and a batch norm whose running statistics match normalises with them in training
    too. Dropout stays active.

    Args:
        patterns: of names of parameters and buffers, as in ``fnmatch``: ``conv1.*``.

    Raises:
        ValueError: a pattern matches nothing, or all parameters are frozen.

    >>> model = fcifar.models.freeze(fcifar.models.lenet(), ["conv*", "fc1.*", "fc2.*"])
    >>> list(model.init(fcifar.random.key(0)).params)
    ['fc3.weight', 'fc3.bias']
    """
    shapes = model.init(random.key(0, device="meta"))
    names = list(shapes.params)
    own = {name for name in names if _matches(name, patterns)}
    kept = own.union(name for name in shapes.buffers if _matches(name, patterns))
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in kept):
            raise ValueError(
                f"freeze has {shown(pattern)}, which matches no parameter; they are "
                f"{names_of(names)}"
            )
    if names and len(own) == len(names):
        raise ValueError(
            f"freeze is {shown(','.join(patterns))}, which leaves no parameter to train; the "
            f"parameters are {names_of(names)}"
        )
    norms = [n.removesuffix(_STATISTICS) for n in kept if n.endswith(_STATISTICS)]
    apply_all = model.apply_frozen(norms) if norms and model.apply_frozen else model.apply

    def split(whole: Variables) -> Variables:
        frozen = {name: value for name, value in whole.params.items() if name in own}
        params = {name: value for name, value in whole.params.items() if name not in own}
        return Variables(params, frozen | whole.buffers)

    def join(variables: Variables, like: Tensor | None = None) -> Variables:
        """The variables of ``model``; frozen parameters in the dtype of ``like``."""
        frozen: Params = {name: variables.buffers[name] for name in own}
        if like is not None:  # as the policy casts those that are trained
            frozen = cast(frozen, like.dtype)
        every = variables.params | frozen
        buffers = {name: v for name, v in variables.buffers.items() if name not in own}
        return Variables({name: every[name] for name in names}, buffers)

    def init(key: Key) -> Variables:
        return split(model.init(key))

    def adapt(variables: Variables, images: Tensor) -> Variables:
        return split(model.adapt(join(variables), images))

    def apply(
        variables: Variables, images: Tensor, *, key: Key | None = None, train: bool = False
    ) -> tuple[Tensor, Buffers]:
        logits, new = apply_all(join(variables, images), images, key=key, train=train)
        old = variables.buffers
        return logits, {name: old[name] if name in kept else new[name] for name in old}

    return Model(init, apply, keep if model.adapt is keep else adapt, model.versions)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
