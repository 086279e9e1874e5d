"""A self-contained HTML page of a run, of a comparison or of a group.

The same runs give the same page.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fcifar.errors import ExternalError, UsageError
from fcifar.report.draw import read_logs
from fcifar.report.figures import curves
from fcifar.report.page import groups, questions, reading, results, settings
from fcifar.report.page.blocks import Folded, Pair, Section, render
from fcifar.report.page.reading import Run
from fcifar.train import run_dir, sweep

LARGEST = 100  # runs of a page, and runs of a group with curves, classes and images
_OPEN = 2  # confusion matrices of a comparison that are not folded


def make(paths: Sequence[Path], root: Path, more: Sequence[Path] = ()) -> str:
    """Return the page of a run, a group, or several of them side by side.

    Args:
        paths: run directories and groups.
        root: the folder of prepared data sets, for the hardest images.
        more: folders that other commands wrote about the runs, see ``questions``.

    Returns:
        An HTML document.

    Raises:
        UsageError: one is not a finished run, there are too many, or a folder is not of them.
        ExternalError: a file is damaged.
    """
    try:
        return _make(paths, root, more)
    except (LookupError, TypeError, AttributeError) as error:
        where = ", ".join(map(str, paths))
        raise ExternalError(f"{where} holds values that fcifar did not write: {error!r}") from error


def _make(paths: Sequence[Path], root: Path, more: Sequence[Path]) -> str:
    if len(paths) == 1 and run_dir.is_group(paths[0]):
        return _of_group(paths[0], root, more)
    found = sweep.expand(paths)
    if len(found) > LARGEST:
        raise UsageError(
            f"{len(found)} runs are too many for one page; give at most {LARGEST}, or one group"
        )
    runs = reading.read_runs(found)
    added = questions.sections(more, _digests(run.report for run in runs))
    return _of_run(runs[0], root, added) if len(runs) == 1 else _of_runs(runs, root, added)


def _digests(reports: Iterable[Mapping[str, Any]]) -> set[str]:
    """The digests of the final parameters of runs, and of their averages."""
    names = ("params_digest", "average_params_digest")
    return {report[name] for report in reports for name in names if name in report}


def _of_run(run: Run, root: Path, added: Sequence[Section]) -> str:
    classes = [results.by_class(run.report["per_class"]), results.confusion(run.report)]
    return render(
        run.title,
        f"{run.path.name or run.path}, started {_day(run.manifest)}",
        results.headline(run),
        [
            Section("settings", "Settings", settings.of_run(run)),
            Section("curves", "Learning curves", [results.curves([run])]),
            Section("classes", "Classes", [Pair(classes)]),
            Section("calibration", "Calibration", [results.reliability(run)]),
            *added,
            Section("hardest", "Hardest images", [results.hardest([run], root)]),
            Section("timings", "Timings", [results.timings([run])]),
            Section("reproduce", "How to reproduce it", settings.reproduce_run(run)),
            Section("environment", "Environment", settings.environment({"": run.manifest})),
        ],
    )


def _of_runs(runs: Sequence[Run], root: Path, added: Sequence[Section]) -> str:
    names = [dict.fromkeys(run.report[key] for run in runs) for key in ("recipe", "dataset")]
    recipes, datasets = (", ".join(each) for each in names)
    matrices = [results.confusion(run.report, f"{run.name}: {run.title}") for run in runs]
    classes: list[Any] = [results.classes_side_by_side(runs), Pair(matrices[:_OPEN])]
    if rest := matrices[_OPEN:]:
        classes.append(Folded(f"Confusion matrices of the others ({len(rest)})", [Pair(rest)]))
    manifests = {run.name: run.manifest for run in runs}
    return render(
        f"{recipes} on {datasets}: {len(runs)} runs",
        "A comparison of runs",
        [results.side_by_side(runs)],
        [
            Section("difference", "Differences", [results.differences(runs)]),
            Section("settings", "Settings", settings.of_runs(runs)),
            Section("curves", "Learning curves", [results.curves(runs)]),
            Section("classes", "Classes", classes),
            *added,
            Section("hardest", "Hardest images", [results.hardest(runs, root)]),
            Section("timings", "Timings", [results.timings(runs)]),
            Section("reproduce", "How to reproduce them", settings.reproduce_runs(runs)),
            Section("environment", "Environment", settings.environment(manifests)),
        ],
    )


def _of_group(path: Path, root: Path, more: Sequence[Path]) -> str:
    summary = run_dir.read_report(path, run_dir.SUMMARY)
    added = questions.sections(more, _digests(summary["members"]))
    manifest = run_dir.read_manifest(path, run_dir.SWEEP)
    best = {run for c in summary["cells"] if c["name"] == summary["best"] for run in c["runs"]}
    finished = sorted(sweep.finished(path), key=lambda run: run.name not in best)  # best first
    runs = reading.read_runs(finished[:LARGEST])
    logs = read_logs(path, summary, LARGEST)
    cut = f"; curves, classes and images of {LARGEST} runs" if len(finished) > LARGEST else ""
    swept = f", {' and '.join(summary['swept'])} swept" if summary["swept"] else ""
    points = [Section("sweep", "The sweep", groups.points(summary))] if summary["swept"] else []
    charts = (curves.of_group(logs, fields=[field]) for field in curves.FIELDS)
    return render(
        f"{summary['recipe']} on {summary['dataset']}: {len(summary['members'])} runs{swept}",
        f"{path.name or path}, started {_day(manifest)}{cut}",
        groups.headline(summary),
        [
            Section("spread", "Spread", groups.spread(summary)),
            *points,
            Section("curves", "Learning curves", [results.curve_pair(charts)]),
            Section("runs", "Runs", [groups.members(summary)]),
            Section("classes", "Classes", [_classes(summary, runs)]),
            *added,
            Section("hardest", "Hardest images", [results.hardest(runs, root)]),
            Section("settings", "Settings", settings.of_group(runs, summary["swept"])),
            Section("timings", "Timings", [groups.timings(summary)]),
            Section(
                "reproduce", "How to reproduce them", settings.reproduce_group(path, manifest, runs)
            ),
            Section("environment", "Environment", settings.environment({"": manifest})),
        ],
    )


def _classes(summary: dict[str, Any], runs: Sequence[Run]) -> Pair:
    """Accuracy by class and confusions, summed over the runs of the best point or of the group."""
    which = "all runs"
    if len(summary["cells"]) > 1:
        best = [cell for cell in summary["cells"] if cell["name"] == summary["best"]]
        which = f"the runs with {best[0]['name']}" if best else "all runs of the sweep"
        runs = [run for run in runs if not best or run.path.name in best[0]["runs"]]
    total = torch.tensor([run.report["confusion"] for run in runs]).sum(0)
    per_class = {
        name: {
            "correct": (right := int(total[i, i])),
            "total": (count := int(total[i].sum())),
            "accuracy": right / count if count else None,
        }
        for i, name in enumerate(runs[0].report["per_class"])
    }
    report = {"per_class": per_class, "confusion": total.tolist()}
    title = f"Confusion matrix, sum over {which}"
    return Pair(
        [results.by_class(per_class, f"sum over {which}"), results.confusion(report, title)]
    )


def _day(manifest: dict[str, Any]) -> str:
    return str(manifest.get("created", "-"))[:10]


__all__ = ["LARGEST", "make"]
