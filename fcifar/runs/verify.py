"""Whether the files of a run are as they were written. Reads every byte, and computes nothing."""

from pathlib import Path

from fcifar import tensor_files
from fcifar.errors import DamagedError, UserError, WorldError
from fcifar.train import checkpoint, config, metrics_log, run_dir, sweep
from fcifar.train.metrics_log import Position


def verify(path: Path) -> list[str]:
    """What is wrong with the files of a run or a group of runs, a line each, the file named first.

    Raises:
        UserError: ``path`` is neither.
        WorldError: its manifest is damaged, without which the rest means nothing.
    """
    return _verify_group(path) if run_dir.is_group(path) else _verify_run(path)


def _verify_run(run: Path) -> list[str]:
    config.read_config(run)
    problems = run_dir.check_files(run)
    found = {}
    checkpoints = run_dir.list_checkpoints(run).values()
    for path in (
        *checkpoints,
        *(run / n for n in (run_dir.BEST, run_dir.FINAL, run_dir.PREDICTIONS)),
    ):
        if path.exists():
            try:
                found[path] = tensor_files.read(path)[1]
            except WorldError as error:
                _add(problems, path, str(error))
    if run_dir.is_finished(run):
        problems += _verify_end(run, found.get(run / run_dir.FINAL))
    positions = {}
    for path in checkpoints:
        if path in found:
            try:
                positions[path] = checkpoint.read_metadata(found[path], path)[1]
            except DamagedError as error:
                _add(problems, path, str(error))
    return problems + _verify_log(run, positions, problems)


def _verify_end(run: Path, final: dict[str, str] | None) -> list[str]:
    """What a finished run must have besides a report."""
    problems = [
        f"{run / name} is missing, though the run is finished"
        for name in (run_dir.FINAL, run_dir.PREDICTIONS)
        if not (run / name).exists()
    ]
    try:
        report = run_dir.read_report(run)
    except WorldError:  # already among the problems
        return problems
    if final is not None and final["params_digest"] != report["params_digest"]:
        problems.append(f"{run / run_dir.FINAL} holds other parameters than the report's")
    return problems


def _verify_log(run: Path, positions: dict[Path, Position], known: list[str]) -> list[str]:
    """Whether the log can be read, and begins with what the checkpoints say."""
    problems: list[str] = []
    try:
        metrics_log.read_digests(run)
        for position in positions.values():
            metrics_log.check_prefix(run, position)
    except WorldError as error:
        problems.append(str(error))
    files = [problem.split(" ")[0] for problem in known]
    return [problem for problem in problems if problem.split(" ")[0] not in files]


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
            except (UserError, WorldError) as error:
                problems.append(str(error))
        elif (path / run_dir.SUMMARY).exists():
            problems.append(f"{run} is missing, though the group is finished")
    return problems
