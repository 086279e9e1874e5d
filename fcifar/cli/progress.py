"""Progress on stderr: bars in a terminal, plain lines anywhere else."""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fcifar.cli import output
from fcifar.train.events import Advanced, Event, Logged, Noted, Preparing


@contextlib.contextmanager
def counting(*, quiet: bool) -> Generator[Callable[[str, int, int], None]]:
    """Show a bar for calls of ``progress(description, done, total)``."""
    with _bar(_Count(), quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(description: str, done: int, total: int) -> None:
            if description not in tasks:
                tasks[description] = bar.add_task(description, total=None)
                if not bar.console.is_interactive and not quiet:
                    output.note(description)
            bar.update(tasks[description], completed=done, total=total or None)

        yield progress


@contextlib.contextmanager
def doing(what: str, *, quiet: bool) -> Generator[None]:
    """Show a spinner in a terminal, and a line elsewhere."""
    if not quiet and not output.stderr.is_interactive:
        output.note(what)
    live = not quiet and output.stderr.is_interactive
    with output.stderr.status(what) if live else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def training(*, quiet: bool, events: Path | None = None) -> Generator[Callable[[Event], None]]:
    """Show a bar for the events of training, and a line for each log point.

    Args:
        events: directory of the run in which to write files for TensorBoard, if any.
    """
    fields = "loss {task.fields[loss]} acc {task.fields[acc]} {task.fields[rate]} img/s"
    with _bar(TextColumn(fields), quiet=quiet) as bar:
        task = bar.add_task("starting", total=None, loss="-", acc="-", rate="-")

        def observe(event: Event) -> None:
            match event:
                case Preparing(what):
                    bar.update(task, description=what)
                    if not bar.console.is_interactive and not quiet:
                        output.note(what)
                case Advanced():
                    bar.update(
                        task,
                        description=f"{event.name} epoch {event.epoch}/{event.epochs}".strip(),
                        completed=event.step,
                        total=event.total_steps,
                        rate=f"{event.images_per_second:,.0f}",
                    )
                    if event.loss == event.loss:  # NaN: no step since the last log point
                        accuracy = output.percent(event.accuracy)
                        bar.update(task, loss=f"{event.loss:.3f}", acc=accuracy)
                case Noted(text):
                    output.note(text)
                case Logged(record, name) if not quiet:
                    split = _SPLITS.get(record["split"]) or str(record["split"])
                    output.note(
                        (f"{name}  " if name else "")
                        + f"epoch {record['epoch']:6.2f}  step {record['step']:>8,}  "
                        f"{split:10}  loss {record['loss']:.3f}  "
                        f"accuracy {output.percent(record['accuracy'])}"
                    )

        if events is None:
            yield observe
            return
        from fcifar.export import tensorboard

        with tensorboard.writing(events, observe) as both:
            yield both


_SPLITS = {"train": "training", "valid": "validation", "test": "test"}


class _Count(MofNCompleteColumn):
    """A count that stays empty while the total is unknown."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Remaining(TimeRemainingColumn):
    """A remaining time that stays empty while the total is unknown."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


def _bar(fields: ProgressColumn, *, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        fields,
        _Remaining(compact=True),
        console=output.stderr,
        transient=True,
        expand=True,
        disable=quiet or not output.stderr.is_interactive,
        refresh_per_second=5,
    )
