"""Saving and loading of checkpoints and models."""

import json
import shutil
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from fcifar import io, recipes, tensor_files, tree
from fcifar.errors import DamagedError
from fcifar.models import Variables
from fcifar.step_transforms import LoopState
from fcifar.train import run_dir
from fcifar.train.config import RunConfig
from fcifar.train.metrics_log import MetricsLog, Position

_DAMAGED = ".damaged"


@dataclass
class Timings:
    """Seconds spent so far, summed over all resumptions of a run."""

    adapt: float = 0.0  # initialisation, with adaptation to images
    train: float = 0.0
    compile: float = 0.0
    valid: float = 0.0
    safeguard: float = 0.0  # digests and checkpoints; included in train


def save(run: Path, config: RunConfig, state: LoopState, timings: Timings, log: MetricsLog) -> None:
    """Write a checkpoint, then remove all but the latest ones.

    Raises an ExternalError if it cannot be written; no earlier checkpoint is removed then.
    """
    log.sync()
    records = {"timings": asdict(timings), "log": log.position._asdict()}
    metadata = {name: json.dumps(record) for name, record in records.items()}
    tensor_files.save(run_dir.checkpoint_path(run, int(state.state.step)), state, metadata)
    for old in list(run_dir.list_checkpoints(run).values())[config.checkpoint.keep_checkpoints :]:
        old.unlink(missing_ok=True)


def restore(
    run: Path, like: LoopState, log: MetricsLog, steps: Container[int] | None = None
) -> tuple[LoopState, Timings, list[str]]:
    """Load the latest valid checkpoint, and truncate the log to it.

    A checkpoint is renamed if it or its part of the log is damaged, and the one before it is used.

    Args:
        like: the initial state, on the devices to restore to.
        steps: use only checkpoints of these steps, and remove the others.

    Returns:
        State, timings, and a message for each damaged checkpoint. Without a checkpoint the state is
        ``like``.
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
        notes.append("no checkpoint is left; the run starts again from step 0")
    log.rewind(Position())
    return like, Timings(), notes


def read_metadata(metadata: Mapping[str, str], path: Path) -> tuple[Timings, Position]:
    """Parse the metadata of a checkpoint. Raises a DamagedError."""
    try:
        timings = Timings(**json.loads(metadata["timings"]))
        return timings, Position(**json.loads(metadata["log"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is not a checkpoint of a run: {error!r}") from error


def _set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, and copy the log to go with it."""
    try:
        path.replace(path.with_name(path.name + _DAMAGED))
        for log in (path.with_name(name) for name in (run_dir.METRICS, run_dir.DIGESTS)):
            if log.exists():
                shutil.copyfile(log, log.with_name(log.name + _DAMAGED))
    except OSError as error:
        raise io.cannot_write(path, error) from error


def save_init(run: Path, values: Mapping[str, Tensor]) -> None:
    """Write the pretrained values that a run, or a group of runs, begins with."""
    tensor_files.save(run / run_dir.INIT, dict(values), {})


def load_init(run: Path, config: RunConfig) -> dict[str, Tensor]:
    """Read the pretrained values of a run or a group; empty if it has none.

    Raises:
        ExternalError: they are missing, or not those of the manifest.
    """
    if config.init is None:
        return {}
    values, _ = tensor_files.read(run / run_dir.INIT)
    if tree.digest(values) != config.init.digest:
        raise DamagedError(
            f"{run / run_dir.INIT} holds other values than the run began with, by the digest in "
            f"{run_dir.MANIFEST}"
        )
    return values


def save_model(path: Path, variables: Variables, config: RunConfig, classes: tuple) -> None:
    """Write parameters and buffers under the names of the module's state_dict."""
    metadata = {
        "recipe": json.dumps(recipes.to_dict(config.recipe)),
        "classes": json.dumps(classes),
        "seed": str(config.seed),
        "dataset": config.dataset,
        "dataset_digest": config.dataset_digest,
        "params_digest": tree.digest(variables.params),
    }
    tensor_files.save(path, {**variables.params, **variables.buffers}, metadata)


def load_model(path: Path, like: Variables) -> Variables:
    """Read what ``save_model`` wrote, onto the devices of ``like``."""
    tensors, _ = tensor_files.read(path)
    return fit_model(path, tensors, like)


def fit_model(path: Path, tensors: Mapping[str, Tensor], like: Variables) -> Variables:
    """Arrange the tensors of a model file, read from ``path``, as ``like``."""
    flat = tensor_files.fit(path, tensors, {**like.params, **like.buffers})
    params, buffers = ({name: flat[name] for name in part} for part in like)
    return Variables(params, buffers)
