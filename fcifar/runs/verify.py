"""Whether the files of a run are as they were written. Reads every byte, and computes nothing."""

import contextlib
from pathlib import Path

from fcifar import tensor_files
from fcifar.errors import ExternalError, UsageError
from fcifar.train import checkpoint, config, metrics_log, run_dir, sweep


def verify(path: Path) -> list[str]:
    """What is wrong with the files of a run or a group of runs, a line each, the file named first.

    Raises:
        UsageError: ``path`` is neither.
        ExternalError: its manifest is damaged, without which the rest means nothing.
    """
    return _verify_group(path) if run_dir.is_group(path) else _verify_run(path)


def _verify_run(run: Path) -> list[str]:
    config.read_config(run)
    problems = run_dir.check_files(run)
    finished, checkpoints = run_dir.is_finished(run), list(run_dir.list_checkpoints(run).values())
    best, final, predictions = (
        run / name for name in (run_dir.BEST, run_dir.FINAL, run_dir.PREDICTIONS)
    )
    digest, positions = None, []
    with contextlib.suppress(ExternalError):  # a damaged report is among the problems already
        digest = run_dir.read_report(run)["params_digest"] if finished else None
    for path in (*checkpoints, best, final, predictions):
        try:
            if not path.exists():
                if finished and path != best:
                    _add(problems, path, f"{path} is missing, though the run is finished")
                continue
            _, metadata = tensor_files.read(path)
            if path in checkpoints:
                positions.append(checkpoint.read_metadata(metadata, path)[1])
            if path == final and digest not in (None, metadata["params_digest"]):
                _add(problems, path, f"{path} holds other parameters than the report's")
        except ExternalError as error:
            _add(problems, path, str(error))
    try:
        metrics_log.read_digests(run)
        for position in positions:
            metrics_log.read_prefixes(run, position)
    except ExternalError as error:
        for path in (run / name for name in (run_dir.METRICS, run_dir.DIGESTS)):
            if str(path) in str(error):
                _add(problems, path, str(error))
    return problems


def _add(problems: list[str], path: Path, problem: str) -> None:
    """Add a problem with a file, unless one is known already."""
    if not any(known.startswith(f"{path} ") for known in problems):
        problems.append(problem)


def _verify_group(path: Path) -> list[str]:
    trials = sweep.read(path).trials
    problems = run_dir.check_files(path, run_dir.SUMMARY)
    for run in (path / trial.name for trial in trials):
        if (run / run_dir.MANIFEST).exists():
            try:
                problems += _verify_run(run)
            except (UsageError, ExternalError) as error:
                problems.append(str(error))
        elif (path / run_dir.SUMMARY).exists():
            problems.append(f"{run} is missing, though the group is finished")
    return problems
