"""fcifar data."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcifar.cli import completion, options, output
from fcifar.errors import UsageError, names_of

if TYPE_CHECKING:
    from fcifar.data import Dataset

app = typer.Typer(
    help="Prepare data sets, and look at them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="See fcifar data list.",
        autocompletion=completion.prepared,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a data set of that name.")]
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


@app.command(name="fetch")
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Which; --list shows them.",
            autocompletion=completion.fetchable,
        ),
    ] = "cifar10",
    list_: Annotated[
        bool, typer.Option("--list", help="Show what can be fetched, and do nothing.")
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="A mirror: of the archive of CIFAR, or of the folder of the other sets' files.",
        ),
    ] = None,
    md5: Annotated[
        str | None,
        typer.Option("--md5", help="Checksum of an archive of CIFAR, if not the official one."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Where torchvision has downloaded it already; nothing is downloaded.",
        ),
    ] = None,
    force: Force = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Download a published data set, check its md5, and prepare it.

    Images become 32x32 RGB: grey ones in three equal channels, other sizes resized.

    [dim]fcifar data fetch
    fcifar data fetch cifar100
    fcifar data fetch fashion-mnist --root ~/data[/]
    """
    from fcifar import data
    from fcifar.cli.progress import counting

    if list_:
        _list_fetchable(json)
        return
    with counting(quiet=quiet) as progress:
        dataset = data.fetch(
            data.data_root(data_dir),
            name,
            url=url,
            md5=md5,
            downloaded=root,
            progress=progress,
            overwrite=force,
        )
    _announce(dataset, json)


def _list_fetchable(json: bool) -> None:
    from fcifar.data.catalog import KNOWN

    if json:
        output.document(
            [
                {"name": k.name, "summary": k.summary, "images": k.images, "bytes": k.bytes}
                for k in KNOWN.values()
            ]
        )
        return
    output.table(
        ("name", "what", "images", "download"),
        [(k.name, k.summary, k.images, f"{k.bytes / 1e6:,.0f} MB") for k in KNOWN.values()],
    )


