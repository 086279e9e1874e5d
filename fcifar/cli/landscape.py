"""The loss between runs, of fcifar compare: its options, and what it prints."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fcifar.cli import output, progress
from fcifar.cli.options import option
from fcifar.errors import UsageError
from fcifar.report import rows

if TYPE_CHECKING:
    from fcifar.data import Dataset
    from fcifar.runs.inference import Trained
    from fcifar.train.runtime import Runtime

_option = functools.partial(option, rich_help_panel="The loss between runs")
Path_ = Annotated[bool, _option("--path", "Along the line from one run to another.")]
Plane = Annotated[bool, _option("--plane", "On the plane through three runs.")]
Points = Annotated[
    int | None,
    _option("--points", "On the line, or on a side of the plane.", None, "25 or 9"),
]
Match = Annotated[
    bool,
    _option("--match", "Put the units of later runs into the first's order; --path has both ways."),
]
Images = Annotated[
    int | None, _option("--images", "Evaluate on so many, drawn at random.", None, "all")
]
Out = Annotated[Path | None, _option("--out", "A folder for report.json and a figure.")]


def kind_of(path: bool, plane: bool, others: dict[str, Any]) -> str | None:
    """Return "path", "plane" or None. Raise a UsageError for ``others`` without either, or both."""
    given = [name for name, value in others.items() if value]
    if path and plane:
        raise UsageError("--path and --plane cannot be given together; choose one")
    if not path and not plane and given:
        raise UsageError(f"{given[0]} is for the loss between runs; give --path or --plane with it")
    return "path" if path else "plane" if plane else None


def run(
    kind: str,
    paths: Sequence[Path],
    models: Sequence["Trained"],
    runtime: "Runtime",
    data: "Dataset",
    split: str,
    *,
    points: int | None,
    images: int | None,
    match: bool,
    out: Path | None,
    json: bool,
    quiet: bool,
) -> None:
    """Evaluate models between runs; write and print the result."""
    from fcifar.io import write_json
    from fcifar.report import draw
    from fcifar.runs import landscape

    compute = landscape.path if kind == "path" else landscape.plane
    with progress.counting(quiet=quiet) as count:
        result = compute(
            paths,
            models,
            runtime,
            data,
            split,
            points=landscape.POINTS[kind] if points is None else points,
            images=images,
            match=match,
            progress=count,
        )
    if out is not None:
        write_json(out / "report.json", result)
        draw.between_runs(out, result)
    output.result(result, _show_path if kind == "path" else _show_plane, json)


def _show_path(result: dict[str, Any]) -> None:
    _show_runs(result)
    title = "Barrier: the rise of the loss in nats, of the error in points"
    output.table(*rows.barriers(result), title=title)
    _show_matching(result)


def _show_plane(result: dict[str, Any]) -> None:
    _show_runs(result)
    output.facts(rows.plane_facts(result))
    _show_matching(result)


def _show_runs(result: dict[str, Any]) -> None:
    # Paths are long: in the table they would leave no room for the figures.
    images = f"{result['n']:,} {result['split']} images of {result['dataset']}"
    output.facts([*((run["name"], run["run"]) for run in result["runs"]), ("of", images)])
    output.stdout.print()
    output.table(*rows.ends(result))
    output.stdout.print()


def _show_matching(result: dict[str, Any]) -> None:
    if found := rows.matching_facts(result):
        output.stdout.print()
        output.facts(found)
