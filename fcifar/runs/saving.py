"""What a run saves on its way: its whole state, and networks."""

import json
import re
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

from fcifar import recipes, tree
from fcifar.data import Dataset
from fcifar.data.files import cannot_write
from fcifar.errors import DamagedError
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.running import Running
from fcifar.runs import checkpoint, log
from fcifar.runs.log import Mark

_NAME = re.compile(r"checkpoint-([0-9]{8,})\.safetensors")
_DAMAGED = ".damaged"


class Clock(NamedTuple):
    """Seconds spent so far, over all the sittings of a run."""

    adapt: float = 0.0  # to initialise the network, and to adapt it to images
    train: float = 0.0
    compile: float = 0.0
    valid: float = 0.0
    safeguards: float = 0.0  # on digests and checkpoints; a part of train


class Place(NamedTuple):
    """Where a run is."""

    running: Running
    clock: Clock
    mark: Mark  # the end of its log


def path_of(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return run / f"checkpoint-{step:08}.safetensors"


def list_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, the latest first."""
    paths = ((_NAME.fullmatch(path.name), path) for path in run.iterdir())
    found = {int(match[1]): path for match, path in paths if match}
    return dict(sorted(found.items(), reverse=True))


def save_running(run: Path, place: Place, keep: int) -> None:
    """Write a checkpoint, and only then remove all but the latest ``keep``.

    Raises:
        WorldError: the disk refused; the earlier checkpoints are then all there.
    """
    log.sync(run)
    running, clock, mark = place
    metadata = {"clock": json.dumps(clock._asdict()), "log": json.dumps(mark._asdict())}
    checkpoint.save(path_of(run, int(running.state.step)), running, metadata)
    for old in list(list_checkpoints(run).values())[keep:]:
        old.unlink(missing_ok=True)


def load_running(path: Path, like: Running) -> Place:
    """What ``save_running`` wrote, in the structure and on the devices of ``like``.

    Raises:
        DamagedError: it is not what was written, or no checkpoint of such a run.
        WorldError: it is missing or cannot be read.
    """
    running, metadata = checkpoint.load(path, like)
    return Place(running, *_place_of(metadata, path))


def mark_of(metadata: Mapping[str, str], path: Path) -> Mark:
    """Where the log stood when the checkpoint at ``path`` was written. Raises a DamagedError."""
    return _place_of(metadata, path)[1]


def _place_of(metadata: Mapping[str, str], path: Path) -> tuple[Clock, Mark]:
    try:
        return Clock(**json.loads(metadata["clock"])), Mark(**json.loads(metadata["log"]))
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedError(f"{path} is not a checkpoint of a run: {error!r}") from error


def restore_running(
    run: Path, like: Running, seal: str, steps: Container[int] | None = None
) -> tuple[Place, list[str]]:
    """The latest state that is whole, with the metrics log cut back to it.

    With ``steps``, the latest of those alone; checkpoints after it are removed.

    A checkpoint that is damaged, or that the log does not lead to, is set aside under another
    name, and the one before it is taken; without any, it is the beginning, ``like``. The second
    value says so, a line each.

    Raises:
        WorldError: the disk refused.
    """
    notes: list[str] = []
    for step, path in list_checkpoints(run).items():
        if steps is not None and step not in steps:
            path.unlink()
            continue
        try:
            place = load_running(path, like)
            log.rewind(run, seal, place.mark)
        except DamagedError as error:
            notes.append(f"checkpoint of step {step:,} is not used: {error}")
            _set_aside(path)
        else:
            return place, notes
    if notes:
        notes.append("no checkpoint is left; the run starts again from its beginning")
    beginning = Mark(0, seal)
    log.rewind(run, seal, beginning)
    return Place(like, Clock(), beginning), notes


def _set_aside(path: Path) -> None:
    """Keep a damaged checkpoint, and the log as it was then, out of the way."""
    metrics = path.parent / log.FILE
    try:
        path.replace(path.with_name(path.name + _DAMAGED))
        if metrics.exists():
            shutil.copyfile(metrics, metrics.with_name(metrics.name + _DAMAGED))
    except OSError as error:
        raise cannot_write(path, error) from error


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
