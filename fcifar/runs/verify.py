"""Check the files of a run against their checksums and against each other."""

import contextlib
from pathlib import Path

from fcifar import tensor_files, tree
from fcifar.errors import ExternalError, UsageError
from fcifar.runs import temperature
from fcifar.train import checkpoint, config, metrics_log, run_dir, sweep


def verify(path: Path) -> list[str]:
    """Check the files of a run or a group; return a line per problem, which begins with the file.

    Raises:
        UsageError: ``path`` is neither.
        ExternalError: its manifest is damaged.
    """
    if not run_dir.is_group(path):
        return _verify_run(path)
    problems = run_dir.check_files(path, run_dir.SUMMARY)
    for run in (path / trial.name for trial in sweep.read(path).trials):
        if (run / run_dir.MANIFEST).exists():
            try:
                problems += _verify_run(run)
            except (UsageError, ExternalError) as error:
                problems.append(str(error))
        elif (path / run_dir.SUMMARY).exists():
            problems.append(f"{run} is missing, though the group is finished")
    return problems


def _verify_run(run: Path) -> list[str]:
    init = config.read_config(run).init
    problems = run_dir.check_files(run)

    def add(path: Path, problem: str) -> None:
        if not any(known.startswith(f"{path} ") for known in problems):  # one problem per file
            problems.append(problem)

    finished, checkpoints = run_dir.is_finished(run), list(run_dir.list_checkpoints(run).values())
    best, final, average, predictions = (
        run / name for name in (run_dir.BEST, run_dir.FINAL, run_dir.AVERAGE, run_dir.PREDICTIONS)
    )
    report, positions = {}, []
    with contextlib.suppress(ExternalError):  # a damaged report is among the problems already
        report = run_dir.read_report(run) if finished else {}
    digests = {final: report.get("params_digest"), average: report.get("average_params_digest")}
    needed = {path: "the run is finished" for path in (final, predictions) if finished}
    needed |= {average: "the run is finished"} if digests[average] else {}
    needed |= {run / run_dir.INIT: "the run began with it"} if init else {}
    for path in (*checkpoints, run / run_dir.INIT, best, final, average, predictions):
        try:
            if not path.exists():
                if path in needed:
                    add(path, f"{path} is missing, though {needed[path]}")
                continue
            values, metadata = tensor_files.read(path)
            if path.name == run_dir.INIT and tree.digest(values) != getattr(init, "digest", ""):
                add(path, f"{path} holds other values than the run began with")
            if path in checkpoints:
                positions.append(checkpoint.read_metadata(metadata, path)[1])
            if digests.get(path) and digests[path] != metadata["params_digest"]:
                add(path, f"{path} holds other parameters than the report's")
        except ExternalError as error:
            add(path, str(error))
    try:
        by_entry = {temperature.FINAL: digests[final], temperature.AVERAGE: digests[average]}
        if stale := temperature.problem(run, by_entry):
            add(run / run_dir.CALIBRATION, stale)
    except ExternalError as error:
        add(run / run_dir.CALIBRATION, str(error))
    try:
        metrics_log.read_digests(run)
        for position in positions:
            metrics_log.read_prefixes(run, position)
    except ExternalError as error:
        for path in (run / name for name in (run_dir.METRICS, run_dir.DIGESTS)):
            if str(path) in str(error):
                add(path, str(error))
    return problems
