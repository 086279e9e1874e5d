"""The configuration of a run, from the command line to its manifest."""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcifar import io, recipes
from fcifar.data import Dataset
from fcifar.errors import UsageError, shown
from fcifar.recipes import Recipe
from fcifar.recipes.checks import check_count, check_switch
from fcifar.train import environment, run_dir
from fcifar.train.runtime import Runtime

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_EVERY = re.compile(r"([0-9]{1,9})(s|min|h|)")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save checkpoints, and whether to stop at a non-finite loss. Changes no result.

    checkpoint_every: a number of steps such as ``500``, or a time such as ``30s`` or ``5min``.
    keep_checkpoints: number of latest checkpoints to keep.
    allow_nonfinite: continue when a loss is not finite.
    """

    checkpoint_every: str = "30s"
    keep_checkpoints: int = 2
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        _parse_every(self.checkpoint_every)
        check_count("--keep-checkpoints", self.keep_checkpoints, 1, 1_000_000)
        check_switch("allow_nonfinite", self.allow_nonfinite)

    @property
    def every(self) -> tuple[float, float]:
        """The interval in steps and in seconds; the one not given is infinite."""
        return _parse_every(self.checkpoint_every)


def _parse_every(text: str) -> tuple[float, float]:
    match = _EVERY.fullmatch(text) if isinstance(text, str) else None
    if match is None or not int(match[1]):
        raise UsageError(
            f"--checkpoint-every is {text!r}; it must be a number of steps such as 500, or a time "
            "such as 30s, 5min or 1h"
        )
    number, seconds = int(match[1]), _SECONDS.get(match[2])
    return (math.inf, number * seconds) if seconds else (number, math.inf)


@dataclass(frozen=True, kw_only=True)
class Init:
    """Pretrained values that a run begins with; they are in its ``init.safetensors``.

    source: the file or run they are from, as given.
    digest: of the values.
    drawn: parameters and buffers that are drawn from the seed instead.
    """

    source: str
    digest: str
    drawn: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run, and how it is saved. Use ``make_config`` to make one.

    recipe, seed: the experiment; every random draw comes from the seed.
    runtime: device, threads, precision and processes.
    compile: whether to compile the step with ``torch.compile``.
    dataset, dataset_digest: name and content of the data set.
    checkpoint: when to save.
    init: pretrained values; None if all are drawn from the seed.
    traced_hparams: fields of ``recipes.Hyperparams`` that are arguments of the step, so that the
        trials of a sweep share one compiled step; changes results by rounding.
    vmap_size: number of trials that the step is mapped over; 0 for a single run.
    earlier_ends: epochs at which the run ended before it was extended; it has log points there.
    """

    recipe: Recipe
    seed: int = 0
    runtime: Runtime = Runtime()  # noqa: RUF009
    compile: bool = False
    dataset: str
    dataset_digest: str
    checkpoint: CheckpointConfig = CheckpointConfig()
    init: Init | None = None
    traced_hparams: tuple[str, ...] = ()
    vmap_size: int = 0
    earlier_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        recipes.check_seed(self.seed)
        kinds = {"compile": bool, "dataset": str, "dataset_digest": str, "vmap_size": int}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(self, name), kind):
                raise UsageError(f"{name} is {shown(value)}, which is not of type {kind.__name__}")
        if not all(type(end) is int for end in self.earlier_ends):
            raise UsageError(f"earlier_ends is {shown(self.earlier_ends)}, not whole numbers")
        if unknown := set(self.traced_hparams) - set(recipes.Hyperparams._fields):
            raise UsageError(f"traced_hparams: there is no hyperparameter {shown(unknown.pop())}")

    def replace(self, **changes: Any) -> "RunConfig":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def make_config(recipe: Recipe, dataset: Dataset, **options: Any) -> RunConfig:
    """Return the ``RunConfig`` of ``recipe`` on ``dataset``; options are its other fields."""
    names = {"dataset": dataset.name, "dataset_digest": dataset.digest}
    return RunConfig(recipe=recipe, **names, **options)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as JSON-serializable values."""
    values = dataclasses.asdict(config)
    digest = values.pop("dataset_digest")
    return {**values, "dataset": {"name": config.dataset, "digest": digest}}


def from_dict(values: Mapping[str, Any], file: Path, *, device: str | None = None) -> RunConfig:
    """Return the configuration that ``to_dict`` was given, optionally with another device.

    Raises a UsageError, which names ``file``, if a value is missing or wrong.
    """
    try:
        return RunConfig(
            recipe=recipes.from_dict(values["recipe"]),
            seed=values["seed"],
            runtime=Runtime(**values["runtime"] | ({"device": device} if device else {})),
            compile=values["compile"],
            dataset=values["dataset"]["name"],
            dataset_digest=values["dataset"]["digest"],
            checkpoint=CheckpointConfig(**values["checkpoint"]),
            init=_read_init(values.get("init")),
            traced_hparams=tuple(values["traced_hparams"]),
            vmap_size=values["vmap_size"],
            earlier_ends=tuple(values["earlier_ends"]),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is not complete: {error!r}") from error


def _read_init(values: Mapping[str, Any] | None) -> Init | None:
    if values is None:
        return None
    return Init(source=values["source"], digest=values["digest"], drawn=tuple(values["drawn"]))


def write_config(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Write the manifest of a new run: its configuration, data set and environment."""
    manifest = to_dict(config)
    manifest["dataset"] |= {
        "source": dataset.source,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "valid": len(dataset.valid_labels),
        "classes": list(dataset.classes),
    }
    run_dir.write_manifest(run, manifest | provenance([config.recipe.model]))