@app.command(name="import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of images, a .zip or .tar.gz of one, an official archive, an .npz, "
            ".parquet files of Hugging Face or their folder, or a test set as .npy.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="What to call it.",
            show_default="cifar10 or cifar100 if it is that, else the source's name",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="crop|stretch",
            help="Make images of any size 32x32: crop cuts the middle out of the longer side, "
            "stretch changes proportions.",
            show_default="refuse other sizes",
        ),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(
            "--test-fraction",
            metavar="PART",
            help="Part of each class to test with, where there is no test folder.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Which images --test-fraction takes.", show_default="0"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="fine|coarse",
            help="Of CIFAR-100: 100 classes, or 20 groups.",
            show_default="fine",
        ),
    ] = None,
    corruption: Annotated[
        str | None,
        typer.Option(
            "--corruption",
            metavar="NAME",
            help="Of CIFAR-10-C: which of its files, such as fog.",
            show_default=False,
        ),
    ] = None,
    severity: Annotated[
        int | None,
        typer.Option(
            "--severity",
            metavar="1|2|3|4|5",
            help="Of CIFAR-10-C: which of the five parts of a file.",
            show_default="all five",
        ),
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    force: Force = False,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Prepare a data set from files.

    A folder has train/CLASS/*.png and test/CLASS/*.png (or val/ without test/);
    CLASS/*.png; train/*.png and trainLabels.csv, as Kaggle's CIFAR-10; or the
    form of tiny-ImageNet. Any kind of image that Pillow reads is taken. Images
    are turned as EXIF says, and transparent ones are composited on white. What
    was done and what was left out is shown here and by fcifar data info.

    [dim]fcifar data import cifar-10-python.tar.gz
    fcifar data import photos/ --resize crop --test-fraction 0.1
    fcifar data import cifar-100-python.tar.gz --labels coarse
    fcifar data import CIFAR-10-C/fog.npy --severity 3[/]
    """
    from fcifar import data
    from fcifar.cli.progress import counting
    from fcifar.recipes import check_seed

    if test_fraction is not None and not 0 < test_fraction < 1:
        raise UsageError(f"--test-fraction is {test_fraction}; it must lie between 0 and 1")
    if seed is not None and test_fraction is None:
        raise UsageError("--seed chooses what --test-fraction holds out; give that too")
    chosen = data.ImportOptions(
        resize=resize,
        labels=labels,
        test_fraction=test_fraction or 0.0,
        seed=check_seed(seed or 0),
        corruption=corruption,
        severity=severity,
        skip_unreadable=skip_unreadable,
    )
    with counting(quiet=quiet) as progress:
        dataset = data.import_source(
            source,
            name,
            data.data_root(data_dir),
            options=chosen,
            progress=progress,
            overwrite=force,
        )
    _announce(dataset, json)


def _announce(dataset: "Dataset", json: bool) -> None:
    train, valid, test = (
        len(labels) for labels in (dataset.train_labels, dataset.valid_labels, dataset.test_labels)
    )
    if json:
        output.document(
            {
                "name": dataset.name,
                "train": train,
                "valid": valid,
                "test": test,
                "classes": dataset.classes,
                "source": dataset.source,
                "digest": dataset.digest,
                "preparation": dict(dataset.preparation),
            }
        )
        return
    given = " --set valid=given" if valid else ""
    output.facts(
        [
            ("prepared", dataset.name),
            (
                "images",
                (f"{train:,} for training, " if train else "")
                + (f"{valid:,} for validation, " if valid else "")
                + f"{test:,} for testing",
            ),
            ("classes", f"{len(dataset.classes):,}: {names_of(dataset.classes)}"),
            ("from", dataset.source),
            *_preparation(dataset.preparation),
            ("digest", dataset.digest),
            ("train on it", f"fcifar train --dataset {dataset.name}{given}")
            if train
            else ("evaluate on it", f"fcifar eval RUN --dataset {dataset.name}"),
        ]
    )


def _preparation(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an import did to pixels, and what it left out: names and values."""
    from fcifar.data.image_files import in_words, others_in_words

    def several(name: str, what: str, more: str = "") -> list[str]:
        return [output.count(about[name], what, more or what)] if about.get(name) else []

    done = [
        *several("oriented", "turned as EXIF says"),
        *several("on_white", "composited on white"),
        *several("resized", f"resized ({about.get('resize', 'crop')})"),
        *several("first_frame", "the first of several frames"),
        *several("cut_to_8_bits", "cut to 8 bits a channel"),
        *(f"{count:,} from {mode}" for mode, count in about.get("converted", {}).items()),
    ]
    left = [
        *([in_words(about["left_out"])] if about.get("left_out") else []),
        *([others_in_words(about["others"])] if about.get("others") else []),
        *several("unreadable", "that cannot be read"),
        *several("other_files", "other file", "other files"),
        *several("rows_without_image", "label without image", "labels without image"),
    ]
    tables = [f"{path} ({split})" for split, path in about.get("labels_from", {}).items()]
    return [
        *([("pixels", ", ".join(done) or "as they are in the files")] if "images" in about else []),
        *([("left out", ", ".join(left))] if left else []),
        *([("labels", ", ".join(tables))] if tables else []),
        *([("test split", about["test_from"])] if about.get("test_from") else []),
    ]


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
            *_preparation(facts.preparation),
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
    from fcifar.report.figures import canvas, grids

    key = random.key(check_seed(seed))
    dataset = data.load(name, data.data_root(data_dir))
    path = canvas.save(grids.preview(dataset, key=key), out or Path(f"{name}.png"))
    if json:
        output.document({"name": name, "path": str(path)})
    else:
        output.facts([("drawn", path)])
