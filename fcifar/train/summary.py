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

_COPIED = (
    *("test_accuracy", "test_loss", "tta_accuracy", "steps", "epochs", "stopped_early"),
    *("selected", "train_seconds", "compile_seconds", "images_per_second", "params_digest"),
)
_SUMMED = ("steps", "train_seconds", "compile_seconds")
_OVER_SEEDS = ("valid_accuracy", "test_accuracy", "tta_accuracy", "test_loss")


def summarize(path: Path, sweep: "Sweep") -> dict[str, Any]:
    """The summary of a sweep whose trials have all ended, as values that JSON holds.

    Keys: run_dir, recipe, dataset, device, method, steps and epochs of all members, seconds;
    ``members``, each with its changes, seed and figures, or why it ``failed``; ``cells``, one for
    each point of a sweep (one in all without a sweep), with mean and spread over its seeds and what
    ``ensembles.summarize_replicas`` says of the networks; ``best``, the name of the cell with the
    highest accuracy on validation images, or None where none were held out.

    Raises:
        ExternalError: no run finished.
    """
    members = [_of_member(path, member) for member in sweep.trials]
    ended = [member for member in members if "failed" not in member]
    if not ended:
        raise ExternalError(
            f"no run of {path} finished: {members[0]['failed']}; see "
            f"{path / members[0]['name'] / run_dir.NONFINITE}"
        )
    points = itertools.groupby(members, lambda member: str(member["changes"]))
    cells = [_of_cell(path, list(point)) for _, point in points]
    chosen = [cell for cell in cells if cell["valid_accuracy"] is not None]
    best = max(chosen, key=lambda cell: cell["valid_accuracy"]["mean"], default=None)
    return {
        "run_dir": str(path),
        "recipe": sweep.trials[0].recipe.name,
        "dataset": sweep.config.dataset,
        "device": sweep.config.runtime.device,
        "seed": sweep.trials[0].seed,
        "method": sweep.method,
        "swept": list(sweep.trials[0].changes),
        "test_accuracy": confidence.summarize([member["test_accuracy"] for member in ended]).mean,
        "test_loss": sum(member["test_loss"] for member in ended) / len(ended),
        **{name: sum(member[name] for member in ended) for name in _SUMMED},
        "process_seconds": since_process_start(),
        "members": members,
        "cells": cells,
        "best": best["name"] if best and len(cells) > 1 else None,
    }


def _of_member(path: Path, member: "Trial") -> dict[str, Any]:
    run = path / member.name
    about = {"name": member.name, "seed": member.seed, "changes": member.changes}
    if not (run / run_dir.REPORT).exists():
        values = io.read_json(run / run_dir.NONFINITE)
        return {**about, "failed": f"{values['what']} was not finite at step {values['step']:,}"}
    report = run_dir.read_report(run)
    figures = {name: report[name] for name in _COPIED if name in report}
    return {**about, **figures, "valid_accuracy": _valid_accuracy(run, report)}


def _valid_accuracy(run: Path, report: dict[str, Any]) -> float | None:
    """That of the network which the run ended with, on the images held out."""
    found = [
        record["accuracy"]
        for record in metrics_log.read(run)
        if record.get("split") == "valid" and record["step"] == report["selected"]["step"]
    ]
    return found[-1] if found else None


def _of_cell(path: Path, members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A point of a sweep, over its seeds."""
    changes = members[0]["changes"]
    ended = [member for member in members if "failed" not in member]

    def figures(name: str) -> dict[str, float] | None:
        values = [member[name] for member in ended if member.get(name) is not None]
        return confidence.summarize(values)._asdict() if values else None

    return {
        "name": ", ".join(f"{name} {value}" for name, value in changes.items()),
        "changes": changes,
        "runs": [member["name"] for member in ended],
        "failed": len(members) - len(ended),
        **{name: figures(name) for name in _OVER_SEEDS},
        "together": _together([path / member["name"] for member in ended]),
    }


def _together(runs: Sequence[Path]) -> dict[str, Any] | None:
    """What several networks say about the same images, from the predictions that they left."""
    if len(runs) < 2:
        return None
    found = [read_predictions(run / run_dir.PREDICTIONS) for run in runs]
    logits = torch.stack([examples.logits.float() for examples, _ in found])
    return ensembles.summarize_replicas(logits, found[0][1])
