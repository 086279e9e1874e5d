"""What a page is made of, read from run directories."""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import data
from fcifar.analysis.significance import letters
from fcifar.errors import ExternalError, UsageError
from fcifar.step import EvalOutput
from fcifar.train import metrics_log, run_dir
from fcifar.train.config import RunConfig, read_config
from fcifar.train.evaluate import read_predictions

_NEEDED = (
    *("recipe", "dataset", "seed", "steps", "epochs", "selected", "stopped_early"),
    *("test_accuracy", "test_loss", "test_n", "interval95", "per_class", "confusion"),
    *("train_seconds", "compile_seconds", "images_per_second", "params_digest"),
)


class Run(NamedTuple):
    """A finished run."""

    name: str  # A, B and so on
    path: Path
    config: RunConfig
    manifest: dict[str, Any]
    report: dict[str, Any]
    records: list[dict[str, Any]]
    predictions: tuple[EvalOutput, Tensor] | None  # and the labels; None where they are gone

    @property
    def title(self) -> str:
        """What run this is, in a few words."""
        report = self.report
        return f"{report['recipe']} on {report['dataset']}, seed {report['seed']}"


class Pictures(NamedTuple):
    """The test images, or why there are none."""

    images: Tensor | None  # uint8 [N, 3, H, W]
    why_not: str = ""


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Everything about runs.

    Raises:
        UsageError: one is not a run directory, or is not finished.
        ExternalError: a file is damaged.
    """
    names = itertools.islice(letters(), len(paths))
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    config = read_config(path)
    if not (path / run_dir.REPORT).exists():
        raise UsageError(
            f"{path} is not finished; resume it with fcifar train --resume {shlex.quote(str(path))}"
        )
    report = run_dir.read_report(path)
    if missing := [name for name in _NEEDED if name not in report]:
        raise ExternalError(f"{path / run_dir.REPORT} is not complete: {missing[0]} is missing")
    predictions = path / run_dir.PREDICTIONS
    return Run(
        name=name,
        path=path,
        config=config,
        manifest=run_dir.read_manifest(path),
        report=report,
        records=metrics_log.read(path),
        predictions=read_predictions(predictions) if predictions.exists() else None,
    )


def on_same_images(runs: Sequence[Run]) -> bool:
    """Whether all runs have predictions of the same test images."""
    first = runs[0]
    return all(
        run.predictions is not None
        and first.predictions is not None
        and run.config.dataset_digest == first.config.dataset_digest
        and run.predictions[0].logits.shape == first.predictions[0].logits.shape
        and torch.equal(run.predictions[1], first.predictions[1])
        for run in runs
    )


def pictures_of(run: Run, root: Path) -> Pictures:
    """The test images of a run's data set, if it is prepared in ``root`` as it was then.

    Nothing is fetched.
    """
    name, digest = run.config.dataset, run.config.dataset_digest
    if all(each.name != name for each in data.list_prepared(root)):
        return Pictures(None, f"the data set {name} is not prepared where this page was made")
    try:
        dataset = data.load(name, root)
        data.verify(name, root)
    except (UsageError, ExternalError) as error:
        return Pictures(None, f"the data set cannot be read: {error}")
    if dataset.digest != digest:
        return Pictures(
            None,
            f"the data set that is prepared as {name} is another one (digest "
            f"{dataset.digest[:12]}, then {digest[:12]})",
        )
    return Pictures(dataset.test_images)
