"""A run directory: everything about one training run, readable without fcifar.

manifest.json              what was asked: recipe, runtime, data set, versions, command
metrics.jsonl              one line for each log point, with digests: see log.py
checkpoint-N.safetensors   the state after N steps, to resume from; the latest few
best.safetensors           the parameters of the lowest validation loss so far
final.safetensors          the trained parameters, under the tutorial's names
predictions.safetensors    what it made of each test image
report.json                the result
plots/                     pictures of it

Each file says when it was changed after it was written: JSON by a seal, the log by a chain of
checks, safetensors by a checksum.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcifar.errors import UserError
from fcifar.runs import jsonfiles, lock, log

MANIFEST = "manifest.json"
METRICS = log.FILE
BEST = "best.safetensors"
FINAL = "final.safetensors"
PREDICTIONS = "predictions.safetensors"
REPORT = "report.json"
PLOTS = "plots"
NONFINITE = "nonfinite.json"  # which rows a run stopped at, if it did

FORMAT = 2


def check_free(run: Path) -> None:
    """Make sure that a new run may be written to ``run``.

    Raises:
        UserError: something is there already.
    """
    if (run / MANIFEST).exists():
        raise UserError(
            f"{run} already holds a run; choose another --out, or continue it with --resume {run}"
        )
    if run.exists() and (not run.is_dir() or any(path.name != lock.FILE for path in run.iterdir())):
        raise UserError(f"{run} is not an empty folder; choose another --out")


def create(run: Path, manifest: Mapping[str, Any]) -> str:
    """Make the directory of a new run with its manifest in it; returns the manifest's seal."""
    manifest = {"format": FORMAT, **manifest}
    jsonfiles.write_sealed(run / MANIFEST, manifest)
    return jsonfiles.seal(manifest)


def rewrite(run: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of a run, whose log keeps hanging on the first one's seal."""
    jsonfiles.write_sealed(run / MANIFEST, {**manifest, "log_seal": seal(run)})


def read_manifest(run: Path) -> dict[str, Any]:
    """What ``create`` wrote.

    Raises:
        UserError: ``run`` is not a run directory, or another version's.
        WorldError: the manifest is damaged or was changed.
    """
    if not (run / MANIFEST).is_file():
        raise UserError(f"{run} is not a run directory: there is no {MANIFEST} in it")
    manifest = jsonfiles.read_sealed(run / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{run / MANIFEST} is not of format {FORMAT}, which this fcifar reads")
    return manifest


def seal(run: Path) -> str:
    """The seal of a run's first manifest, on which its log hangs. Raises as ``read_manifest``."""
    manifest = read_manifest(run)
    return manifest.get("log_seal") or jsonfiles.seal(manifest)


def read_records(run: Path) -> list[dict[str, Any]]:
    """The metrics log. Raises as ``read_manifest``, and a WorldError for a damaged log."""
    return log.read(run, seal(run))


def read_report(run: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        WorldError: it is missing or damaged, or was changed.
    """
    return jsonfiles.read_sealed(run / REPORT)
