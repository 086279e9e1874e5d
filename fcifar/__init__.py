"""fcifar: CIFAR-10 image classification as pure functions in PyTorch.

    import fcifar

    model = fcifar.models.lenet()
    optimizer = fcifar.optim.sgd(1e-3, momentum=0.9)
    state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    train_step = fcifar.make_train_step(model, optimizer)
    state, metrics = train_step(state, fcifar.Batch(images, labels))

Importing this package has no side effects and does not import torch until a name is first used, so
that the command line starts quickly. Docstring examples assume ``import torch, fcifar``.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fcifar import (
        analysis,
        augment,
        averaging,
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


class _ImportTime(NamedTuple):
    monotonic: float  # time.monotonic(), in seconds
    processor: float  # time.process_time(), in seconds


IMPORTED = _ImportTime(time.monotonic(), time.process_time())  # see train.environment

__all__ = ["Batch", "EvalOutput", "ExternalError", "Metrics", "Model", "Optimizer", "Policy"]
__all__ += ["Scores", "Shard", "TrainState", "UsageError", "Variables", "analysis"]
__all__ += ["apply_updates", "augment", "averaging", "compile_step", "grads"]
__all__ += ["init_train_state", "layers", "losses", "make_eval_step", "make_score_step"]
__all__ += ["make_train_step", "metrics", "models", "normalize", "on_indices", "optim", "parallel"]
__all__ += ["precision", "privacy", "random", "recipes", "schedules", "step", "step_transforms"]
__all__ += ["tree"]

_MODULE_OF = {
    **dict.fromkeys(("UsageError", "ExternalError"), "errors"),
    **dict.fromkeys(("Scores", "make_score_step"), "analysis.example_scores"),
    **dict.fromkeys(("Model", "Variables"), "models"),
    **dict.fromkeys(("Optimizer", "apply_updates"), "optim"),
    **dict.fromkeys(("Batch", "EvalOutput", "Shard", "TrainState", "init_train_state"), "step"),
    **dict.fromkeys(("make_eval_step", "make_train_step", "normalize"), "step"),
    **dict.fromkeys(("compile_step", "on_indices"), "step_transforms"),
    "Metrics": "metrics",
    "Policy": "precision",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"fcifar.{_MODULE_OF[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"fcifar.{name}")
    raise AttributeError(f"module 'fcifar' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
