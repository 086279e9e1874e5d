"""fcifar: CIFAR-10 image classification as pure functions in PyTorch.

    import fcifar

    model = fcifar.models.lenet()
    optimizer = fcifar.optim.sgd(1e-3, momentum=0.9)
    state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    train_step = fcifar.make_train_step(model, optimizer)
    state, metrics = train_step(state, fcifar.Batch(images, labels))

Importing this package has no side effect, and loads torch only when a name is first used: the
command line stays quick. The examples of its docstrings begin with ``import torch, fcifar``.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fcifar import (
        analysis,
        augment,
        averaging,
        fingerprint,
        grads,
        layers,
        losses,
        metrics,
        models,
        optim,
        parallel,
        precision,
        privacy,
        random,
        recipes,
        schedules,
        step,
        step_transforms,
        tree,
    )
    from fcifar.analysis.example_scores import Scores, make_score_step
    from fcifar.errors import ExternalError, UsageError
    from fcifar.metrics import Metrics
    from fcifar.models import Model, Variables
    from fcifar.optim import Optimizer, apply_updates
    from fcifar.precision import Policy
    from fcifar.step import (
        Batch,
        EvalOutput,
        Shard,
        TrainState,
        init_train_state,
        make_eval_step,
        make_train_step,
        normalize,
    )
    from fcifar.step_transforms import compile_step, on_indices

__version__ = "0.1.0"


class _Moment(NamedTuple):
    monotonic: float  # seconds of ``time.monotonic``
    processor: float  # seconds of ``time.process_time``


IMPORTED = _Moment(time.monotonic(), time.process_time())  # see train.environment

__all__ = [
    "Batch",
    "EvalOutput",
    "ExternalError",
    "Metrics",
    "Model",
    "Optimizer",
    "Policy",
    "Scores",
    "Shard",
    "TrainState",
    "UsageError",
    "Variables",
    "analysis",
    "apply_updates",
    "augment",
    "averaging",
    "compile_step",
    "fingerprint",
    "grads",
    "init_train_state",
    "layers",
    "losses",
    "make_eval_step",
    "make_score_step",
    "make_train_step",
    "metrics",
    "models",
    "normalize",
    "on_indices",
    "optim",
    "parallel",
    "precision",
    "privacy",
    "random",
    "recipes",
    "schedules",
    "step",
    "step_transforms",
    "tree",
]

_HOMES = {
    "errors": ("UsageError", "ExternalError"),
    "analysis.example_scores": ("Scores", "make_score_step"),
    "metrics": ("Metrics",),
    "models": ("Model", "Variables"),
    "optim": ("Optimizer", "apply_updates"),
    "precision": ("Policy",),
    "step": (
        "Batch",
        "EvalOutput",
        "Shard",
        "TrainState",
        "init_train_state",
        "make_eval_step",
        "make_train_step",
        "normalize",
    ),
    "step_transforms": ("compile_step", "on_indices"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"fcifar.{_HOME_OF[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fcifar.{name}")
    raise AttributeError(f"module 'fcifar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
