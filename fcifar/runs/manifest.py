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
from fcifar.runs import directory, environment
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
