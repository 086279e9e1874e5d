"""Temperature scaling of a trained model, kept beside it in ``calibration.json``.

Fitted on the validation images of the run, which training has not learned from. The file has an
entry for the final model and one for the average of the run, each with the digest of the parameters
that it was fitted to. ``SHA256SUMS`` lists it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fcifar import io, tree
from fcifar.analysis import calibration, predictions
from fcifar.data import Dataset
from fcifar.errors import DamagedError, UsageError
from fcifar.losses import cross_entropy
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import EvalOutput
from fcifar.train import run_dir
from fcifar.train.runtime import Runtime

FINAL, AVERAGE = "final", "average"  # entries of the file
_FIGURES = ("loss", "ece", "mean_confidence")


def check(runs: Sequence[Path], split: str) -> None:
    """Raise a UsageError unless ``--calibrate`` can be used with these runs and this split."""
    if len(runs) > 1:
        raise UsageError(f"--calibrate is of one model, and {len(runs)} runs are given; give one")
    if split != "test":
        raise UsageError(
            f"--calibrate fits on validation images and measures on test images, and --split is "
            f"{split}; leave --split out"
        )


def compare(
    fitted: Mapping[str, Any], before: EvalOutput, after: EvalOutput, labels: Tensor
) -> dict[str, Any]:
    """Return temperature, figures of an evaluation before and after it, and what ``fit`` returned.

    ``before`` is the evaluation, and ``after`` what ``rescale`` made of it.
    """
    both = {"before": figures(before, labels), "after": figures(after, labels)}
    return {"temperature": fitted["temperature"], **both, "fitted": dict(fitted)}


def fit(trained: Trained, runtime: Runtime, dataset: Dataset) -> dict[str, Any]:
    """Fit a temperature to the validation images of a model.

    Args:
        trained: from ``inference.load``, without a temperature.
        dataset: the one that it was trained on.

    Returns:
        JSON-serializable values: ``temperature``, ``split`` and ``n`` of the images, ``before`` and
        ``after`` with their loss, ece and mean_confidence, dataset and its digest, params_digest.

    Raises:
        UsageError: there are no validation images, or none of the temperatures is the best: see
            ``calibration.fit_temperature``.
    """
    try:
        data = inference.images_of(trained, dataset, "valid")
    except UsageError as error:
        raise UsageError(
            "--calibrate fits on images that training held out, and this model has none in "
            f"{dataset.name}; train with --valid-fraction 0.1"
        ) from error
    examples = inference.examine(trained, runtime, data)
    try:
        value = calibration.fit_temperature(examples.logits, data.labels).item()
    except ValueError as error:
        raise UsageError(f"--calibrate, on the validation images: {error}") from error
    after = rescale(examples, data.labels, value)
    return {
        "temperature": value,
        "split": "valid",
        "n": len(data.labels),
        "before": figures(examples, data.labels),
        "after": figures(after, data.labels),
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "params_digest": tree.digest(trained.variables.params),
    }


def rescale(examples: EvalOutput, labels: Tensor, temperature: float) -> EvalOutput:
    """Return the results of an evaluation with logits divided by a temperature."""
    logits = examples.logits / temperature
    loss = cross_entropy(logits, labels.cpu())
    return EvalOutput(loss=loss, correct=examples.correct, logits=logits)


def figures(examples: EvalOutput, labels: Tensor) -> dict[str, Any]:
    """Return loss, ece and mean_confidence of an evaluation, see ``predictions.summarize``."""
    names = list(map(str, range(examples.logits.shape[1])))
    metrics = predictions.summarize(examples, labels, names)
    return {name: metrics[name] for name in _FIGURES}


def save(run: Path, fitted: dict[str, Any], *, average: bool = False) -> Path:
    """Write what ``fit`` returned to the directory of a finished run, and its checksum.

    Raises:
        UsageError: another process is writing to the run.
        ExternalError: the file cannot be written.
    """
    with io.locked(run):
        file = run / run_dir.CALIBRATION
        entries = _read(run) if file.exists() else {}
        run_dir.add_json(run, run_dir.CALIBRATION, {**entries, _entry(average): fitted})
    return file


def read(run: Path, *, average: bool = False) -> dict[str, Any] | None:
    """Return what ``fit`` returned for a run, from its directory; None if it was not calibrated.

    Raises an ExternalError if the file is damaged.
    """
    if not (run / run_dir.CALIBRATION).exists():
        return None
    return _read(run).get(_entry(average))


def load(run: Path, *, average: bool = False) -> Trained:
    """Load the model of a run, with logits divided by the temperature that was fitted to it.

    Raises:
        UsageError: there is no temperature, or it was fitted to other parameters.
        ExternalError: a file is damaged.
    """
    command = f"fcifar eval {run} --calibrate{' --average' if average else ''}"
    if not run.is_dir():
        raise UsageError(
            f"--calibrated is of a run directory, and {run} is not one; give a run that fcifar "
            "eval RUN --calibrate has calibrated"
        )
    trained = inference.load(run, average=average)
    fitted = read(run, average=average)
    if fitted is None:
        raise UsageError(f"{run} has no temperature; fit one first with {command}")
    if fitted["params_digest"] != tree.digest(trained.variables.params):
        raise UsageError(
            f"{run / run_dir.CALIBRATION} was fitted to other parameters than those of {run}; fit "
            f"again with {command}"
        )
    return inference.with_temperature(trained, fitted["temperature"])


def problem(run: Path, digests: dict[str, str | None]) -> str:
    """Return what is wrong with the file of a run, in one line; empty if nothing is.

    ``digests`` are those of the parameters, by entry.
    """
    file = run / run_dir.CALIBRATION
    if not file.exists():
        return ""
    for name, fitted in _read(run).items():
        if fitted["params_digest"] != digests.get(name):
            return f"{file} was fitted to other parameters than the report's ({name})"
    return ""


def _entry(average: bool) -> str:
    return AVERAGE if average else FINAL


def _read(run: Path) -> dict[str, Any]:
    file = run / run_dir.CALIBRATION
    entries = io.parse_json(run_dir.read_checked(run, run_dir.CALIBRATION), file)
    for fitted in entries.values() if isinstance(entries, dict) else [None]:
        fitted = fitted if isinstance(fitted, dict) else {}
        value = fitted.get("temperature")
        is_positive = isinstance(value, float) and 0 < value < float("inf")
        if not is_positive or "params_digest" not in fitted:
            raise DamagedError(f"{file} is damaged: it does not hold temperatures")
    return entries
