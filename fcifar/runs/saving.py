"""What a run saves on its way: its whole state, and networks."""

import json
from pathlib import Path
from typing import NamedTuple

from fcifar import recipes, tree
from fcifar.data import Dataset
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import checkpoint, directory
from fcifar.step import Running


class Clock(NamedTuple):
    """Seconds spent so far, over all the sittings of a run."""

    train: float = 0.0
    compile: float = 0.0
    valid: float = 0.0


def save_running(run: Path, running: Running, step: int, clock: Clock) -> None:
    """Write the checkpoint that ``restore_running`` reads."""
    metadata = {"step": str(step), "clock": json.dumps(clock._asdict())}
    checkpoint.save(run / directory.CHECKPOINT, running, metadata)


def restore_running(run: Path, like: Running) -> tuple[Running, Clock]:
    """The state to go on from, with the metrics log cut back to it.

    Without a checkpoint that is the beginning, ``like``.
    """
    path = run / directory.CHECKPOINT
    if not path.exists():
        directory.rewind_records(run, 0)
        return like, Clock()
    running, metadata = checkpoint.load(path, like)
    directory.rewind_records(run, int(metadata["step"]))
    return running, Clock(**json.loads(metadata["clock"]))


def save_network(
    path: Path, variables: Variables, recipe: Recipe, seed: int, dataset: Dataset
) -> None:
    """Write parameters and buffers under the names of the module's state_dict.

    The metadata says what is needed to use them, and what they come from.
    """
    checkpoint.save(
        path,
        {**variables.params, **variables.buffers},
        {
            "recipe": json.dumps(recipes.to_dict(recipe)),
            "classes": json.dumps(dataset.classes),
            "seed": str(seed),
            "dataset": dataset.name,
            "dataset_digest": dataset.digest,
            "params_digest": tree.digest(variables.params),
        },
    )


def read_network(path: Path, like: Variables) -> Variables:
    """What ``save_network`` wrote, in the structure and on the devices of ``like``."""
    flat, _ = checkpoint.load(path, {**like.params, **like.buffers})
    return Variables(
        {name: flat[name] for name in like.params}, {name: flat[name] for name in like.buffers}
    )
