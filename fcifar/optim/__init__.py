"""Optimizers as pairs of pure functions, in optax's vocabulary.

An ``Optimizer`` turns gradients into updates; ``apply_updates`` adds them to the parameters::

    optimizer = chain(clip_by_global_norm(1.0), sgd(0.1, momentum=0.9))
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = apply_updates(params, updates)

Everything is built with ``chain`` out of a few transformations. States are NamedTuples, tuples and
dicts of tensors; counts are tensors too, so that no step ever recompiles.
"""

from fcifar.optim.alias import OPTIMIZERS, REGISTERED, adam, adamw, muon_and_sgd, register, sgd
from fcifar.optim.base import (
    CountState,
    EmptyState,
    Optimizer,
    apply_updates,
    chain,
    stateless,
)
from fcifar.optim.combine import (
    Label,
    MultiTransformState,
    freeze_after,
    multi_transform,
    set_to_zero,
)
from fcifar.optim.muon import muon, orthogonalize, renormalize_weights, scale_by_muon
from fcifar.optim.transforms import (
    AdamState,
    TraceState,
    add_decayed_weights,
    clip,
    clip_by_global_norm,
    scale,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_schedule,
    trace,
)

__all__ = [
    "OPTIMIZERS",
    "REGISTERED",
    "AdamState",
    "CountState",
    "EmptyState",
    "Label",
    "MultiTransformState",
    "Optimizer",
    "TraceState",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "clip",
    "clip_by_global_norm",
    "freeze_after",
    "multi_transform",
    "muon",
    "muon_and_sgd",
    "orthogonalize",
    "register",
    "renormalize_weights",
    "scale",
    "scale_by_adam",
    "scale_by_learning_rate",
    "scale_by_muon",
    "scale_by_schedule",
    "set_to_zero",
    "sgd",
    "stateless",
    "trace",
]
