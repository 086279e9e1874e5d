"""The summary of a sweep: mean and spread over seeds, and the best grid point."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fcifar import io
from fcifar.analysis import confidence, ensembles
from fcifar.errors import ExternalError
from fcifar.train import metrics_log, run_dir
from fcifar.train.environment import since_process_start
from fcifar.train.evaluate import read_predictions

if TYPE_CHECKING:
    from fcifar.recipes.trials import Trial
    from fcifar.train.sweep import Sweep

_FROM_REPORT = (
    *("test_accuracy", "test_loss", "tta_accuracy", "steps", "epochs", "stopped_early"),
    *("selected", "train_seconds", "compile_seconds", "images_per_second", "params_digest"),
    *("average", "average_accuracy", "average_loss", "average_params_digest"),
)
_SUMMED = ("steps", "train_seconds", "compile_seconds")
_OVER_SEEDS = ("valid_accuracy", "test_accuracy", "average_accuracy", "tta_accuracy", "test_loss")


def summarize(path: Path, sweep: "Sweep") -> dict[str, Any]:
    """Summarize a sweep whose trials have all ended, as JSON-serializable values.

    Keys: run_dir, recipe, dataset, device, method, totals of steps and seconds; ``members``, the
    trials, each with changes, seed and results, or why it ``failed``; ``cells``, the grid points
    (one without a grid), with mean and spread over seeds and ``ensembles.summarize_replicas``;
    ``best``, the name of the grid point with the highest validation accuracy, if there is one; none
    among folds.

    Raises:
        ExternalError: no run finished.
    """
    members = [_summarize_trial(path, trial) for trial in sweep.trials]
    finished = _finished(members)
    if not finished:
        raise ExternalError(
            f"no run of {path} finished: {members[0]['failed']}; see "
            f"{path / members[0]['name'] / run_dir.NONFINITE}"
        )
    points = itertools.groupby(members, lambda member: str(member["changes"]))
    cells = [_summarize_point(path, list(point)) for _, point in points]
    validated = [cell for cell in cells if cell["valid_accuracy"] is not None]
    if "fold" in sweep.trials[0].changes:  # each point has other validation images
        validated = []
    best = max(validated, key=lambda cell: cell["valid_accuracy"]["mean"], default=None)
    return {
        "run_dir": str(path),
        "recipe": sweep.trials[0].recipe.name,
        "dataset": sweep.config.dataset,
        "device": sweep.config.runtime.device,
        "seed": sweep.trials[0].seed,
        "method": sweep.method,
        "swept": list(sweep.trials[0].changes),
        "test_accuracy": confidence.summarize([run["test_accuracy"] for run in finished]).mean,
        "test_loss": sum(run["test_loss"] for run in finished) / len(finished),
        **{name: sum(run[name] for run in finished) for name in _SUMMED},
        "process_seconds": since_process_start(),
        "members": members,
        "cells": cells,
        "best": best["name"] if best and len(cells) > 1 else None,
    }


def _finished(members: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [member for member in members if "failed" not in member]


def _summarize_trial(path: Path, trial: "Trial") -> dict[str, Any]:
    run = path / trial.name
    spec = {"name": trial.name, "seed": trial.seed, "changes": trial.changes}
    if not run_dir.is_finished(run):
        values = io.read_json(run / run_dir.NONFINITE)
        return {**spec, "failed": f"{values['what']} was not finite at step {values['step']:,}"}
    report = run_dir.read_report(run)
    valid = [
        record["accuracy"]
        for record in metrics_log.read(run)
        if record.get("split") == "valid" and record["step"] == report["selected"]["step"]
    ]
    copied = {name: report[name] for name in _FROM_REPORT if name in report}
    return {**spec, **copied, "valid_accuracy": valid[-1] if valid else None}


def _summarize_point(path: Path, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    changes, finished = members[0]["changes"], _finished(members)

    def over_seeds(name: str) -> dict[str, float] | None:
        values = [run[name] for run in finished if run.get(name) is not None]
        return confidence.summarize(values)._asdict() if values else None

    ensemble = None
    if len(finished) > 1:
        paths = [path / run["name"] / run_dir.PREDICTIONS for run in finished]
        predictions = [read_predictions(file) for file in paths]
        logits = torch.stack([examples.logits.float() for examples, _ in predictions])
        ensemble = ensembles.summarize_replicas(logits, predictions[0][1])

    return {
        "name": ", ".join(f"{name} {value}" for name, value in changes.items()),
        "changes": changes,
        "runs": [run["name"] for run in finished],
        "failed": len(members) - len(finished),
        **{name: over_seeds(name) for name in _OVER_SEEDS},
        "together": ensemble,
    }
