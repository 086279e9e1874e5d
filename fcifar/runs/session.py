"""A sitting of a training run: what does not change while it lasts, and what it writes down."""

import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fcifar import fingerprint, metrics, random, tree
from fcifar.data import Dataset
from fcifar.errors import WorldError
from fcifar.models import Variables
from fcifar.recipes import Recipe
from fcifar.runs import directory, jsonfiles, log, saving, together
from fcifar.runs.evaluate import save_predictions, summarize
from fcifar.runs.events import Logged, Observe
from fcifar.runs.program import Program
from fcifar.runs.runtime import Runtime
from fcifar.runs.safeguards import Safeguards
from fcifar.runs.saving import Place
from fcifar.step import Batch, TrainState

_SHOWN = 12  # row numbers in a message; all of them are in a file


class Session(NamedTuple):
    """What does not change while a sitting lasts."""

    run: Path
    program: Program
    recipe: Recipe
    runtime: Runtime
    dataset: Dataset
    compiled: bool
    traced: tuple[str, ...]  # numbers of the recipe that are arguments of the step
    mapped: int  # how many runs one step is mapped over; 0 for one run by itself
    earlier_ends: tuple[int, ...]  # epochs that it once ended after
    safeguards: Safeguards
    observe: Observe
    multipliers: Tensor  # of the digests


class NonFiniteError(WorldError):
    """Training came to numbers that are not finite, and stopped."""


def draw_multipliers(state: TrainState) -> Tensor:
    """Those of the digests in a log: always the same, so that the logs of two runs compare."""
    return fingerprint.draw_multipliers(random.key(0), state)


def log_training(session: Session, place: Place) -> Place:
    """Write down the running metrics and digests of the state, and start the metrics afresh.

    Raises:
        NonFiniteError: as ``check_finite``.
    """
    check_finite(session, place)
    running, clock, mark = place
    summary = metrics.summarize(running.totals)
    started = time.perf_counter()
    record = _record(session, "train", int(running.state.step), summary, clock.train)
    mark = append(session, record | _digests(session, running.state), mark)
    clock = clock._replace(safeguards=clock.safeguards + time.perf_counter() - started)
    return Place(running._replace(totals=tree.zeros_like(running.totals)), clock, mark)


def measure(
    session: Session,
    variables: Variables,
    split: str,
    step: int,
    mark: log.Mark,
    *,
    views: str = "none",
) -> tuple[dict[str, Any], log.Mark]:
    """Evaluate on the validation or test images, and write it down.

    ``views`` is "none", or the name of the recipe's test-time augmentation.
    """
    program, plain = session.program, views == "none"
    data: Batch = getattr(program, split)
    started = time.perf_counter()
    examples = together.evaluate(program, variables, split, plain=plain)
    summary = summarize(examples, data.labels, session.dataset.classes)
    if split == "test" and plain:
        save_predictions(session.run / directory.PREDICTIONS, examples, data.labels)
    figures = {
        "split": split if plain else f"{split}-{views}",
        "loss": summary["loss"],
        "accuracy": summary["accuracy"],
        "count": summary["n"],
        "digest": tree.digest(examples)[:16],
    }
    record = _record(session, "eval", step, figures, time.perf_counter() - started)
    return summary, append(session, record, mark)


def save(session: Session, place: Place) -> Place:
    """Write a checkpoint.

    Raises:
        NonFiniteError: as ``check_finite``; no checkpoint holds numbers that are not finite, unless
            that was allowed.
    """
    check_finite(session, place, parameters=True)
    started = time.perf_counter()
    saving.save_running(session.run, place, session.safeguards.keep_checkpoints)
    spent = place.clock.safeguards + time.perf_counter() - started
    return place._replace(clock=place.clock._replace(safeguards=spent))


def save_network(session: Session, name: str, variables: Variables) -> None:
    """Write a network to a file of the run."""
    seed = session.runtime.seed
    saving.save_network(session.run / name, variables, session.recipe, seed, session.dataset)


def check_finite(session: Session, place: Place, *, parameters: bool = False) -> None:
    """Stop a run whose numbers went wrong.

    Args:
        parameters: look at them too. They can be wrong for one step before the loss is.

    Raises:
        NonFiniteError: a loss was not finite. It names the step, the rows of its batch (all of them
            are in ``nonfinite.json``), and the last checkpoint from before.
    """
    if session.safeguards.allow_nonfinite:
        return
    running = place.running
    what, step = "the loss", int(running.nonfinite)
    if not step and parameters:
        params = running.state.variables.params.values()
        if all(bool(leaf.isfinite().all()) for leaf in params):
            return
        what, step = "a parameter", int(running.state.step)
    if not step:
        return
    run = session.run
    rows = next(session.program.rows_from(step - 1)).tolist()
    last = next(iter(saving.list_checkpoints(run).values()), None)
    checkpoint = None if last is None else last.name
    values = {"what": what, "step": step, "rows": rows, "checkpoint": checkpoint}
    jsonfiles.write(run / directory.NONFINITE, values)
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
    raise NonFiniteError(
        f"{what} is not finite at step {step:,}, whose batch was the training images {shown} "
        f"(see {run / directory.NONFINITE}); "
        + (f"the last good checkpoint is {last}" if last else "no checkpoint was saved before")
        + "; begin a new run with a lower --lr or with --clip-norm, or go on all the same with "
        f"fcifar train --resume {run} --allow-nonfinite"
    )


def append(session: Session, record: dict[str, Any], mark: log.Mark) -> log.Mark:
    """Add a record to the log, and tell whoever watches."""
    mark = log.append(session.run, record, mark)
    session.observe(Logged(record))
    return mark


def _record(
    session: Session, kind: str, step: int, figures: dict[str, Any], seconds: float
) -> dict[str, Any]:
    epoch = step / session.program.steps_per_epoch
    return {"kind": kind, "step": step, "epoch": epoch, **figures, "seconds": seconds}


def _digests(session: Session, state: TrainState) -> dict[str, Any]:
    """A digest of the state, and of each tensor in it, by name."""
    hashes = fingerprint.hash_leaves(session.multipliers, state)
    whole = fingerprint.combine(session.multipliers, hashes)
    *each, all_ = (fingerprint.to_hex(h) for h in [*hashes.tolist(), int(whole)])
    return {"digest": all_, "tensors": dict(zip(tree.named_leaves(state), each, strict=True))}
