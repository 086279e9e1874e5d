"""A run directory: everything about one training run, readable without fcifar.

manifest.json              what was asked: recipe, seed, runtime, data set, versions, command
metrics.jsonl              a line for each log point and each evaluation: see metrics_log.py
digests.jsonl              digests of the state at each of them, tensor by tensor
checkpoint-N.safetensors   the state after N steps, to resume from; the latest few
best.safetensors           the parameters of the lowest validation loss so far
final.safetensors          the trained parameters, under the tutorial's names
predictions.safetensors    loss, logits and label of each test image
report.json                the result
SHA256SUMS                 of all files above, for ``sha256sum -c``; at first of the manifest
plots/                     figures

``report.json`` is written last: a run that has one is finished, and its ``SHA256SUMS`` is whole.
"""

import hashlib
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fcifar import io
from fcifar.errors import DamagedError, ExternalError, UsageError, shown

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
DIGESTS = "digests.jsonl"
BEST = "best.safetensors"
FINAL = "final.safetensors"
PREDICTIONS = "predictions.safetensors"
REPORT = "report.json"
CHECKSUMS = "SHA256SUMS"
PLOTS = "plots"
NONFINITE = "nonfinite.json"  # which rows a run stopped at, if it did

SWEEP = "group.json"  # in the directory of a group of runs: what was asked
SUMMARY = "summary.json"  # and its result

FORMAT = 3

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{8,})\.safetensors")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


# Where runs go -----------------------------------------------------------------------------------


def runs_root(runs_dir: Path | None = None) -> Path:
    """The folder of runs; it need not exist yet.

    ``runs_dir`` if given, else ``$FCIFAR_RUNS``, where ~ is the user's home, else "runs" in the
    current folder.

    Raises:
        UsageError: ``$FCIFAR_RUNS`` is not UTF-8, which safetensors cannot read from.
    """
    if runs_dir is not None:
        return runs_dir
    chosen = os.environ.get("FCIFAR_RUNS") or "runs"
    try:
        chosen.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"FCIFAR_RUNS is {shown(chosen)}, which is not UTF-8, as files of tensors need it; "
            "choose another"
        ) from error
    return Path(os.path.expanduser(chosen))


def new_run(root: Path, recipe: str, dataset: str, which: str) -> Path:
    """A directory in ``root`` for a run, or a group of them, that begins now.

    Args:
        which: ``seed0`` for a run, ``8runs`` for a group.
    """
    return root / f"{recipe}-{dataset}-{which}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_free(run: Path) -> None:
    """Check that a new run may be written to ``run``.

    Raises:
        UsageError: something is there already.
    """
    if (run / MANIFEST).exists():
        raise UsageError(
            f"{run} already holds a run; choose another --out, or continue it with --resume {run}"
        )
    if run.exists() and (not run.is_dir() or any(path.name != io.LOCK for path in run.iterdir())):
        raise UsageError(f"{run} is not an empty folder; choose another --out")


def checkpoint_path(run: Path, step: int) -> Path:
    """The checkpoint after ``step`` steps."""
    return run / f"checkpoint-{step:08}.safetensors"


def list_checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, the latest first."""
    paths = ((_CHECKPOINT.fullmatch(path.name), path) for path in run.iterdir())
    found = {int(match[1]): path for match, path in paths if match}
    return dict(sorted(found.items(), reverse=True))


def is_finished(run: Path) -> bool:
    """Whether a run has been trained to its end."""
    return (run / REPORT).exists()


def is_group(path: Path) -> bool:
    """Whether a group of runs is at ``path``."""
    return (path / SWEEP).is_file()


# What is in them ---------------------------------------------------------------------------------


def write_manifest(run: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Write what was asked of a new run, or (as ``SWEEP``) of a group.

    An interruption in between leaves a manifest without checksum, which counts as whole.
    """
    (run / CHECKSUMS).unlink(missing_ok=True)
    io.write_json(run / name, {"format": FORMAT, **manifest})
    write_checksums(run, [name])


