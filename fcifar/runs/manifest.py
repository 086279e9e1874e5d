"""The manifest: all that a run was asked for, and where."""

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import recipes
from fcifar.data import Dataset
from fcifar.errors import UserError, shown
from fcifar.recipes import Recipe
from fcifar.runs import directory, environment, group
from fcifar.runs.lock import locked
from fcifar.runs.runtime import Runtime
from fcifar.runs.safeguards import Safeguards
from fcifar.runs.session import Session


class Settings(NamedTuple):
    """What a manifest says about how to run again."""

    recipe: Recipe
    runtime: Runtime
    compiled: bool
    dataset_name: str
    dataset_digest: str
    safeguards: Safeguards
    traced: tuple[str, ...] = ()  # numbers of the recipe that are arguments of the step
    mapped: int = 0  # how many runs one step is mapped over; 0 for one run by itself
    earlier_ends: tuple[int, ...] = ()  # epochs that it once ended after, before it was extended


def describe(sitting: Session) -> dict[str, Any]:
    """The manifest of a run, as values that JSON holds."""
    dataset = sitting.dataset
    return {
        "recipe": recipes.to_dict(sitting.recipe),
        "runtime": dataclasses.asdict(sitting.runtime),
        "compile": sitting.compiled,
        "traced": list(sitting.traced),
        "mapped": sitting.mapped,
        "safeguards": dataclasses.asdict(sitting.safeguards),
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "source": dataset.source,
            "train": len(dataset.train_labels),
            "test": len(dataset.test_labels),
            "valid": len(dataset.valid_labels),
            "classes": list(dataset.classes),
        },
        "environment": environment.describe([sitting.recipe.model]),
        "argv": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_settings(run: Path, *, device: str | None = None) -> Settings:
    """The settings of the run in a directory; on another device than it ran, if one is given.

    Raises:
        UserError: the directory is not a run, or its manifest is not complete.
        WorldError: the manifest is damaged, or was changed.
    """
    manifest = directory.read_manifest(run)
    try:
        settings = Settings(
            recipe=recipes.from_dict(manifest["recipe"]),
            runtime=Runtime(**manifest["runtime"] | ({"device": device} if device else {})),
            compiled=manifest["compile"],
            dataset_name=manifest["dataset"]["name"],
            dataset_digest=manifest["dataset"]["digest"],
            safeguards=Safeguards(**manifest["safeguards"]),
            traced=tuple(manifest.get("traced", ())),
            mapped=manifest.get("mapped", 0),
            earlier_ends=tuple(end["epochs"] for end in manifest.get("extended", ())),
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{run / directory.MANIFEST} is not complete: {error!r}") from error
    if unknown := set(settings.traced) - set(recipes.Numbers._fields):
        raise UserError(f"{run / directory.MANIFEST}: no number is called {shown(unknown.pop())}")
    for name, value, kind in (
        ("compile", settings.compiled, bool),
        ("the name of the data set", settings.dataset_name, str),
        ("the digest of the data set", settings.dataset_digest, str),
        ("mapped", settings.mapped, int),
    ):
        if not isinstance(value, kind):
            raise UserError(f"{run / directory.MANIFEST}: {name} is {shown(value)}")
    return settings


def extend(run: Path, settings: Settings, epochs: int) -> Settings:
    """Give a run more epochs, and write it into its manifest.

    A run that came to its end is unfinished again: ``loop.train(..., resume=True)`` goes on with
    it, to the same bits as a run that had so many epochs from the start.

    Args:
        settings: those of the run, from ``read_settings``.
        epochs: of the whole run.

    Raises:
        UserError: there would not be more of them; the run stopped early or is one of a group; or
            something in its recipe is spread over its length. Nothing is changed then.
        WorldError: the disk refused, or another process trains the run.
    """
    recipe = settings.recipe
    if epochs <= recipe.epochs:
        raise UserError(
            f"--epochs is {epochs}, and {run} has {recipe.epochs} epochs; with --resume, give more "
            "epochs of the whole run than it has"
        )
    if (run.absolute().parent / group.FILE).is_file():
        raise UserError(
            f"{run} is one of a group, which would not fit it any more; begin a new run"
        )
    if tied := recipes.tied_to_end(recipe):
        raise UserError(
            f"{run} cannot have more epochs: its recipe spreads {' and '.join(tied)} over the "
            "whole run, so that a longer one differs from its first step on; begin a new run with "
            f"--epochs {epochs}"
        )
    with locked(run):
        written = directory.read_manifest(run)
        ended = (run / directory.REPORT).exists()
        if ended and directory.read_report(run)["stopped_early"]:
            raise UserError(
                f"{run} stopped early, after {recipe.patience} epochs without a lower validation "
                "loss, and would stop again at once; begin a new run with a larger --patience"
            )
        longer = recipe.replace(epochs=epochs)
        end = {"epochs": recipe.epochs, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        # Without its report first: a run whose report is there is never trained on.
        (run / directory.REPORT).unlink(missing_ok=True)
        directory.rewrite(
            run,
            written
            | {"recipe": recipes.to_dict(longer)}
            | {"extended": [*written.get("extended", []), *([end] if ended else [])]},
        )
    return read_settings(run, device=settings.runtime.device)


def check_same_data(run: Path, settings: Settings, dataset: Dataset) -> None:
    """Make sure that a data set is the one that a run was trained on.

    Raises:
        UserError: it is another one, under the same name.
    """
    if dataset.digest != settings.dataset_digest:
        raise UserError(
            f"the data set {dataset.name} is not the one that {run} began with (digest "
            f"{dataset.digest[:12]}, then {settings.dataset_digest[:12]}); prepare that one again"
        )
