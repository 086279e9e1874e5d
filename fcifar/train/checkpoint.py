"""Checkpoints: the state of a run on its way, and its models."""

import json
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

from fcifar import io, recipes, tensor_files, tree
from fcifar.errors import DamagedError
from fcifar.models import Variables
from fcifar.step_transforms import LoopState
from fcifar.train import run_dir
from fcifar.train.config import RunConfig
from fcifar.train.metrics_log import MetricsLog, Position

_DAMAGED = ".damaged"


class Timings(NamedTuple):
    """Seconds spent so far, over all resumptions of a run."""

    adapt: float = 0.0  # to initialise the model, and to adapt it to images
    train: float = 0.0
    compile: float = 0.0
    valid: float = 0.0
    safeguard: float = 0.0  # on digests and checkpoints; a part of train


def save(run: Path, config: RunConfig, state: LoopState, timings: Timings, log: MetricsLog) -> None:
    """Write a checkpoint, and only then remove all but the latest few.

    Raises:
        ExternalError: it cannot be written; the earlier checkpoints are then all there.
    """
    log.sync()
    metadata = {
        "timings": json.dumps(timings._asdict()),
        "log": json.dumps(log.position._asdict()),
    }
    tensor_files.save(run_dir.checkpoint_path(run, int(state.state.step)), state, metadata)
    for old in list(run_dir.list_checkpoints(run).values())[config.checkpoint.keep_checkpoints :]:
        old.unlink(missing_ok=True)


def restore(
    run: Path, like: LoopState, log: MetricsLog, steps: Container[int] | None = None
) -> tuple[LoopState, Timings, list[str]]:
    """The latest state that is whole, with the log cut back to it, to train on from there.

    A checkpoint that is damaged, or whose log is, is renamed, and the one before it is taken;
    without any, it is the beginning, ``like``. The last value says so, a line each.

    Args:
        like: a state of the same structure, on the devices to restore to.
        steps: use checkpoints of these steps alone, and remove the others.

    Raises:
        ExternalError: a file cannot be read or written.
    """
    io.remove_partial(run)
    (run / run_dir.NONFINITE).unlink(missing_ok=True)
    run_dir.write_checksums(run, [run_dir.MANIFEST])
    notes: list[str] = []
    for step, path in run_dir.list_checkpoints(run).items():
        if steps is not None and step not in steps:
            path.unlink()
            continue
        try:
            state, metadata = tensor_files.load(path, like)
            timings, position = read_metadata(metadata, path)
            log.rewind(position)
        except DamagedError as error:
            notes.append(f"checkpoint of step {step:,} is not used: {error}")
            _set_aside(path)
        else:
            return state, timings, notes
    if notes:
        notes.append("no checkpoint is left; the run starts again from its beginning")
    log.rewind(Position())
    return like, Timings(), notes


def read_metadata(metadata: Mapping[str, str], path: Path) -> tuple[Timings, Position]:
    """What the checkpoint at ``path`` has besides the state. Raises a DamagedError."""
    try:
        timings = Timings(**json.loads(metadata["timings"]))
        return timings, Position(**json.loads(metadata["log"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is not a checkpoint of a run: {error!r}") from error


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, and copy the log as it was then."""
    try:
        path.replace(path.with_name(path.name + _DAMAGED))
        for log in (path.with_name(name) for name in (run_dir.METRICS, run_dir.DIGESTS)):
            if log.exists():
                shutil.copyfile(log, log.with_name(log.name + _DAMAGED))
    except OSError as error:
        raise io.cannot_write(path, error) from error


def save_model(path: Path, variables: Variables, config: RunConfig, classes: tuple) -> None:
    """Write parameters and buffers under the names of the module's state_dict.

    The metadata says what is needed to use them, and what they come from.
    """
    tensor_files.save(
        path,
        {**variables.params, **variables.buffers},
        {
            "recipe": json.dumps(recipes.to_dict(config.recipe)),
            "classes": json.dumps(classes),
            "seed": str(config.seed),
            "dataset": config.dataset,
            "dataset_digest": config.dataset_digest,
            "params_digest": tree.digest(variables.params),
        },
    )


def load_model(path: Path, like: Variables) -> Variables:
    """What ``save_model`` wrote, in the structure and on the devices of ``like``."""
    flat, _ = tensor_files.load(path, {**like.params, **like.buffers})
    return Variables(
        {name: flat[name] for name in like.params}, {name: flat[name] for name in like.buffers}
    )
