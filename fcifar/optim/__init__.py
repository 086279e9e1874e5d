"""Optimizers as pure functions, with optax's names.

An ``Optimizer`` turns gradients into updates, which ``apply_updates`` adds to the parameters::

    optimizer = chain(clip_by_global_norm(1.0), sgd(0.1, momentum=0.9))
    opt_state = optimizer.init(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = apply_updates(params, updates)

All optimizers are chains of a few transformations. States are NamedTuples, tuples and dicts of
tensors. Counts are tensors too, so that a step is never recompiled. Numbers out of range raise a
ValueError; the values of tensors are not checked.
"""

from fcifar.optim.alias import OPTIMIZERS, REGISTERED, adam, adamw, muon_and_sgd, register, sgd
from fcifar.optim.as_torch import as_torch
from fcifar.optim.base import CountState, EmptyState, Optimizer, apply_updates, chain, stateless
from fcifar.optim.combine import (
    Label,
    MultiTransformState,
    freeze_after,
    multi_transform,
    set_to_zero,
)
from fcifar.optim.muon import (
    muon,
    orthogonalize,
    orthogonalize_each,
    renormalize_weights,
    scale_by_muon,
)
from fcifar.optim.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_adamw,
    schedule_free_sgd,
)
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

__all__ = ["OPTIMIZERS", "REGISTERED", "AdamState", "CountState", "EmptyState", "Label"]
__all__ += ["MultiTransformState", "Optimizer", "TraceState", "adam", "adamw"]
__all__ += ["add_decayed_weights", "apply_updates", "chain", "clip", "clip_by_global_norm"]
__all__ += ["freeze_after", "multi_transform", "muon", "muon_and_sgd", "orthogonalize"]
__all__ += ["ScheduleFreeState", "orthogonalize_each", "register", "schedule_free"]
__all__ += ["as_torch", "schedule_free_adamw", "schedule_free_sgd"]
__all__ += ["renormalize_weights", "scale", "scale_by_adam", "scale_by_learning_rate"]
__all__ += ["scale_by_muon", "scale_by_schedule", "set_to_zero", "sgd", "stateless", "trace"]
