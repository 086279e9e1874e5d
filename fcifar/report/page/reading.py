"""Reading finished runs."""

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

_REQUIRED = (
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
    records: list[dict[str, Any]]  # the metrics log
    predictions: tuple[EvalOutput, Tensor] | None  # with the labels; None if the file is missing

    @property
    def title(self) -> str:
        """Recipe, data set and seed."""
        report = self.report
        return f"{report['recipe']} on {report['dataset']}, seed {report['seed']}"


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run directories.

    Raises:
        UsageError: one is not a run directory, or is not finished.
        ExternalError: a file is damaged.
    """
    return [_read(path, name) for path, name in zip(paths, letters(), strict=False)]


def _read(path: Path, name: str) -> Run:
    config = read_config(path)
    if not (path / run_dir.REPORT).exists():
        raise UsageError(
            f"{path} is not finished; resume it with fcifar train --resume {shlex.quote(str(path))}"
        )
    report = run_dir.read_report(path)
    if missing := [name for name in _REQUIRED if name not in report]:
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


def test_images(run: Run, root: Path) -> tuple[Tensor | None, str]:
    """Return the test images of a run, or None and the reason.

    They are available if the data set is prepared in ``root``, unchanged. Nothing is downloaded.

    Returns:
        uint8 [N, 3, H, W] or None, and a reason for None.
    """
    name, digest = run.config.dataset, run.config.dataset_digest
    if all(each.name != name for each in data.list_prepared(root)):
        return None, f"the data set {name} is not prepared on the machine that made this page"
    try:
        dataset = data.load(name, root)
        data.verify(name, root)
    except (UsageError, ExternalError) as error:
        return None, f"the data set cannot be read: {error}"
    if dataset.digest != digest:
        return None, (
            f"the data set prepared as {name} is not that of the run (digest "
            f"{dataset.digest[:12]}, not {digest[:12]})"
        )
    return dataset.test_images, ""