def read_manifest(run: Path, name: str = MANIFEST) -> dict[str, Any]:
    """What ``write_manifest`` was given.

    Raises:
        UsageError: ``run`` is not a run directory, or was written by another version.
        ExternalError: the manifest is damaged or was changed.
    """
    if not (run / name).is_file():
        kind = "a group of runs" if name == SWEEP else "a run directory"
        raise UsageError(f"{run} is not {kind}: there is no {name} in it")
    manifest = _read_object(run, name)
    if (found := manifest.get("format")) != FORMAT:
        raise UsageError(
            f"{run / name} is of format {shown(found)}, and this fcifar reads format {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    return manifest


def write_result(run: Path, values: Mapping[str, Any], name: str = REPORT) -> None:
    """Write the checksums of a run's files, and then its report, or a group's summary."""
    text = io.to_json(values)
    checkpoints = (path.name for path in list_checkpoints(run).values())
    names = [*checkpoints, MANIFEST, METRICS, DIGESTS, BEST, FINAL, PREDICTIONS, SWEEP]
    write_checksums(run, names, {name: _sha256(text.encode())})
    io.write_text(run / name, text)


def read_report(run: Path, name: str = REPORT) -> dict[str, Any]:
    """The report of a finished run, or (as ``SUMMARY``) the result of a group.

    Raises:
        ExternalError: it is missing or damaged, or was changed.
    """
    return _read_object(run, name)


def _read_object(run: Path, name: str) -> dict[str, Any]:
    values = io.parse_json(read_checked(run, name), run / name)
    if not isinstance(values, dict):
        raise DamagedError(f"{run / name} is damaged: it does not hold a JSON object")
    return values


# Checksums ---------------------------------------------------------------------------------------


def write_checksums(run: Path, names: Iterable[str], more: Mapping[str, str] = {}) -> None:
    """Write ``SHA256SUMS`` of those named files that are there, and of ``more``, given by name."""
    found = {name: _sha256((run / name).read_bytes()) for name in names if (run / name).exists()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted({**found, **more}.items())]
    io.write_text(run / CHECKSUMS, "".join(lines))


def read_checksums(run: Path) -> dict[str, str]:
    """The SHA-256 of each file by name; nothing where there is no ``SHA256SUMS``.

    Raises:
        DamagedError: it is not in the form of ``sha256sum``.
        ExternalError: it cannot be read.
    """
    if not (run / CHECKSUMS).exists():
        return {}
    try:
        lines = io.read_bytes(run / CHECKSUMS, limit=io.LARGEST_JSON).decode().split("\n")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{run / CHECKSUMS} is damaged: it is not UTF-8") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise DamagedError(f"{run / CHECKSUMS} is damaged in line {number}")
        found[match[2]] = match[1]
    return found


def read_checked(run: Path, name: str) -> bytes:
    """The content of a file of a run.

    Raises:
        DamagedError: it is not what ``SHA256SUMS`` says.
        ExternalError: it is missing or cannot be read.
    """
    expected = read_checksums(run).get(name)
    limit = io.LARGEST_JSON if name.endswith(".json") else math.inf
    content = io.read_bytes(run / name, limit=limit)
    if expected not in (None, _sha256(content)):
        raise DamagedError(f"{run / name} is damaged: its SHA-256 is not that in {CHECKSUMS}")
    return content


def check_files(run: Path, result: str = REPORT) -> list[str]:
    """Which files are not as ``SHA256SUMS`` says, a line each, the file named first.

    Args:
        result: the file whose presence says that ``SHA256SUMS`` is whole.
    """
    try:
        checksums = read_checksums(run)
    except ExternalError as error:
        return [str(error)]
    if not (run / result).exists():  # what it lists was written before the run was resumed
        checksums = {name: checksums[name] for name in (MANIFEST, SWEEP) if name in checksums}
    elif not {result, MANIFEST if result == REPORT else SWEEP} <= checksums.keys():
        return [f"{run / CHECKSUMS} is missing, or does not list {result}"]
    problems = []
    for name in checksums:
        try:
            if not (run / name).exists():
                raise ExternalError(f"{run / name} is missing, and {run / CHECKSUMS} lists it")
            read_checked(run, name)
        except ExternalError as error:
            problems.append(str(error))
    return problems


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
