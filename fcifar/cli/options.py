"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from fcifar.errors import UsageError, shown

_RUNTIME = "Where and how to compute"
OUTPUT = "Data and output"


def in_utf8(path: Path | None) -> Path | None:
    """``path``, unless safetensors would write files there and could not read them again."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path {shown(str(path))} is not UTF-8, which files of tensors need; choose another"
        ) from error
    return path


def where_run_is(path: Path | None) -> Path | None:
    """A run by its name in the folder of runs as a path; a path as it is."""
    from fcifar.runs.listing import named
    from fcifar.train.run_dir import runs_root

    if path is None or path.exists():
        return path
    return named(path, runs_root())


def where_runs_are(paths: list[Path]) -> list[Path]:
    """As ``where_run_is``, of each."""
    return [where_run_is(path) or path for path in paths]


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where to compute; auto takes the first accelerator there is.",
        show_default="auto",
        rich_help_panel=_RUNTIME,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        help="The number that every random draw comes from.",
        show_default="0",
        rich_help_panel=_RUNTIME,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="CPU threads; results depend on it in the last bits.",
        show_default="in fcifar train by the work of a step; else one a core",
        rich_help_panel=_RUNTIME,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|bf16",
        help="Arithmetic; parameters stay float32.",
        show_default="the recipe's, else fp32",
        rich_help_panel=_RUNTIME,
    ),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic/--fast",
        help="Only kernels that give the same bits each time, or the fastest ones.",
        show_default="deterministic on CPU, fast elsewhere",
        rich_help_panel=_RUNTIME,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="The folder of prepared data sets.",
        callback=in_utf8,
        show_default="$FCIFAR_DATA, else the user's cache folder",
        rich_help_panel=OUTPUT,
    ),
]
RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        help="The folder of runs.",
        callback=in_utf8,
        show_default="$FCIFAR_RUNS, else runs/",
        rich_help_panel=OUTPUT,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Go on without images that cannot be read."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=OUTPUT)]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show the traceback on errors.", rich_help_panel=OUTPUT),
]
