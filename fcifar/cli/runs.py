"""fcifar runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from fcifar.cli import output, render
from fcifar.cli.options import Debug, Json, RunsDir, option, run_argument, runs_argument
from fcifar.errors import ExternalError, UsageError

app = typer.Typer(help="List, show and remove runs.", no_args_is_help=True)


@app.command("list")
def list_(runs_dir: RunsDir = None, json: Json = False, debug: Debug = False) -> None:
    """List runs and groups of runs, the latest last.

    [dim]fcifar runs list
    fcifar runs list --runs-dir /data/runs --json[/]
    """
    from fcifar.runs import listing
    from fcifar.train.run_dir import runs_root

    root = runs_root(runs_dir)
    entries = listing.find(root)
    if json:
        output.document([render.entry_values(entry) for entry in entries])
        return
    if not entries:
        output.line(f"there is no run in {root} yet; fcifar train makes one")
        return
    rows = [
        (
            f"{entry.name}\n  {render.entry_summary(entry)}".rstrip(),
            entry.state,
            output.percent(entry.test_accuracy, 2),
            render.date(entry.created)[:10],
            output.size(entry.bytes),
        )
        for entry in entries
    ]
    output.table(("run", "state", "test", "begun", "size"), rows, title=str(root))
    unfinished = [entry for entry in entries if entry.resume or entry.state == "damaged"]
    if unfinished:
        output.stdout.print()
    for entry in unfinished:
        output.line(f"resume with: {entry.resume}" if entry.resume else f"damaged: {entry.about}")


@app.command()
def show(
    run: Annotated[Path, run_argument("Its name or path.")],
    runs_dir: RunsDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the settings and results of a run, and the commands that use it.

    [dim]fcifar runs show blitz-cifar10-seed0-20260102-030405[/]
    """
    from fcifar.runs import listing

    entry = listing.describe(run)
    if entry.state == "damaged":
        raise ExternalError(f"{entry.path} is damaged: {entry.about}")
    (render.show_group if entry.members else render.show_run)(entry, json)


@app.command()
def rm(
    runs: Annotated[list[Path], runs_argument("Names or paths of runs.")],
    yes: Annotated[bool, option("--yes -y", "Skip confirmation.")] = False,
    runs_dir: RunsDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove runs and groups of runs, with all files in their folders.

    Refuses other folders, links, single runs of a group, and runs that are being
    trained, and then removes nothing.

    [dim]fcifar runs rm blitz-cifar10-seed0-20260102-030405[/]
    """
    from fcifar.runs import listing

    paths = list(dict.fromkeys(runs))
    for path in paths:
        listing.check_removable(path)
    entries = [listing.describe(path) for path in paths]
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("stdin is not a terminal; pass --yes to skip confirmation")
        for entry in entries:
            members = f", {output.count(entry.members, 'run')}" if entry.members else ""
            output.note(f"{entry.path}: {entry.state}{members}, {output.size(entry.bytes)}")
        if not typer.confirm(f"remove {output.count(len(paths), 'run')}?", err=True):
            raise typer.Abort
    for path in paths:
        listing.remove(path)
    freed = sum(entry.bytes for entry in entries)
    if json:
        output.document({"removed": [str(path) for path in paths], "bytes": freed})
    else:
        output.line(f"removed {', '.join(map(str, paths))}: {output.size(freed)}")
