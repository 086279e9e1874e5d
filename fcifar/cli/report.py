"""fcifar report."""

from pathlib import Path
from typing import Annotated

from fcifar.cli import options, output, progress, render
from fcifar.errors import UsageError


def report(
    runs: Annotated[
        list[Path], options.runs_argument("Runs, or a group of them, by path or name.")
    ],
    html: Annotated[
        Path | None, options.option("--html", "Write a self-contained HTML page.", "FILE")
    ] = None,
    add: Annotated[
        list[Path] | None,
        options.option(
            "--add",
            "With --html: add what eval, influence, compare or labels wrote there with --out.",
            "FOLDER",
        ),
    ] = None,
    force: Annotated[bool, options.option("--force", "Overwrite an existing file.")] = False,
    plots: Annotated[bool, options.option("--plots", "Draw the figures in plots/ again.")] = False,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show the results of a run as training did at its end, or make a page of it.

    The page of --html has settings, curves, tables, confusions, the hardest
    images and how to reproduce the run. It is a single file. For several runs
    it compares them. --add puts corruptions, attacks, attributions, influence,
    the path between two runs or suspicious labels on it, which eval, influence,
    compare and labels write with --out.

    [dim]fcifar report RUN
    fcifar report RUN --html page.html
    fcifar eval RUN --corrupt all --out robust/
    fcifar report RUN --html page.html --add robust/[/]
    """
    from fcifar import data
    from fcifar.io import write_text
    from fcifar.report import page

    if add and html is None:
        raise UsageError("--add is for the page of --html; give that, too")
    if html is not None:
        _check_free(html, force=force)
    elif len(runs) > 1:
        raise UsageError(f"{len(runs)} runs need a page: give --html FILE, or use fcifar compare")
    if plots:
        _draw(runs, data_dir, quiet=quiet)
    if html is None:
        _show(runs[0], json=json)
        return
    with progress.doing("making the page", quiet=quiet):
        text = page.make(runs, data.data_root(data_dir), add or ())
        write_text(html, text)
    size = len(text.encode())
    if json:
        output.document({"html": str(html), "bytes": size, "runs": list(map(str, runs))})
    else:
        output.line(f"{html}: {size / 1e3:,.0f} kB, open it in any browser")


def _check_free(path: Path, *, force: bool) -> None:
    """Check that a page may be written to ``path``."""
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder; give the name of a file, such as page.html")
    if path.exists() and not force:
        raise UsageError(f"{path} already exists; choose another --html, or add --force")


def _draw(runs: list[Path], data_dir: Path | None, *, quiet: bool) -> None:
    """Write the figures of runs and groups again."""
    from fcifar.cli.data import open_dataset
    from fcifar.report import draw
    from fcifar.train import run_dir, sweep
    from fcifar.train.config import check_same_data, read_config

    for path in runs:
        if run_dir.is_group(path):
            draw.group(path)
        for each in sweep.expand([path]):
            config = read_config(each)
            data = open_dataset(config.dataset, data_dir, quiet=quiet)
            check_same_data(each, config, data)
            with progress.doing(f"drawing the figures of {each}", quiet=quiet):
                draw.run(each, data)


def _show(path: Path, *, json: bool) -> None:
    """Print the results of a run or a group."""
    from fcifar.report.page import reading
    from fcifar.train import run_dir, sweep

    is_group = run_dir.is_group(path)
    if is_group:
        sweep.finished(path)
        values = run_dir.read_report(path, run_dir.SUMMARY)
    else:
        values = reading.read_runs([path])[0].report
    values = {**values, "run_dir": str(path)}  # it may have been moved
    output.result(values, render.show_sweep if is_group else render.show_report, json)
