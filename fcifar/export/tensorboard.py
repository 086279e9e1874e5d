"""Event files for TensorBoard, written while a run trains.

They are made from the metrics log. Opening a file rewrites it from the log, so that a resumed run,
whose log was cut back, has no point twice.
"""

import contextlib
import importlib.util
import json
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from fcifar.errors import UsageError, reason
from fcifar.train import metrics_log, run_dir, sweep
from fcifar.train.events import Event, Logged, Noted, Observe

FOLDER = "tensorboard"  # in a run directory
_OPEN = 64  # event files at once; each has a thread


def is_installed() -> bool:
    """Whether tensorboard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


def check() -> None:
    """Raise a UsageError if tensorboard is not installed."""
    if not is_installed():
        raise UsageError(
            "--tensorboard needs tensorboard, which is not installed; pip install "
            "'fcifar[tensorboard]', or leave it out: metrics.jsonl has the same figures"
        )


def is_begun(path: Path) -> bool:
    """Whether a run, or any run of a group, has event files."""
    return any((run / FOLDER).is_dir() for run in _runs(path))


@contextlib.contextmanager
def writing(path: Path, observe: Observe) -> Generator[Observe]:
    """Extend ``observe`` to write each ``Logged`` into the event file of its run.

    Scalars ``loss/SPLIT`` and ``accuracy/SPLIT`` over steps, with the seconds of training as their
    time; the recipe, the seed and the data set as text. An I/O error stops the writing, with a
    note, and not the run.

    Args:
        path: the directory of a run, or of a group whose events have the names of its runs.
    """
    files: dict[str, _EventFile] = {}
    begun: set[str] = set()
    failed = False

    def attempt(function: Callable[..., None], *arguments: Any) -> None:
        nonlocal failed
        try:
            if not failed:
                function(*arguments)
        except OSError as error:
            failed = True
            files.clear()
            observe(Noted(f"no more is written for TensorBoard: {reason(error)}"))

    def write(name: str, record: dict[str, Any]) -> None:
        if name in files:
            files[name].add(record)
        else:
            begin(name)

    def begin(name: str) -> None:
        if len(files) >= _OPEN:
            close()
        begun.add(name)
        files[name] = _EventFile(path / name)

    def close() -> None:
        while files:
            files.popitem()[1].writer.close()

    def finish() -> None:
        for run in _runs(path):
            name = "" if run == path else run.name
            if name not in begun and (run / run_dir.METRICS).exists():  # it was finished before
                begin(name)

    def both(event: Event) -> None:
        observe(event)
        if isinstance(event, Logged):
            attempt(write, event.name, event.record)

    try:
        yield both
        attempt(finish)
    finally:
        attempt(close)


def _runs(path: Path) -> list[Path]:
    if run_dir.is_group(path):
        return [path / trial.name for trial in sweep.read(path).trials]
    return [path]


class _EventFile:
    """A new event file of a run, in place of the existing ones, with the log so far."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        manifest = run_dir.read_manifest(run)
        for old in (run / FOLDER).glob("events.out.tfevents.*"):
            old.unlink()
        # With purge_step, a running TensorBoard forgets the points of the old file.
        self.writer = SummaryWriter(str(run / FOLDER), purge_step=0)
        self.created = datetime.fromisoformat(manifest["created"]).timestamp()
        self.seconds = 0.0  # of training
        for name, text in _texts(manifest).items():
            self.writer.add_text(name, text, 0, self.created)
        for record in metrics_log.read(run):
            self.add(record)

    def add(self, record: dict[str, Any]) -> None:
        """Write a record of the log."""
        split = record["split"]
        if split == "train":
            self.seconds = record["seconds"]
        for name in ("loss", "accuracy"):
            value, time = record[name], self.created + self.seconds
            value = float("nan") if value is None else value
            self.writer.add_scalar(f"{name}/{split}", value, record["step"], time)
        self.writer.flush()


def _texts(manifest: dict[str, Any]) -> dict[str, str]:
    """Markdown by tag."""
    values = json.dumps(manifest["recipe"], indent=2)
    return {
        "recipe": "\n".join(f"    {line}" for line in values.splitlines()),
        "seed": str(manifest["seed"]),
        "dataset": f"{manifest['dataset']['name']}, digest {manifest['dataset']['digest']}",
    }
