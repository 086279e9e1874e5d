"""Event files for TensorBoard, written while a run trains.

They are made from the metrics log alone. Whenever a file is opened, it is made anew from the log as
it is then: a run that goes on after an interruption, from its log as it was cut back, so that no
point is there twice.
"""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar.errors import UsageError, reason
from fcifar.train import metrics_log, run_dir, sweep
from fcifar.train.events import Event, Logged, Noted, Observe

FOLDER = "tensorboard"  # in a run directory
_FILES = "events.out.tfevents.*"
_OPEN = 64  # runs at once, for each has a file and a thread


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("tensorboard") is not None


def check() -> None:
    """Raise a UsageError where the extra is missing."""
    if not is_installed():
        raise UsageError(
            "--tensorboard needs tensorboard, which is not installed; pip install "
            "'fcifar[tensorboard]', or leave it out: metrics.jsonl has the same figures"
        )


def is_begun(path: Path) -> bool:
    """Whether a run, or any of a group, has event files."""
    return any((run / FOLDER).is_dir() for run in _runs(path))


class _Writer(NamedTuple):
    """What can be done with the open event file of a run."""

    add: Callable[[dict[str, Any]], None]  # a record of the log
    close: Callable[[], None]


@contextlib.contextmanager
def writing(path: Path, observe: Observe) -> Iterator[Observe]:
    """``observe``, and an event file in ``tensorboard/`` of each run, a point a ``Logged``.

    Scalars ``loss/SPLIT`` and ``accuracy/SPLIT`` over steps, with the seconds of training as their
    time; the recipe, the seed and the data set as text. A disk that refuses ends the writing, with
    a note, and not the run.

    Args:
        path: the directory of a run, or of a group whose events have the names of its runs.
    """
    writers: dict[str, _Writer] = {}
    begun: set[str] = set()
    failed = False

    def write(name: str, record: dict[str, Any]) -> None:
        if name in writers:
            writers[name].add(record)
        else:
            begin(name)

    def begin(name: str) -> None:
        if len(writers) >= _OPEN:
            close()
        writers[name] = writer = _open(path / name)
        begun.add(name)
        for record in metrics_log.read(path / name):
            writer.add(record)

    def close() -> None:
        while writers:
            writers.popitem()[1].close()

    @contextlib.contextmanager
    def guarded() -> Iterator[None]:
        nonlocal failed
        try:
            yield
        except OSError as error:
            failed = True
            writers.clear()
            observe(Noted(f"no more is written for TensorBoard: {reason(error)}"))

    def both(event: Event) -> None:
        observe(event)
        if isinstance(event, Logged) and not failed:
            with guarded():
                write(event.name, event.record)

    try:
        yield both
        with guarded():
            for run in _runs(path):
                name = "" if run == path else run.name
                if not failed and name not in begun and (run / run_dir.METRICS).exists():
                    begin(name)  # it was finished before
    finally:
        with guarded():
            close()


def _runs(path: Path) -> list[Path]:
    if run_dir.is_group(path):
        return [path / trial.name for trial in sweep.read(path).trials]
    return [path]


def _open(run: Path) -> _Writer:
    """A new event file of a run, in place of those that there are."""
    from torch.utils.tensorboard import SummaryWriter

    manifest = run_dir.read_manifest(run)
    for old in (run / FOLDER).glob(_FILES):
        old.unlink()
    # A TensorBoard that has read the old file forgets its points from step 0 on.
    writer = SummaryWriter(str(run / FOLDER), purge_step=0)
    created = datetime.fromisoformat(manifest["created"]).timestamp()
    seconds = 0.0  # of training
    for name, text in _texts(manifest).items():
        writer.add_text(name, text, 0, created)

    def add(record: dict[str, Any]) -> None:
        nonlocal seconds
        split = record["split"]
        if split == "train":
            seconds = record["seconds"]
        for name in ("loss", "accuracy"):
            value = float("nan") if record[name] is None else record[name]
            writer.add_scalar(f"{name}/{split}", value, record["step"], created + seconds)
        writer.flush()

    return _Writer(add, writer.close)


def _texts(manifest: dict[str, Any]) -> dict[str, str]:
    """Markdown by tag."""
    values = json.dumps(manifest["recipe"], indent=2)
    return {
        "recipe": "\n".join(f"    {line}" for line in values.splitlines()),
        "seed": str(manifest["seed"]),
        "dataset": f"{manifest['dataset']['name']}, digest {manifest['dataset']['digest']}",
    }
