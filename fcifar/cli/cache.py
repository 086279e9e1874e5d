"""fcifar cache."""

from datetime import datetime

import typer

from fcifar.cli import output
from fcifar.cli.options import Debug, Json

app = typer.Typer(help="List and remove compiled programs.", no_args_is_help=True)


@app.command("list")
def list_(json: Json = False, debug: Debug = False) -> None:
    """List the compiled steps that later runs load, the last used first.

    [dim]fcifar cache list[/]
    """
    from fcifar.train import programs

    found = programs.find()
    if json:
        output.document([{**p._asdict(), "path": str(p.path)} for p in found])
        return
    if not found:
        output.line(f"there is no compiled program in {programs.folder()}")
        return
    rows = [
        (
            " ".join(p.about.get(name, "?") for name in ("what", "recipe", "dataset")),
            datetime.fromtimestamp(p.used).isoformat(" ", "minutes"),
            output.size(p.bytes),
        )
        for p in found
    ]
    output.table(
        ("what, recipe, data set", "last used", "size"), rows, title=str(programs.folder())
    )


@app.command()
def clear(json: Json = False, debug: Debug = False) -> None:
    """Remove all compiled programs. The next runs compile theirs again.

    [dim]fcifar cache clear[/]
    """
    from fcifar.train import programs

    freed = programs.clear()
    if json:
        output.document({"bytes": freed})
    else:
        output.line(f"removed {output.size(freed)} from {programs.folder()}")
