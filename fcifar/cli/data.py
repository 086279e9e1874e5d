"""fcifar data."""

import contextlib
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar import data
from fcifar.cli import completion, output
from fcifar.cli.options import DataDir, Debug, Json, Quiet, SkipUnreadable, argument, option
from fcifar.cli.progress import counting
from fcifar.data.catalog import KNOWN
from fcifar.data.digest import begin
from fcifar.errors import UsageError, names_of

app = typer.Typer(help="Prepare and inspect data sets.", no_args_is_help=True)

Name = Annotated[str, argument("NAME", "See fcifar data list.", completion.prepared)]
Force = Annotated[bool, option("--force", "Overwrite a data set of that name.")]
_ROWS = 30  # most rows of a table of classes


def open_dataset(name: str, data_dir: Path | None, *, quiet: bool) -> "data.Dataset":
    """Load a data set and check its digest; fetch it first if it is known and not prepared."""
    with opening_dataset(name, data_dir, quiet=quiet) as dataset:
        return dataset


def begin_to_read(name: str, data_dir: Path | None) -> None:
    """Begin to read a data set, to be called before torch is imported, which takes a second."""
    with contextlib.suppress(UsageError, OSError):  # a mistake is reported when it is opened
        begin(name, data.data_root(data_dir))


@contextlib.contextmanager
def opening_dataset(name: str, data_dir: Path | None, *, quiet: bool) -> Generator["data.Dataset"]:
    """As ``open_dataset``, but check the digest during the block, which must not print anything.

    Raises:
        ExternalError: at the end of the block, also if it raised: the data set is damaged.
    """
    from fcifar.train.distributed import main_first

    root = data.data_root(data_dir)
    with main_first("dataset"):
        if name in KNOWN and all(s.name != name for s in data.list_prepared(root)):
            size = f"{KNOWN[name].bytes / 1e6:,.0f} MB"
            output.note(f"{name} is not prepared in {root}; fetching it ({size})")
            with counting(quiet=quiet) as progress:
                data.fetch(root, name, progress=progress)
        if name == "shapes10" and not quiet and not (root / "shapes10.safetensors").exists():
            output.note("drawing shapes10, once")
        dataset = data.load(name, root)
    with ThreadPoolExecutor() as pool:
        checking = pool.submit(data.verify, name, root)
        try:
            yield dataset
        finally:
            checking.result()


