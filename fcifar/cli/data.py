"""fcifar data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcifar.cli import completion, options, output, prepare

if TYPE_CHECKING:
    from fcifar.data import Dataset

app = typer.Typer(
    help="Prepare data sets, and look at them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="fetch")(prepare.fetch)
app.command(name="import")(prepare.import_)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="See fcifar data list.",
        autocompletion=completion.prepared,
    ),
]
_ROWS = 30  # of a table of classes; --json has all


def open_dataset(name: str, data_dir: Path | None, *, quiet: bool) -> "Dataset":
    """The data set, checked against its digest; one that can be fetched is, if it is not there."""
    from fcifar import data
    from fcifar.cli.progress import counting
    from fcifar.data.catalog import KNOWN
    from fcifar.train.distributed import main_first

    root = data.data_root(data_dir)
    with main_first("dataset"):
        if name in KNOWN and all(s.name != name for s in data.list_prepared(root)):
            size = f"{KNOWN[name].bytes / 1e6:,.0f} MB"
            output.note(f"{name} is not prepared in {root}; fetching it ({size})")
            with counting(quiet=quiet) as progress:
                return data.fetch(root, name, progress=progress)
        if name == "shapes10" and not quiet and not (root / "shapes10.safetensors").exists():
            output.note("drawing shapes10, once")
        dataset = data.load(name, root)
        data.verify(name, root)
        return dataset


@app.command("list")
def list_(
    data_dir: options.DataDir = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List what is prepared."""
    from fcifar import data

    root = data.data_root(data_dir)
    summaries = data.list_prepared(root)
    if json:
        output.document([s._asdict() for s in summaries])
        return
    given = any(s.valid_size for s in summaries)
    output.table(
        ("name", "train", *(["valid"] if given else []), "test", "classes", "size", "source"),
        [
            (s.name, "-", *(["-"] if given else []), "-", "-", "-", s.problem)
            if s.problem
            else (
                s.name,
                f"{s.train_size:,}" if s.train_size else "-",
                *([f"{s.valid_size:,}" if s.valid_size else "-"] if given else []),
                f"{s.test_size:,}" if s.bytes else "-",
                str(len(s.classes)),
                output.size(s.bytes) if s.bytes else "built in",
                s.source,
            )
            for s in summaries
        ],
        title=str(root),
    )


@app.command()
def info(
    name: Name,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show counts, pixel statistics, source and digest of a data set."""
    from fcifar import data

    facts = data.info(name, data.data_root(data_dir))
    if json:
        output.document(facts._asdict())
        return
    counts = {
        "train": facts.train_counts,
        **({"valid": facts.valid_counts} if facts.valid_counts else {}),
        "test": facts.test_counts,
    }
    rows = list(zip(facts.classes, *counts.values(), strict=True))
    output.table(
        ("class", *counts),
        [(name, *(f"{n:,}" for n in numbers)) for name, *numbers in rows[:_ROWS]],
    )
    if len(rows) > _ROWS:
        output.line(f"... and {output.count(len(rows) - _ROWS, 'class', 'classes')} more")
    output.stdout.print()
    output.facts(
        [
            ("classes", f"{len(rows):,}"),
            ("images", f"{sum(facts.train_counts):,} + {sum(facts.test_counts):,}"),
            *(
                [("validation", f"{sum(facts.valid_counts):,}, for --set valid=given")]
                if facts.valid_counts
                else []
            ),
            *([] if any(facts.train_counts) else [("training", "none: a test set alone")]),
            ("mean", ", ".join(f"{m:.4f}" for m in facts.mean)),
            ("std", ", ".join(f"{s:.4f}" for s in facts.std)),
            ("source", facts.source),
            *prepare.preparation(facts.preparation),
            ("file", f"{facts.path} ({output.size(facts.bytes)})"),
            ("digest", facts.digest),
        ]
    )


@app.command()
def verify(
    name: Name,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Read every byte and compare with the recorded digest."""
    from fcifar import data

    digest = data.verify(name, data.data_root(data_dir))
    if json:
        output.document({"name": name, "digest": digest, "intact": True})
    else:
        output.facts([(name, "intact"), ("digest", digest)])


@app.command()
def preview(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The PNG file.", dir_okay=False, show_default="NAME.png"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which images.")] = 0,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a grid of training images, a row a class; of many classes, some.

    Of a test set alone, these are test images.

    [dim]fcifar data preview cifar10 --out cifar10.png[/]
    """
    from fcifar import data, random
    from fcifar.recipes import check_seed
    from fcifar.report import pictures

    key = random.key(check_seed(seed))
    dataset = data.load(name, data.data_root(data_dir))
    path = pictures.preview(dataset, out or Path(f"{name}.png"), key=key)
    if json:
        output.document({"name": name, "path": str(path)})
    else:
        output.facts([("drawn", path)])
