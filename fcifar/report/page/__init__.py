"""One self-contained page of a run, of a comparison, or of a group. Nothing in it is fetched.

The same runs give the same page.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fcifar.errors import ExternalError, UsageError
from fcifar.report.page import (
    curves,
    gathering,
    groups,
    pictures,
    reproduction,
    results,
    settings,
)
from fcifar.report.page.document import Part, document
from fcifar.report.page.gathering import Run
from fcifar.report.page.html import folded, pair
from fcifar.train import metrics_log, run_dir, sweep

LARGEST = 100  # runs that a page has in full; more would say nothing to anybody

_OPEN = 2  # confusion matrices of a comparison; the others are folded


def make(paths: Sequence[Path], root: Path) -> str:
    """The page of what is at ``paths``: a run, a group, or several of them side by side.

    Args:
        paths: run directories and groups.
        root: the folder of prepared data sets, for pictures of the hardest images.

    Returns:
        An HTML document.

    Raises:
        UsageError: one is not a finished run, or there are too many.
        ExternalError: a file of one is damaged.
    """
    try:
        return _make(paths, root)
    except (LookupError, TypeError, AttributeError) as error:
        where = ", ".join(map(str, paths))
        raise ExternalError(f"{where} holds values that fcifar did not write: {error!r}") from error


def _make(paths: Sequence[Path], root: Path) -> str:
    if len(paths) == 1 and run_dir.is_group(paths[0]):
        return _of_group(paths[0], root)
    found = sweep.expand(paths)
    if len(found) > LARGEST:
        raise UsageError(
            f"{len(found)} runs are too many for one page; give at most {LARGEST}, or one group"
        )
    runs = gathering.read_runs(found)
    return _of_run(runs[0], root) if len(runs) == 1 else _of_runs(runs, root)


def _of_run(run: Run, root: Path) -> str:
    report, classes = run.report, list(run.report["per_class"])
    return document(
        title=run.title,
        about=f"{run.path.name or run.path}, begun {_day(run.manifest)}",
        head=results.headline(run),
        parts=[
            Part("settings", "Settings", [settings.of_run(run)]),
            Part("curves", "Learning curves", [curves.of_run(run)]),
            Part(
                "classes",
                "Classes",
                [
                    pair(
                        results.by_class(report["per_class"]),
                        results.confusion(report["confusion"], classes),
                    )
                ],
            ),
            Part("calibration", "Calibration", [results.reliability(run)]),
            Part("hardest", "Hardest images", [_hardest([run], root)]),
            Part("timings", "Timings", [results.timings([run])]),
            Part("reproduce", "How to reproduce it", [reproduction.of_run(run)]),
            Part("environment", "Environment", [reproduction.environment([("", run.manifest)])]),
        ],
    )


def _of_runs(runs: Sequence[Run], root: Path) -> str:
    recipes = list(dict.fromkeys(run.report["recipe"] for run in runs))
    datasets = list(dict.fromkeys(run.report["dataset"] for run in runs))
    matrices = [
        results.confusion(
            r.report["confusion"], list(r.report["per_class"]), f"{r.name}: {r.title}"
        )
        for r in runs
    ]
    return document(
        title=f"{', '.join(recipes)} on {', '.join(datasets)}: {len(runs)} runs",
        about="A comparison of runs",
        head=results.side_by_side(runs),
        parts=[
            Part("difference", "Differences", [results.paired(runs)]),
            Part("settings", "Settings", [settings.of_runs(runs)]),
            Part("curves", "Learning curves", [curves.of_runs(runs)]),
            Part(
                "classes",
                "Classes",
                [
                    results.classes_side_by_side(runs),
                    pair(*matrices[:_OPEN]),
                    folded(f"Of the others ({len(matrices[_OPEN:])})", pair(*matrices[_OPEN:]))
                    if matrices[_OPEN:]
                    else "",
                ],
            ),
            Part("hardest", "Hardest images", [_hardest(runs, root)]),
            Part("timings", "Timings", [results.timings(runs)]),
            Part("reproduce", "How to reproduce it", [reproduction.of_runs(runs)]),
            Part(
                "environment",
                "Environment",
                [reproduction.environment([(run.name, run.manifest) for run in runs])],
            ),
        ],
    )


def _of_group(path: Path, root: Path) -> str:
    summary, asked = (
        run_dir.read_report(path, run_dir.SUMMARY),
        run_dir.read_manifest(path, run_dir.SWEEP),
    )
    finished = _best_first(summary, sweep.finished(path))
    runs = gathering.read_runs(finished[:LARGEST])
    logs = [
        metrics_log.read(path / member["name"])
        for member in summary["members"][:LARGEST]
        if (path / member["name"] / run_dir.MANIFEST).exists()
    ]
    together, which = _alike(summary, runs)
    cut = f"; curves, classes and images of {LARGEST} runs" if len(finished) > LARGEST else ""
    swept = f", {' and '.join(summary['swept'])} swept" if summary["swept"] else ""
    return document(
        title=f"{summary['recipe']} on {summary['dataset']}: {len(summary['members'])} runs{swept}",
        about=f"{path.name or path}, begun {_day(asked)}{cut}",
        head=groups.headline(summary),
        parts=[
            Part("spread", "Spread", [groups.spread(summary)]),
            *([Part("sweep", "The sweep", [groups.points(summary)])] if summary["swept"] else []),
            Part("curves", "Learning curves", [curves.of_many(logs)]),
            Part("runs", "Runs", [groups.members(summary)]),
            Part("classes", "Classes", _classes(together, which)),
            Part("hardest", "Hardest images", [_hardest(runs, root)]),
            Part("settings", "Settings", [settings.of_group(runs, summary["swept"])]),
            Part("timings", "Timings", [groups.timings(summary)]),
            Part("reproduce", "How to reproduce it", [reproduction.of_group(path, asked, runs)]),
            Part("environment", "Environment", [reproduction.environment([("", asked)])]),
        ],
    )


def _best_first(summary: dict[str, Any], runs: Sequence[Path]) -> list[Path]:
    """The runs, those of the best point of a sweep before the others."""
    best = {
        run for cell in summary["cells"] if cell["name"] == summary["best"] for run in cell["runs"]
    }
    return sorted(runs, key=lambda run: run.name not in best)


def _alike(summary: dict[str, Any], runs: Sequence[Run]) -> tuple[list[Run], str]:
    """The runs of a group whose answers may be added up, and which they are."""
    cells = summary["cells"]
    if len(cells) == 1:
        return list(runs), "all runs"
    best = [cell for cell in cells if cell["name"] == summary["best"]]
    if not best:
        return list(runs), "all runs of the sweep"
    chosen = set(best[0]["runs"])
    return [r for r in runs if r.path.name in chosen], f"the runs with {best[0]['name']}"


def _classes(runs: Sequence[Run], which: str) -> list[Any]:
    """Accuracy by class and confusions of several runs, their answers added up."""
    classes = list(runs[0].report["per_class"])
    total = torch.tensor([run.report["confusion"] for run in runs]).sum(0)
    per_class = {
        name: {
            "correct": (right := int(total[i, i])),
            "total": (of := int(total[i].sum())),
            "accuracy": right / of if of else None,
        }
        for i, name in enumerate(classes)
    }
    title = f"Confusion matrix, {which} added up"
    return [
        pair(
            results.by_class(per_class, f"the answers of {which} added up"),
            results.confusion(total.tolist(), classes, title),
        )
    ]


def _hardest(runs: Sequence[Run], root: Path) -> Any:
    return pictures.hardest(runs, gathering.pictures_of(runs[0], root))


def _day(manifest: dict[str, Any]) -> str:
    return str(manifest.get("created", "-"))[:10]


__all__ = ["LARGEST", "make"]
