"""The configuration of a run, from the command line to its manifest."""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import io, recipes
from fcifar.data import Dataset
from fcifar.errors import UsageError, shown
from fcifar.recipes import Recipe
from fcifar.recipes.checks import check_count, check_switch
from fcifar.train import environment, run_dir
from fcifar.train.runtime import Runtime

_SECONDS = {"s": 1, "min": 60, "h": 3600}
_EVERY = re.compile(r"([0-9]{1,9})(s|min|h|)")


class Every(NamedTuple):
    """A number of steps or of seconds; infinite where the other counts."""

    steps: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, and what to stop at. No choice here changes a result.

    checkpoint_every: a number of steps such as ``500``, or a time such as ``30s`` or ``5min``.
    keep_checkpoints: how many of the latest are kept; with one, a damaged one is a lost run.
    allow_nonfinite: go on when a loss is not finite, instead of stopping.

    Raises:
        UsageError: a value is outside its range.
    """

    checkpoint_every: str = "30s"
    keep_checkpoints: int = 2
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        _parse_every(self.checkpoint_every)
        check_count("--keep-checkpoints", self.keep_checkpoints, 1, 1_000_000)
        check_switch("allow_nonfinite", self.allow_nonfinite)

    @property
    def every(self) -> Every:
        """``checkpoint_every`` in numbers."""
        return _parse_every(self.checkpoint_every)


def _parse_every(text: str) -> Every:
    match = _EVERY.fullmatch(text) if isinstance(text, str) else None
    if match is None or not int(match[1]):
        raise UsageError(
            f"--checkpoint-every is {text!r}; it must be a number of steps such as 500, or a time "
            "such as 30s, 5min or 1h"
        )
    number, unit = int(match[1]), match[2]
    return Every(math.inf, number * _SECONDS[unit]) if unit else Every(number, math.inf)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run, and how it is saved. ``make_config`` makes one.

    recipe, seed: the experiment; every random draw comes from the seed.
    runtime: where and how it is computed.
    compile: whether the step goes through ``torch.compile``.
    dataset, dataset_digest: the name and the content of the data set.
    checkpoint: when to save.
    traced_hparams: names of ``recipes.Hyperparams`` that are arguments of the step, as in a sweep
        whose trials share what is compiled; this changes results by rounding.
    vmap_size: over how many trials the step is mapped; 0 for a run by itself.
    earlier_ends: epochs after which the run ended before it was extended; it has log points there.
    """

    recipe: Recipe
    seed: int = 0
    runtime: Runtime
    compile: bool = False
    dataset: str
    dataset_digest: str
    checkpoint: CheckpointConfig = CheckpointConfig()
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
        """The same with other values."""
        return dataclasses.replace(self, **changes)


def make_config(
    recipe: Recipe,
    dataset: Dataset,
    *,
    seed: int = 0,
    runtime: Runtime = Runtime(),  # noqa: B008
    compile: bool = False,
    checkpoint: CheckpointConfig = CheckpointConfig(),
    traced_hparams: Sequence[str] = (),
) -> RunConfig:
    """The configuration of a run of ``recipe`` on ``dataset``: see ``RunConfig``."""
    return RunConfig(
        recipe=recipe,
        seed=seed,
        runtime=runtime,
        compile=compile,
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        checkpoint=checkpoint,
        traced_hparams=tuple(traced_hparams),
    )


# Manifests ---------------------------------------------------------------------------------------


def to_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration as values that JSON holds."""
    return {
        "recipe": recipes.to_dict(config.recipe),
        "seed": config.seed,
        "runtime": dataclasses.asdict(config.runtime),
        "compile": config.compile,
        "dataset": {"name": config.dataset, "digest": config.dataset_digest},
        "checkpoint": dataclasses.asdict(config.checkpoint),
        "traced_hparams": list(config.traced_hparams),
        "vmap_size": config.vmap_size,
        "earlier_ends": list(config.earlier_ends),
    }


def from_dict(values: Mapping[str, Any], file: Path, *, device: str | None = None) -> RunConfig:
    """What ``to_dict`` was given, read from ``file``; on another device, if one is given.

    Raises:
        UsageError: a value is missing or wrong.
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
            traced_hparams=tuple(values["traced_hparams"]),
            vmap_size=values["vmap_size"],
            earlier_ends=tuple(values["earlier_ends"]),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is not complete: {error!r}") from error


