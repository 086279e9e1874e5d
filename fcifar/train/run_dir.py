"""Run directories: the files of one training run, readable without fcifar.

manifest.json              configuration, versions, machine, command
metrics.jsonl              a line for each log point and each evaluation: see metrics_log.py
digests.jsonl              digests of the state at each of them, tensor by tensor
checkpoint-N.safetensors   the latest states, after N steps
best.safetensors           the model of the lowest validation loss so far
init.safetensors           pretrained values that training began with (--init)
final.safetensors          the trained model, under the tutorial's names
average.safetensors        with ema_decay or swa_start: the average of the model over training
predictions.safetensors    loss, logits and label of each test image
report.json                the result
calibration.json           from fcifar eval --calibrate: the temperature of the model
SHA256SUMS                 of the files above, for ``sha256sum -c``; at first only of the manifest
plots/                     figures

``report.json`` is written last: a run that has one is finished, and its ``SHA256SUMS`` complete.
"""

import contextlib
import hashlib
import math
import os
import re
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from fcifar import io
from fcifar.errors import DamagedError, ExternalError, UsageError, shown

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
DIGESTS = "digests.jsonl"
INIT = "init.safetensors"
BEST = "best.safetensors"
FINAL = "final.safetensors"
AVERAGE = "average.safetensors"
PREDICTIONS = "predictions.safetensors"
REPORT = "report.json"
CHECKSUMS = "SHA256SUMS"
PLOTS = "plots"
NONFINITE = "nonfinite.json"  # step and batch rows of a non-finite loss

SWEEP = "group.json"  # the manifest of a group of runs
CALIBRATION = "calibration.json"  # written after the report, see runs.temperature
SUMMARY = "summary.json"  # the report of a group of runs

FORMAT = 3

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{8,})\.safetensors")
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


# Paths -------------------------------------------------------------------------------------------


def runs_root(runs_dir: Path | None = None) -> Path:
    """Return the folder of runs: ``runs_dir``, else ``$FCIFAR_RUNS``, else ``runs``."""
    if runs_dir is not None:
        return runs_dir
    root = os.environ.get("FCIFAR_RUNS") or "runs"
    try:
        root.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"FCIFAR_RUNS is {shown(root)}, which is not UTF-8, as safetensors requires; choose "
            "another"
        ) from error
    return Path(os.path.expanduser(root))


@contextlib.contextmanager
def new_run(root: Path, recipe: str, dataset: str, which: str) -> Generator[Path]:
    """Make a folder in ``root`` for a new run (``which`` is ``seed0``) or group (``8runs``).

    Its name ends with the time, and with a number when runs of one name begin in one second. It is
    removed at the end of the block if it is empty.
    """
    stem = f"{recipe}-{dataset}-{which}-{time.strftime('%Y%m%d-%H%M%S')}"
    with io.made(root):
        run, number = root / stem, 1
        while not _makes(run):
            number += 1
            run = root / f"{stem}-{number}"
        try:
            yield run
        finally:
            with contextlib.suppress(OSError):
                run.rmdir()


def _makes(folder: Path) -> bool:
    """Make a folder, unless there is one: whether it was made."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def check_free(run: Path) -> None:
    """Raise a UsageError unless a new run may be written to ``run``."""
    if (run / MANIFEST).exists():
        raise UsageError(
            f"{run} already holds a run; choose another --out, or resume it with --resume {run}"
        )
    begun = (io.LOCK, INIT)  # written before the manifest
    if run.exists() and (not run.is_dir() or any(p.name not in begun for p in run.iterdir())):
        what = "not empty" if run.is_dir() else "a file"
        raise UsageError(f"--out {run} is {what}; give a new or an empty folder")


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the path of the checkpoint after ``step`` steps."""
    return run / f"checkpoint-{step:08}.safetensors"