@app.command()
def fetch(
    name: Annotated[str, argument("NAME", "See --list.", completion.fetchable)] = "cifar10",
    list_: Annotated[bool, option("--list", "List what can be fetched.")] = False,
    url: Annotated[
        str | None, option("--url", "A mirror of the CIFAR archive, or of the folder of files.")
    ] = None,
    md5: Annotated[
        str | None, option("--md5", "Checksum of a CIFAR archive other than the official one.")
    ] = None,
    root: Annotated[
        Path | None, option("--root", "Use torchvision's download in this folder.", "DIR")
    ] = None,
    force: Force = False,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download a published data set, check its md5, and prepare it.

    Images become 32x32 RGB: grey ones in three equal channels, other sizes resized.

    [dim]fcifar data fetch
    fcifar data fetch cifar100
    fcifar data fetch fashion-mnist --root ~/data[/]
    """

    if list_:
        _list_fetchable(json)
        return
    store = data.data_root(data_dir)
    with counting(quiet=quiet) as progress:
        dataset = data.fetch(
            store, name, url=url, md5=md5, downloaded=root, progress=progress, overwrite=force
        )
    _announce(dataset, json)


def _list_fetchable(json: bool) -> None:
    if json:
        names = ("name", "summary", "images", "bytes")
        output.document([{name: getattr(k, name) for name in names} for k in KNOWN.values()])
        return
    rows = [(k.name, k.summary, k.images, f"{k.bytes / 1e6:,.0f} MB") for k in KNOWN.values()]
    output.table(("name", "what", "images", "download"), rows)


@app.command(name="import")
def import_(
    source: Annotated[
        Path,
        argument(
            "SOURCE",
            "A folder of images, a .zip or .tar.gz of one, an official archive, an .npz, "
            ".parquet files of Hugging Face or their folder, or a test set as .npy.",
        ),
    ],
    name: Annotated[
        str | None,
        option("--name", "Name of the data set.", None, "cifar10, cifar100, or the source's name"),
    ] = None,
    resize: Annotated[
        str | None,
        option(
            "--resize",
            "Make images of any size 32x32: crop cuts the middle out of the longer side, "
            "stretch changes proportions.",
            "crop|stretch",
            "refuse other sizes",
        ),
    ] = None,
    test_fraction: Annotated[
        float | None,
        option("--test-fraction", "Part of each class for testing, without a test folder.", "PART"),
    ] = None,
    seed: Annotated[
        int | None, option("--seed", "The seed of --test-fraction.", default="0")
    ] = None,
    labels: Annotated[
        str | None,
        option("--labels", "CIFAR-100: 100 classes, or 20 groups.", "fine|coarse", "fine"),
    ] = None,
    corruption: Annotated[
        str | None,
        option("--corruption", "CIFAR-10-C: one of its files, such as fog.", "NAME", "all of them"),
    ] = None,
    severity: Annotated[
        int | None,
        option("--severity", "CIFAR-10-C: one of five parts of a file.", "1|2|3|4|5", "all five"),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    force: Force = False,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Prepare a data set from files.

    A folder has train/CLASS/*.png and test/CLASS/*.png (or val/ without test/);
    CLASS/*.png; train/*.png and trainLabels.csv, as Kaggle's CIFAR-10; or the
    layout of tiny-ImageNet. Images have any format that Pillow reads. EXIF
    orientation is applied, and transparent pixels are composited on white. What
    was changed or left out is shown here and by fcifar data info.

    [dim]fcifar data import cifar-10-python.tar.gz
    fcifar data import photos/ --resize crop --test-fraction 0.1
    fcifar data import cifar-100-python.tar.gz --labels coarse
    fcifar data import CIFAR-10-C.tar
    fcifar data import CIFAR-10-C/fog.npy --severity 3[/]
    """
    from fcifar.recipes import check_seed

    if test_fraction is not None and not 0 < test_fraction < 1:
        raise UsageError(f"--test-fraction is {test_fraction}; it must lie between 0 and 1")
    if seed is not None and test_fraction is None:
        raise UsageError("--seed needs --test-fraction; give that, too")
    chosen = data.ImportOptions(
        resize=resize,
        labels=labels,
        test_fraction=test_fraction or 0.0,
        seed=check_seed(seed or 0),
        corruption=corruption,
        severity=severity,
        skip_unreadable=skip_unreadable,
    )
    store = data.data_root(data_dir)
    with counting(quiet=quiet) as progress:
        dataset = data.import_source(
            source, name, store, options=chosen, progress=progress, overwrite=force
        )
    _announce(dataset, json)


def _announce(dataset: "data.Dataset", json: bool) -> None:
    train, valid, test = (
        len(labels) for labels in (dataset.train_labels, dataset.valid_labels, dataset.test_labels)
    )
    if json:
        fields = {n: getattr(dataset, n) for n in ("name", "classes", "source", "digest")}
        sizes = {"train": train, "valid": valid, "test": test}
        output.document({**fields, **sizes, "preparation": dict(dataset.preparation)})
        return
    counts = {"training": train, "validation": valid, "testing": test}
    given = " --set valid=given" if valid else ""
    use = ("train on it", f"fcifar train --dataset {dataset.name}{given}")
    output.facts(
        [
            ("prepared", dataset.name),
            ("images", ", ".join(f"{n:,} for {what}" for what, n in counts.items() if n)),
            ("classes", f"{len(dataset.classes):,}: {names_of(dataset.classes)}"),
            ("from", dataset.source),
            *_preparation(dataset.preparation),
            ("digest", dataset.digest),
            use if train else ("evaluate on it", f"fcifar eval RUN --dataset {dataset.name}"),
        ]
    )


def _preparation(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines on what an import did to pixels, and what it left out."""
    from fcifar.data.image_files import in_words, others_in_words

    def counts(*texts: tuple[str, str]) -> list[str]:
        return [f"{about[key]:,} {text}" for key, text in texts if about.get(key)]

    def plural(key: str, one: str, several: str) -> list[str]:
        return [output.count(about[key], one, several)] if about.get(key) else []

    changed = [
        *counts(
            ("oriented", "turned as EXIF says"),
            ("on_white", "composited on white"),
            ("resized", f"resized ({about.get('resize', 'crop')})"),
            ("first_frame", "the first of several frames"),
            ("cut_to_8_bits", "cut to 8 bits a channel"),
        ),
        *(f"{count:,} from {mode}" for mode, count in about.get("converted", {}).items()),
    ]
    left_out = [
        *([in_words(about["left_out"])] if about.get("left_out") else []),
        *([others_in_words(about["others"])] if about.get("others") else []),
        *counts(("unreadable", "that cannot be read")),
        *plural("other_files", "other file", "other files"),
        *plural("rows_without_image", "label without image", "labels without image"),
        *([_without(about["label_errors"])] if "label_errors" in about else []),
    ]
    pixels = ", ".join(changed) or "as they are in the files"
    tables = [f"{path} ({split})" for split, path in about.get("labels_from", {}).items()]
    names, levels = about.get("corruptions", []), about.get("severities", [])
    each = f"{about.get('images', 0) // (len(names) * len(levels)):,}" if names else ""
    blocks = f"{names_of(names)}; severities {names_of([*map(str, levels)])}; {each} images each"
    pairs = (
        ("corruptions", blocks if names else ""),
        ("pixels", pixels if "images" in about else ""),
        ("left out", ", ".join(left_out)),
        ("labels", ", ".join(tables)),
        ("test split", about.get("test_from")),
    )
    return [(name, text) for name, text in pairs if text]


def _without(label_errors: Mapping[str, Any]) -> str:
    count = output.count(len(label_errors["rows"]), "likely label error")
    return f"{count} of {label_errors['dataset']} ({label_errors['how']})"


@app.command("list")
def list_(data_dir: DataDir = None, json: Json = False, debug: Debug = False) -> None:
    """List the prepared data sets."""
    root = data.data_root(data_dir)
    summaries = data.list_prepared(root)
    if json:
        output.document([s._asdict() for s in summaries])
        return
    given = any(s.valid_size for s in summaries)
    columns = ("name", "train", *(["valid"] if given else []), "test", "classes", "size", "source")
    rows = []
    for s in summaries:
        sizes = [s.train_size, *([s.valid_size] if given else []), s.test_size if s.bytes else 0]
        counts = ["-" if s.problem or not size else f"{size:,}" for size in sizes]
        if s.problem:
            rows.append((s.name, *counts, "-", "-", s.problem))
        else:
            size = output.size(s.bytes) if s.bytes else "built in"
            rows.append((s.name, *counts, str(len(s.classes)), size, s.source))
    output.table(columns, rows, title=str(root))


@app.command()
def info(name: Name, data_dir: DataDir = None, json: Json = False, debug: Debug = False) -> None:
    """Show counts, pixel statistics, source and digest of a data set."""
    facts = data.info(name, data.data_root(data_dir))
    if json:
        output.document(facts._asdict())
        return
    train, valid, test = facts.train_counts, facts.valid_counts, facts.test_counts
    counts = {"train": train, **({"valid": valid} if valid else {}), "test": test}
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
            ("images", f"{sum(train):,} + {sum(test):,}"),
            *([("validation", f"{sum(valid):,}, for --set valid=given")] if valid else []),
            *([] if any(train) else [("training", "none: a test set alone")]),
            ("mean", ", ".join(f"{m:.4f}" for m in facts.mean)),
            ("std", ", ".join(f"{s:.4f}" for s in facts.std)),
            ("source", facts.source),
            *_preparation(facts.preparation),
            ("file", f"{facts.path} ({output.size(facts.bytes)})"),
            ("digest", facts.digest),
        ]
    )


@app.command()
def verify(name: Name, data_dir: DataDir = None, json: Json = False, debug: Debug = False) -> None:
    """Read every byte of a data set, and compare it with the recorded digest."""
    digest = data.verify(name, data.data_root(data_dir))
    if json:
        output.document({"name": name, "digest": digest, "intact": True})
    else:
        output.facts([(name, "intact"), ("digest", digest)])


@app.command()
def preview(
    name: Name,
    out: Annotated[
        Path | None, option("--out", "The PNG file.", None, "NAME.png", dir_okay=False)
    ] = None,
    seed: Annotated[int, option("--seed", "The seed of the choice of images.")] = 0,
    data_dir: DataDir = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw a grid of training images, one row per class.

    At most 40 classes are shown. A set without training images shows test images.

    [dim]fcifar data preview cifar10 --out cifar10.png[/]
    """
    from fcifar import random
    from fcifar.recipes import check_seed
    from fcifar.report.figures import canvas, grids

    key = random.key(check_seed(seed))
    dataset = data.load(name, data.data_root(data_dir))
    path = canvas.save(grids.preview(dataset, key=key), out or Path(f"{name}.png"))
    if json:
        output.document({"name": name, "path": str(path)})
    else:
        output.facts([("drawn", path)])
