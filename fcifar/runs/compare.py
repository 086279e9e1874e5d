"""Compare trained models on the same images."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcifar import io
from fcifar.analysis.significance import against_first, letters
from fcifar.data import Dataset
from fcifar.errors import UsageError, names_of
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.train import run_dir
from fcifar.train.runtime import Runtime

_METRICS = ("accuracy", "interval95", "loss", "n", "params_digest")


def check(runs: Sequence[Path], models: Sequence[Trained]) -> None:
    """Raise a UsageError unless there are two models or more, with the same classes."""
    if len(runs) < 2:
        raise UsageError(
            f"{' '.join(map(str, runs))} alone cannot be compared; give two runs or more, "
            "or see one with fcifar eval"
        )
    for run, model in zip(runs, models, strict=False):
        if model.classes != models[0].classes:
            raise UsageError(
                f"{run} has the classes {names_of(model.classes)}, but {runs[0]} has "
                f"{names_of(models[0].classes)}; compare runs with the same classes"
            )


def compare(
    runs: Sequence[Path], models: Sequence[Trained], runtime: Runtime, dataset: Dataset, split: str
) -> dict[str, Any]:
    """Evaluate models on the same images, and test each against the first.

    ``models`` are those of ``runs``, from ``inference.load``. Raises as ``check`` and
    ``inference.check_images``.

    Returns:
        JSON-serializable values: ``runs`` has the metrics of each model, ``comparisons`` the paired
        differences from the first.
    """
    check(runs, models)
    inference.check_images(models, dataset, split)
    names = list(itertools.islice(letters(), len(runs)))
    results, correct = [], []
    for name, run, model in zip(names, runs, models, strict=True):
        metrics, examples = inference.evaluate(model, runtime, dataset, split)
        selected = {key: metrics[key] for key in _METRICS}
        results.append({"name": name, **_metadata(run, model), **io.finite(selected)})
        correct.append(examples.correct)
    return {
        "dataset": dataset.name,
        "split": split,
        "n": results[0]["n"],
        "runs": results,
        "comparisons": [against_first(names, correct, i) for i in range(1, len(runs))],
    }


def _metadata(run: Path, model: Trained) -> dict[str, Any]:
    """Return what is recorded of a model; without a run directory, neither seed nor seconds."""
    manifest = run_dir.read_manifest(run) if run.is_dir() else {}
    report = run_dir.read_report(run) if run.is_dir() and run_dir.is_finished(run) else {}
    return {
        "run": str(run),
        "recipe": model.recipe.name,
        "trained_on": model.dataset or None,
        "seed": manifest.get("seed"),
        "train_seconds": report.get("train_seconds"),
    }