def provenance(models: Sequence[str]) -> dict[str, Any]:
    """Return environment, command line and time, as JSON-serializable values."""
    return {"environment": environment.describe(models), "argv": sys.argv, "created": _now()}


def read_config(run: Path, *, device: str | None = None) -> RunConfig:
    """Read the configuration of a run, optionally with another device.

    Raises as ``from_dict`` and ``run_dir.read_manifest``.
    """
    return from_dict(run_dir.read_manifest(run), run / run_dir.MANIFEST, device=device)


def extend_config(run: Path, config: RunConfig, epochs: int) -> RunConfig:
    """Extend a run to more epochs, and update its manifest.

    ``loop.train(..., resume=True)`` then continues it, even if it was finished, to the same bits
    as a run with that many epochs from the start.

    Args:
        config: from ``read_config``.
        epochs: new total number of epochs.

    Raises:
        UsageError: ``epochs`` is not larger, the run stopped early or belongs to a group, or its
            recipe has a schedule over the whole run; nothing is changed then.
        ExternalError: a file cannot be written.
    """
    recipe = config.recipe
    if epochs <= recipe.epochs:
        raise UsageError(
            f"--epochs is {epochs}, and {run} has {recipe.epochs} epochs; with --resume, give a "
            "larger total number of epochs"
        )
    if run_dir.is_group(run.absolute().parent):
        raise UsageError(f"{run} belongs to a group and cannot be extended alone; start a new run")
    if tied := recipes.tied_to_end(recipe):
        raise UsageError(
            f"{run} cannot have more epochs: its recipe spreads {' and '.join(tied)} over the "
            "whole run, so that a longer run differs from the first step; start a new run with "
            f"--epochs {epochs}"
        )
    with io.locked(run):
        manifest = run_dir.read_manifest(run)
        finished = run_dir.is_finished(run)
        if finished and run_dir.read_report(run)["stopped_early"]:
            raise UsageError(
                f"{run} stopped early, after {recipe.patience} epochs without a lower validation "
                "loss, and would stop again at once; start a new run with a larger --patience"
            )
        ends = (*config.earlier_ends, recipe.epochs) if finished else config.earlier_ends
        longer = config.replace(recipe=recipe.replace(epochs=epochs), earlier_ends=ends)
        history = [*manifest.get("extended", []), {"epochs": recipe.epochs, "at": _now()}]
        # Remove the report first: a run with a report counts as finished.
        (run / run_dir.REPORT).unlink(missing_ok=True)
        (run / run_dir.CALIBRATION).unlink(missing_ok=True)
        changed = {name: to_dict(longer)[name] for name in ("recipe", "earlier_ends")}
        run_dir.write_manifest(run, manifest | changed | {"extended": history})
    return longer


def check_same_data(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Raise a UsageError unless ``dataset`` is the one that a run, or a group, was trained on."""
    if dataset.digest != config.dataset_digest:
        raise UsageError(
            f"the data set {dataset.name} is not the one that {run} began with (its digest is "
            f"{dataset.digest[:12]} and was {config.dataset_digest[:12]}); prepare that one again"
        )


def check_same_config(run: Path, config: RunConfig) -> None:
    """Raise a UsageError unless a run began with ``config``, checkpoints and device apart."""
    recorded = read_config(run)
    # In a sweep over several ranks, another rank may resume the run on its own device.
    runtime = dataclasses.replace(config.runtime, device=recorded.runtime.device)
    if recorded != config.replace(runtime=runtime, checkpoint=recorded.checkpoint):
        raise UsageError(
            f"{run} began with another recipe, seed, runtime or data set than the one given; "
            "resume it with the original ones, or start a new run"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
