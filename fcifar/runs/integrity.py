"""Whether the files of a run are as they were written. Reads every byte, and computes nothing."""

from pathlib import Path

from fcifar.errors import DamagedError, UserError, WorldError
from fcifar.runs import checkpoint, directory, log, manifest, saving


def check(run: Path) -> list[str]:
    """What is wrong with the files of a run, a line each, the file named first.

    Raises:
        UserError: ``run`` is not a run directory.
        WorldError: its manifest is damaged, on which all else hangs.
    """
    manifest.read_settings(run)
    problems: list[str] = []
    found = {
        name: _read_tensors(run / name, problems)
        for name in _tensor_files(run)
        if (run / name).exists()
    }
    marks = [
        (path.name, _mark(found[path.name], path, problems))
        for path in saving.list_checkpoints(run).values()
        if found[path.name] is not None
    ]
    report = _read_report(run, problems)
    if report:
        marks.append((directory.REPORT, log.Mark(**report["log"])))
        ended = found.get(directory.FINAL)
        if ended is not None and ended["params_digest"] != report["params_digest"]:
            problems.append(f"{run / directory.FINAL} holds other parameters than the report's")
        problems += [
            f"{run / name} is missing, though the run came to its end"
            for name in (directory.FINAL, directory.PREDICTIONS)
            if not (run / name).exists()
        ]
    problems += _log_problems(run, marks)
    return problems


def _tensor_files(run: Path) -> list[str]:
    checkpoints = [path.name for path in saving.list_checkpoints(run).values()]
    return [*checkpoints, directory.BEST, directory.FINAL, directory.PREDICTIONS]


def _read_tensors(path: Path, problems: list[str]) -> dict[str, str] | None:
    try:
        return checkpoint.read(path)[1]
    except WorldError as error:
        problems.append(str(error))
        return None


def _mark(metadata: dict[str, str] | None, path: Path, problems: list[str]) -> log.Mark | None:
    try:
        return saving.mark_of(metadata or {}, path)
    except DamagedError as error:
        problems.append(str(error))
        return None


def _read_report(run: Path, problems: list[str]) -> dict | None:
    if not (run / directory.REPORT).exists():
        return None
    try:
        return directory.read_report(run)
    except WorldError as error:
        problems.append(str(error))
        return None


def _log_problems(run: Path, marks: list[tuple[str, log.Mark | None]]) -> list[str]:
    """Whether the log is whole, and leads to where checkpoints and report say it stood."""
    seal = directory.seal(run)
    try:
        checks = log.read_checks(run, seal)
    except (UserError, WorldError) as error:
        return [str(error)]
    return [
        f"{run / log.FILE} has no line {mark.lines} as {name} knows it"
        for name, mark in marks
        if mark and (mark.lines >= len(checks) or checks[mark.lines] != mark.check)
    ]
