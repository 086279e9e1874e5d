"""What tests of runs share: a run of a recipe, a run to a signal, and what it logged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcifar.data import Dataset
from fcifar.recipes import Recipe
from fcifar.train import loop, metrics_log
from fcifar.train.config import CheckpointConfig, make_config
from fcifar.train.loop import Interrupted
from fcifar.train.runtime import Runtime

SEED = 5
DEFAULT = CheckpointConfig()
WALL_CLOCK = {"seconds", "images_per_second"}  # in a log, what differs from run to run


def train(
    run: Path,
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    *,
    seed: int = SEED,
    compile: bool = False,
    checkpoint: CheckpointConfig = DEFAULT,
    **options: Any,
) -> dict[str, Any] | Interrupted:
    """``loop.train`` of a recipe, in one line. ``options`` are those of the loop."""
    config = make_config(
        recipe, dataset, seed=seed, runtime=runtime, compile=compile, checkpoint=checkpoint
    )
    return loop.train(run, config, dataset, **options)


def after(steps: int, signum: int = 15) -> Callable[[], int | None]:
    """The question that interrupts a run after so many steps."""
    asked = iter(range(steps))  # the loop asks before each step
    return lambda: None if next(asked, None) is not None else signum


def records(run: Path) -> list[dict[str, Any]]:
    """The log of a run with its digests, without what the clock says."""
    return [
        {name: value for name, value in record.items() if name not in WALL_CLOCK}
        for record in metrics_log.read_digests(run)
    ]
