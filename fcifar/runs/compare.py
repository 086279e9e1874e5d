"""Runs side by side, on the same images."""

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

_FIGURES = ("accuracy", "interval95", "loss", "n", "params_digest")


def check(runs: Sequence[Path], networks: Sequence[Trained]) -> None:
    """Check that models can be compared.

    Raises:
        UsageError: there are fewer than two, or their classes are not the same.
    """
    if len(runs) < 2:
        raise UsageError(
            f"{' '.join(map(str, runs))} alone cannot be compared; give two runs or more, "
            "or see one with fcifar eval"
        )
    for run, network in zip(runs, networks, strict=False):
        if network.classes != networks[0].classes:
            raise UsageError(
                f"{run} knows the classes {names_of(network.classes)}, but {runs[0]} knows "
                f"{names_of(networks[0].classes)}; compare runs with the same classes"
            )


def compare(
    runs: Sequence[Path],
    networks: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
) -> dict[str, Any]:
    """Figures of each network, and of how each differs from the first, as values JSON holds.

    All are evaluated on the same images in the same order, so that the differences are paired.

    Args:
        runs: where the networks came from: run directories or ``final.safetensors`` files.
        networks: what ``inference.load`` gave for each.
        split: ``test`` or ``train``; ``valid`` where the data set has validation images of its own
            and no network's training held others out of it.

    Raises:
        UsageError: there is no such split, ``check`` refuses the models, or the data set has other
            classes.
    """
    check(runs, networks)
    inference.check_images(networks, dataset, split)
    names = list(itertools.islice(letters(), len(runs)))
    measured, correct = [], []
    for name, run, network in zip(names, runs, networks, strict=True):
        figures, examples = inference.evaluate(network, runtime, dataset, split)
        chosen = {key: figures[key] for key in _FIGURES}
        measured.append({"name": name, **_facts(run, network), **io.finite(chosen)})
        correct.append(examples.correct)
    return {
        "dataset": dataset.name,
        "split": split,
        "n": measured[0]["n"],
        "runs": measured,
        "comparisons": [against_first(names, correct, i) for i in range(1, len(runs))],
    }


def _facts(run: Path, network: Trained) -> dict[str, Any]:
    """What is known without an evaluation; of a file alone, neither seed nor seconds."""
    is_run = run.is_dir()
    manifest = run_dir.read_manifest(run) if is_run else {}
    finished = is_run and (run / run_dir.REPORT).exists()
    report = run_dir.read_report(run) if finished else {}
    return {
        "run": str(run),
        "recipe": network.recipe.name,
        "trained_on": network.dataset or None,
        "seed": manifest.get("seed"),
        "train_seconds": report.get("train_seconds"),
    }
