"""Options that several commands share."""

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, output
from fcifar.errors import UsageError, shown


def option(
    flags: str, help: str, metavar: str | None = None, default: str | None = None, **more: Any
) -> Any:
    """Return a ``typer.Option``. ``default`` describes a default that is not a value."""
    more |= {"help": help, "metavar": metavar, "show_default": default or True}
    return typer.Option(*flags.split(), **more)


def argument(metavar: str, help: str, complete: Any = None, **more: Any) -> Any:
    """Return a ``typer.Argument``."""
    return typer.Argument(metavar=metavar, help=help, autocompletion=complete, **more)


def in_utf8(path: Path | None) -> Path | None:
    """Return ``path``; safetensors writes files at any path, and reads them at UTF-8 ones only."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the path {shown(str(path))} is not UTF-8, which files of tensors need; choose another"
        ) from error
    return path


def locate_run(context: typer.Context, path: Path | None) -> Path | None:
    """Return a path as it is, and the name of a run as its path in ``--runs-dir``."""
    from fcifar.runs.listing import locate
    from fcifar.train.run_dir import runs_root

    return path and locate(path, runs_root(context.params.get("runs_dir")))


def locate_runs(context: typer.Context, paths: list[Path] | None) -> list[Path | None]:
    return [locate_run(context, path) for path in paths or ()]


def note_slow(threads: int | None) -> int | None:
    """Return the number of threads, which may be larger than that of the cores."""
    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        output.note(
            f"--threads is {threads}, and this machine has {output.count(cores, 'core')}: it will "
            "be slow, and only serves to get the rounding of a larger machine"
        )
    return threads


run_argument = functools.partial(argument, "RUN", complete=completion.runs, callback=locate_run)
runs_argument = functools.partial(run_argument, callback=locate_runs)
dataset_option = functools.partial(
    option, "--dataset", "See fcifar data list.", None, autocompletion=completion.datasets
)
path_option = functools.partial(option, callback=in_utf8)
output_option = functools.partial(option, rich_help_panel="Data and output")
_folder = functools.partial(output_option, callback=in_utf8)
_runtime = functools.partial(option, rich_help_panel="Where and how to compute")

Device = Annotated[
    str | None,
    _runtime("--device", "Device; auto: the first accelerator.", "auto|cpu|cuda[:N]|mps", "auto"),
]
Seed = Annotated[int | None, _runtime("--seed", "The seed of every random draw.", default="0")]
Threads = Annotated[
    int | None,
    _runtime(
        "--threads",
        "CPU threads; results depend on it in the last bits. More than there are cores: slow.",
        default="train: chosen by the size of a step; else all cores",
        callback=note_slow,
    ),
]
Precision = Annotated[
    str | None,
    _runtime(
        "--precision", "Arithmetic; parameters are float32.", "fp32|bf16", "the recipe's, else fp32"
    ),
]
Deterministic = Annotated[
    bool | None,
    _runtime(
        "--deterministic/--fast",
        "Only kernels that give the same bits each time, or the fastest ones.",
        default="deterministic on CPU, fast elsewhere",
    ),
]
DataDir = Annotated[
    Path | None,
    _folder("--data-dir", "The folder of data sets.", None, "$FCIFAR_DATA, else the user's cache"),
]
RunsDir = Annotated[
    Path | None,
    # Eager: RUN is looked for in it.
    _folder("--runs-dir", "The folder of runs.", None, "$FCIFAR_RUNS, else runs/", is_eager=True),
]
SkipUnreadable = Annotated[
    bool, option("--skip-unreadable", "Leave out images that cannot be read.")
]
Explain = Annotated[
    str | None,
    option(
        "--explain",
        "Draw which pixels a prediction depends on: all of gradient, smooth_grad, "
        "integrated_gradients and grad_cam, or some. Needs --out.",
        "all|METHOD,METHOD",
    ),
]
Json = Annotated[bool, output_option("--json", "Print one JSON document on stdout.")]
Quiet = Annotated[bool, output_option("--quiet -q", "No progress.")]
Debug = Annotated[bool, output_option("--debug", "Show the traceback on errors.")]
