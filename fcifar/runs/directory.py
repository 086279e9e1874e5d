"""A run directory: everything about one training run, readable without fcifar.

manifest.json           what was asked: recipe, runtime, data set, versions, command
metrics.jsonl           one line for each log point
checkpoint.safetensors  the last saved state, to resume from
best.safetensors        the parameters of the lowest validation loss so far
final.safetensors       the trained parameters, under the tutorial's names
predictions.safetensors what it made of each test image
report.json             the result
plots/                  pictures of it
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcifar.data.files import cannot_write, write_text
from fcifar.errors import UserError, WorldError

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
BEST = "best.safetensors"
FINAL = "final.safetensors"
PREDICTIONS = "predictions.safetensors"
REPORT = "report.json"
PLOTS = "plots"

FORMAT = 1


def check_free(run: Path) -> None:
    """Make sure that a new run may be written to ``run``.

    Raises:
        UserError: something is there already.
    """
    if (run / MANIFEST).exists():
        raise UserError(
            f"{run} already holds a run; choose another --out, or continue it with --resume {run}"
        )
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} is not an empty folder; choose another --out")


def create(run: Path, manifest: Mapping[str, Any]) -> None:
    """Make the directory of a new run with its manifest in it."""
    write_json(run / MANIFEST, {"format": FORMAT, **manifest})


def read_manifest(run: Path) -> dict[str, Any]:
    """What ``create`` wrote.

    Raises:
        UserError: ``run`` is not a run directory, or a later version's.
    """
    if not (run / MANIFEST).is_file():
        raise UserError(f"{run} is not a run directory: there is no {MANIFEST} in it")
    manifest = read_json(run / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{run / MANIFEST} is not of format {FORMAT}, which this fcifar reads")
    return manifest


def append_record(run: Path, record: Mapping[str, Any]) -> None:
    """Add a line to the metrics log."""
    path = run / METRICS
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_dumps(record) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def read_records(run: Path) -> list[dict[str, Any]]:
    """The metrics log; a last line that was cut short is left out."""
    path = run / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except json.JSONDecodeError as error:
        raise WorldError(f"{path} is damaged: {error}") from error


def rewind_records(run: Path, step: int) -> None:
    """Forget the log points after ``step``."""
    kept = [record for record in read_records(run) if record["step"] <= step]
    write_text(run / METRICS, "".join(_dumps(record) + "\n" for record in kept))


def write_json(path: Path, values: Any) -> None:
    """Replace ``path`` by ``values`` as JSON."""
    write_text(path, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        WorldError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorldError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} cannot be read as JSON: {error}") from error


def _dumps(values: Any) -> str:
    return json.dumps(_finite(values), allow_nan=False)


def _finite(values: Any) -> Any:
    # JSON has no NaN and no infinity: null stands for both.
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return values
