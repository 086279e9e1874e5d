"""The manifest: all that a run was asked for, and where."""

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fcifar import recipes
from fcifar.data import Dataset
from fcifar.errors import UserError
from fcifar.recipes import Recipe
from fcifar.runs import directory, environment
from fcifar.runs.runtime import Runtime


class Settings(NamedTuple):
    """What a manifest says about how to run again."""

    recipe: Recipe
    runtime: Runtime
    compiled: bool
    dataset_name: str
    dataset_digest: str


def describe(
    recipe: Recipe, runtime: Runtime, dataset: Dataset, *, compiled: bool
) -> dict[str, Any]:
    """A manifest, as values that JSON holds."""
    return {
        "recipe": recipes.to_dict(recipe),
        "runtime": dataclasses.asdict(runtime),
        "compile": compiled,
        "dataset": {
            "name": dataset.name,
            "digest": dataset.digest,
            "source": dataset.source,
            "train": len(dataset.train_labels),
            "test": len(dataset.test_labels),
            "classes": list(dataset.classes),
        },
        "environment": environment.describe(),
        "git_commit": environment.git_commit(),
        "argv": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_settings(run: Path) -> Settings:
    """The settings of the run in a directory.

    Raises:
        UserError: the directory is not a run, or its manifest is not complete.
        WorldError: the manifest is damaged.
    """
    manifest = directory.read_manifest(run)
    try:
        return Settings(
            recipe=recipes.from_dict(manifest["recipe"]),
            runtime=Runtime(**manifest["runtime"]),
            compiled=manifest["compile"],
            dataset_name=manifest["dataset"]["name"],
            dataset_digest=manifest["dataset"]["digest"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{run / directory.MANIFEST} is not complete: {error}") from error