def write_config(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Write the manifest of a new run: its configuration, and where and when it was begun."""
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
    """The environment, command and time of a run of these models, as values that JSON holds."""
    return {"environment": environment.describe(models), "argv": sys.argv, "created": _now()}


def read_config(run: Path, *, device: str | None = None) -> RunConfig:
    """The configuration of the run in a directory; on another device than it ran, if one is given.

    Raises:
        UsageError: the directory is not a run, or its manifest is not complete.
        ExternalError: the manifest is damaged, or was changed.
    """
    return from_dict(run_dir.read_manifest(run), run / run_dir.MANIFEST, device=device)


def extend_config(run: Path, config: RunConfig, epochs: int) -> RunConfig:
    """Give a run more epochs, and write that into its manifest.

    A finished run is unfinished again: ``loop.train(..., resume=True)`` continues it, to the same
    bits as a run that had so many epochs from the start.

    Args:
        config: of the run, from ``read_config``.
        epochs: of the whole run.

    Raises:
        UsageError: there would not be more of them; the run stopped early or is one of a group; or
            something in its recipe is spread over its length. Nothing is changed then.
        ExternalError: a file cannot be written.
    """
    recipe = config.recipe
    if epochs <= recipe.epochs:
        raise UsageError(
            f"--epochs is {epochs}, and {run} has {recipe.epochs} epochs; with --resume, give more "
            "epochs of the whole run than it has"
        )
    if run_dir.is_group(run.absolute().parent):
        raise UsageError(
            f"{run} is one of a group, which would not fit it any more; begin a new run"
        )
    if tied := recipes.tied_to_end(recipe):
        raise UsageError(
            f"{run} cannot have more epochs: its recipe spreads {' and '.join(tied)} over the "
            "whole run, so that a longer one differs from its first step on; begin a new run with "
            f"--epochs {epochs}"
        )
    with io.locked(run):
        manifest = run_dir.read_manifest(run)
        finished = run_dir.is_finished(run)
        if finished and run_dir.read_report(run)["stopped_early"]:
            raise UsageError(
                f"{run} stopped early, after {recipe.patience} epochs without a lower validation "
                "loss, and would stop again at once; begin a new run with a larger --patience"
            )
        ends = (*config.earlier_ends, recipe.epochs) if finished else config.earlier_ends
        longer = config.replace(recipe=recipe.replace(epochs=epochs), earlier_ends=ends)
        history = [*manifest.get("extended", []), {"epochs": recipe.epochs, "at": _now()}]
        # The report goes first: a run that has one is never trained on.
        (run / run_dir.REPORT).unlink(missing_ok=True)
        changed = {name: to_dict(longer)[name] for name in ("recipe", "earlier_ends")}
        run_dir.write_manifest(run, manifest | changed | {"extended": history})
    return longer


def check_same_data(run: Path, config: RunConfig, dataset: Dataset) -> None:
    """Check that a data set is the one that a run, or a group, was trained on.

    Raises:
        UsageError: it is another one, under the same name.
    """
    if dataset.digest != config.dataset_digest:
        raise UsageError(
            f"the data set {dataset.name} is not the one that {run} began with (digest "
            f"{dataset.digest[:12]}, then {config.dataset_digest[:12]}); prepare that one again"
        )


def check_same_config(run: Path, config: RunConfig) -> None:
    """Check that a run began with ``config``, but for the checkpoints and the device's number.

    Raises:
        UsageError: it began with another one.
    """
    began = read_config(run)
    # In a sweep over ranks the device has the number of the rank, which another may resume.
    runtime = dataclasses.replace(config.runtime, device=began.runtime.device)
    if began != config.replace(runtime=runtime, checkpoint=began.checkpoint):
        raise UsageError(
            f"{run} began with another recipe, seed, runtime or data set than is given now; "
            "continue it with those it began with, or begin a new run"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
