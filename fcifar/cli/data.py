"""fcifar data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcifar.cli import options, output

if TYPE_CHECKING:
    from fcifar.data import Dataset

app = typer.Typer(
    help="Prepare data sets, and look at them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="See fcifar data list.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a data set of that name.")]


def open_dataset(name: str, data_dir: Path | None, *, quiet: bool) -> "Dataset":
    """The data set, checked against its digest; CIFAR-10 is fetched when it is not there."""
    from fcifar import data
    from fcifar.cli.progress import counting

    root = data.data_root(data_dir)
    if name == "cifar10" and all(s.name != name for s in data.list_prepared(root)):
        output.note(f"cifar10 is not prepared in {root}; fetching it")
        with counting(quiet=quiet) as progress:
            return data.fetch(root, progress=progress)
    if name == "shapes10" and not quiet and not (root / "shapes10.safetensors").exists():
        output.note("drawing shapes10, once")
    dataset = data.load(name, root)
    data.verify(name, root)
    return dataset


@app.command()
def fetch(
    url: Annotated[
        str | None, typer.Option("--url", help="A mirror of the official archive.")
    ] = None,
    md5: Annotated[
        str | None, typer.Option("--md5", help="Its checksum, if not the official one.")
    ] = None,
    force: Force = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Download the official CIFAR-10 archive, check it, and prepare it as cifar10."""
    from fcifar import data
    from fcifar.cli.progress import counting

    with counting(quiet=quiet) as progress:
        dataset = data.fetch(
            data.data_root(data_dir), url=url, md5=md5, progress=progress, overwrite=force
        )
    _announce(dataset, json)


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="The official archive or folder, a folder of train/CLASS/*.png and "
            "test/CLASS/*.png, a .zip or .tar.gz of one, or an .npz."
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "cifar10",
    force: Force = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Prepare a data set from files."""
    from fcifar import data
    from fcifar.cli.progress import counting

    with counting(quiet=quiet) as progress:
        dataset = data.import_source(
            source, name, data.data_root(data_dir), progress=progress, overwrite=force
        )
    _announce(dataset, json)


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
    output.table(
        ("name", "train", "test", "classes", "size", "source"),
        [
            (s.name, "-", "-", "-", "-", s.problem)
            if s.problem
            else (
                s.name,
                f"{s.train_size:,}" if s.bytes else "-",
                f"{s.test_size:,}" if s.bytes else "-",
                str(len(s.classes)),
                f"{s.bytes / 1e6:.0f} MB" if s.bytes else "built in",
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
    output.table(
        ("class", "train", "test"),
        [
            (c, f"{a:,}", f"{b:,}")
            for c, a, b in zip(facts.classes, facts.train_counts, facts.test_counts, strict=True)
        ],
    )
    output.stdout.print()
    output.facts(
        [
            ("images", f"{sum(facts.train_counts):,} + {sum(facts.test_counts):,}"),
            ("mean", ", ".join(f"{m:.4f}" for m in facts.mean)),
            ("std", ", ".join(f"{s:.4f}" for s in facts.std)),
            ("source", facts.source),
            ("file", f"{facts.path} ({facts.bytes / 1e6:.0f} MB)"),
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
    """Draw a grid of training images, a row a class."""
    from fcifar import data, random
    from fcifar.report import pictures
    from fcifar.runs.runtime import Runtime

    key = random.key(Runtime(seed=seed).seed)  # which says in which range a seed must lie
    dataset = data.load(name, data.data_root(data_dir))
    path = pictures.preview(dataset, out or Path(f"{name}.png"), key=key)
    if json:
        output.document({"name": name, "path": str(path)})
    else:
        output.facts([("drawn", path)])


def _announce(dataset: "Dataset", json: bool) -> None:
    train, test = len(dataset.train_labels), len(dataset.test_labels)
    if json:
        output.document(
            {
                "name": dataset.name,
                "train": train,
                "test": test,
                "classes": dataset.classes,
                "source": dataset.source,
                "digest": dataset.digest,
            }
        )
        return
    output.facts(
        [
            ("prepared", dataset.name),
            ("images", f"{train:,} for training, {test:,} for testing"),
            ("classes", ", ".join(dataset.classes)),
            ("digest", dataset.digest),
        ]
    )
