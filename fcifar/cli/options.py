"""Options that several commands share."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from fcifar.cli import completion
from fcifar.errors import UsageError, shown

_runtime = functools.partial(typer.Option, rich_help_panel="Where and how to compute")
output_option = functools.partial(typer.Option, rich_help_panel="Data and output")


def in_utf8(path: Path | None) -> Path | None:
    """Return ``path``; safetensors writes files at any path, and reads them at UTF-8 ones only."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path {shown(str(path))} is not UTF-8, which files of tensors need; choose another"
        ) from error
    return path


def where_run_is(path: Path | None) -> Path | None:
    """Return a path as it is, and the name of a run as its path in the folder of runs."""
    from fcifar.runs.listing import named
    from fcifar.train.run_dir import runs_root

    return path if path is None or path.exists() else named(path, runs_root())


def where_runs_are(paths: list[Path]) -> list[Path | None]:
    return [where_run_is(path) for path in paths]


run_argument = functools.partial(
    typer.Argument, metavar="RUN", callback=where_run_is, autocompletion=completion.runs
)
runs_argument = functools.partial(
    typer.Argument, metavar="RUN", callback=where_runs_are, autocompletion=completion.runs
)
dataset_option = functools.partial(
    typer.Option, "--dataset", help="See fcifar data list.", autocompletion=completion.datasets
)

Device = Annotated[
    str | None,
    _runtime(
        "--device",
        metavar="auto|cpu|cuda[:N]|mps",
        help="Where to compute; auto: the first accelerator there is.",
        show_default="auto",
    ),
]
Seed = Annotated[
    int | None, _runtime("--seed", help="The seed of every random draw.", show_default="0")
]
Threads = Annotated[
    int | None,
    _runtime(
        "--threads",
        help="CPU threads; results depend on it in the last bits.",
        show_default="in fcifar train by the work of a step; else one a core",
    ),
]
Precision = Annotated[
    str | None,
    _runtime(
        "--precision",
        metavar="fp32|bf16",
        help="Arithmetic; parameters stay float32.",
        show_default="the recipe's, else fp32",
    ),
]
Deterministic = Annotated[
    bool | None,
    _runtime(
        "--deterministic/--fast",
        help="Only kernels that give the same bits each time, or the fastest ones.",
        show_default="deterministic on CPU, fast elsewhere",
    ),
]
DataDir = Annotated[
    Path | None,
    output_option(
        "--data-dir",
        help="The folder of prepared data sets.",
        callback=in_utf8,
        show_default="$FCIFAR_DATA, else the user's cache folder",
    ),
]
RunsDir = Annotated[
    Path | None,
    output_option(
        "--runs-dir",
        help="The folder of runs.",
        callback=in_utf8,
        show_default="$FCIFAR_RUNS, else runs/",
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
]
Json = Annotated[bool, output_option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, output_option("--quiet", "-q", help="No progress.")]
Debug = Annotated[bool, output_option("--debug", help="Show the traceback on errors.")]