def list_checkpoints(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by step, the latest first."""
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in run.iterdir())
    paths = {int(match[1]): path for match, path in matches if match}
    return dict(sorted(paths.items(), reverse=True))


def is_finished(run: Path) -> bool:
    """Whether a run is finished."""
    return (run / REPORT).exists()


def is_group(path: Path) -> bool:
    """Whether ``path`` is the directory of a group of runs."""
    return (path / SWEEP).is_file()


# Manifests and reports ---------------------------------------------------------------------------


def write_manifest(run: Path, manifest: Mapping[str, Any], name: str = MANIFEST) -> None:
    """Write the manifest of a new run, or (as ``SWEEP``) of a group, and its checksum."""
    # An interruption in between leaves a manifest without checksum, which counts as valid.
    (run / CHECKSUMS).unlink(missing_ok=True)
    io.write_json(run / name, {"format": FORMAT, **manifest})
    write_checksums(run, [name])


def read_manifest(run: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Read the manifest of a run, or (as ``SWEEP``) of a group.

    Raises:
        UsageError: there is none, or it has another format version.
        ExternalError: it is damaged or was changed.
    """
    if not (run / name).is_file():
        kind = "a group of runs" if name == SWEEP else "a run directory"
        raise UsageError(f"{run} is not {kind}: there is no {name} in it")
    manifest = _read_object(run, name)
    if (version := manifest.get("format")) != FORMAT:
        raise UsageError(
            f"{run / name} is of format {shown(version)}, and this fcifar reads format {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    return manifest


def write_result(run: Path, values: Mapping[str, Any], name: str = REPORT) -> None:
    """Write the checksums of a run's files, then its report, or (as ``SUMMARY``) a group's."""
    text = io.to_json(values)
    checkpoints = (path.name for path in list_checkpoints(run).values())
    names = [
        MANIFEST,
        METRICS,
        DIGESTS,
        INIT,
        BEST,
        FINAL,
        AVERAGE,
        PREDICTIONS,
        SWEEP,
        *checkpoints,
    ]
    write_checksums(run, names, {name: _sha256(text.encode())})
    io.write_text(run / name, text)


def read_report(run: Path, name: str = REPORT) -> dict[str, Any]:
    """Read the report of a finished run, or (as ``SUMMARY``) of a group.

    Raises an ExternalError if it is missing, damaged or was changed.
    """
    return _read_object(run, name)


def _read_object(run: Path, name: str) -> dict[str, Any]:
    values = io.parse_json(read_checked(run, name), run / name)
    if not isinstance(values, dict):
        raise DamagedError(f"{run / name} is damaged: it does not hold a JSON object")
    return values


# Checksums ---------------------------------------------------------------------------------------


def write_checksums(run: Path, names: Iterable[str], more: Mapping[str, str] = {}) -> None:
    """Write ``SHA256SUMS`` of those named files that exist, and of ``more``, digests by name."""
    digests = {name: _sha256((run / name).read_bytes()) for name in names if (run / name).exists()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted({**digests, **more}.items())]
    io.write_text(run / CHECKSUMS, "".join(lines))


def add_json(run: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON file to a finished run, or replace it, and add it to ``SHA256SUMS``.

    The other checksums stay as they are. An interruption leaves the file without a checksum, which
    counts as valid.
    """
    text, checksums = io.to_json(values), read_checksums(run)
    if checksums.pop(name, None):
        write_checksums(run, (), checksums)
    io.write_text(run / name, text)
    write_checksums(run, (), {**checksums, name: _sha256(text.encode())})


def read_checksums(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each file by name; empty without a ``SHA256SUMS``.

    Raises a DamagedError unless it is in the format of ``sha256sum``.
    """
    if not (run / CHECKSUMS).exists():
        return {}
    try:
        lines = io.read_bytes(run / CHECKSUMS, limit=io.LARGEST_JSON).decode().split("\n")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{run / CHECKSUMS} is damaged: it is not UTF-8") from error
    checksums: dict[str, str] = {}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in checksums:
            raise DamagedError(f"{run / CHECKSUMS} is damaged in line {number}")
        checksums[match[2]] = match[1]
    return checksums


def read_checked(run: Path, name: str) -> bytes:
    """Read a file of a run. Raises a DamagedError if it differs from ``SHA256SUMS``."""
    expected = read_checksums(run).get(name)
    limit = io.LARGEST_JSON if name.endswith(".json") else math.inf
    content = io.read_bytes(run / name, limit=limit)
    if expected not in (None, _sha256(content)):
        raise DamagedError(f"{run / name} is damaged: its SHA-256 is not that in {CHECKSUMS}")
    return content


def check_files(run: Path, result: str = REPORT) -> list[str]:
    """Compare the files of a run with ``SHA256SUMS``; return a line for each problem.

    ``result`` is the file that is written last, after a complete ``SHA256SUMS``.
    """
    try:
        checksums = read_checksums(run)
    except ExternalError as error:
        return [str(error)]
    if not (run / result).exists():  # the other entries are from before the run was resumed
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
