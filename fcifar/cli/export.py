"""fcifar export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcifar.cli import completion, options, output
from fcifar.cli import models as opening
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fcifar.runs.inference import Trained


def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run, by path or name; a final.safetensors, or a state_dict; for .csv a run or "
            "a group of runs.",
            callback=options.where_run_is,
            autocompletion=completion.runs,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="FILE",
            help="Its name says what it becomes: .pth, .safetensors, .onnx or .pt2 of the "
            "model, .csv of the metrics.",
            dir_okay=False,
            callback=options.in_utf8,
            show_default=False,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a file of that name.")] = False,
    model: opening.Model = None,
    recipe: opening.RecipeName = None,
    changes: opening.Changes = None,
    dataset: opening.ClassesOf = None,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Write a trained network, or a run's metrics, in a form that others read.

    .pth and .safetensors hold the state_dict. .onnx and .pt2 (torch.export) hold
    the whole function, from uint8 images to logits, with the normalisation in it;
    .onnx needs pip install 'fcifar\\[onnx]'. A network is read back and compared
    with itself, on up to 1,000 test images, before the file stays.

    [dim]fcifar export RUN --to cifar_net.pth
    fcifar export RUN --to net.onnx[/]
    """
    from fcifar.export import csv_log

    asked = opening.asked_recipe(model, recipe, changes)
    if to.suffix.lower() != csv_log.SUFFIX:
        return _export_network(run, to, force, asked, dataset, threads, data_dir, json, quiet)
    if any(given is not None for given in (asked, dataset, threads, data_dir)):
        raise UsageError(
            f"{to} takes a run's metrics, and --model, --recipe, --set, --dataset, --threads and "
            "--data-dir are of models; leave them out"
        )
    return _export_metrics(run, to, force, json)


def _export_network(
    run: Path,
    to: Path,
    force: bool,
    asked: Any,
    dataset: str | None,
    threads: int | None,
    data_dir: Path | None,
    json: bool,
    quiet: bool,
) -> int:
    from fcifar.cli import progress
    from fcifar.export import exporting
    from fcifar.train import run_dir, sweep
    from fcifar.train.runtime import make_runtime

    if to.suffix.lower() not in exporting.FORMATS:
        raise UsageError(
            f"--to is {to}; its name must end in {', '.join(exporting.FORMATS)} for the model, "
            "or in .csv for the metrics"
        )
    exporting.check(to, force=force)
    threads = make_runtime(device="cpu", threads=threads).threads
    if run_dir.is_group(run):
        first = sweep.finished(run)[0]
        raise UsageError(f"{run} is a group of runs; export one of them, such as {first}")
    network = opening.load_one(run, asked, dataset, data_dir)
    images, source = _images(network, dataset, data_dir)
    with progress.doing(f"writing and checking {to}", quiet=quiet):
        agreement = exporting.export(network, to, images, threads=threads, force=force)
    result = exporting.summary(network, to, agreement)
    result["check"]["source"] = source
    if json:
        output.document(result)
        return 0
    output.facts(
        [
            ("written", f"{to}: {result['format']}, {result['bytes']:,} bytes"),
            (
                "checked",
                f"{output.count(agreement.images, 'image')} ({source}): the same predictions, "
                f"logits within {agreement.largest_difference:.2g}",
            ),
            ("classes", ", ".join(network.classes)),
            ("digest", result["params_digest"]),
        ]
    )
    return 0


def _images(network: "Trained", dataset: str | None, data_dir: Path | None) -> "tuple[Tensor, str]":
    """Images to check with, and what they are: test images where the data set is prepared."""
    from fcifar import data, random
    from fcifar.export import exporting

    root = data.data_root(data_dir)
    name = dataset or network.dataset or opening.DEFAULT
    there = {s.name for s in data.list_prepared(root) if s.bytes and not s.problem}
    if name in there:
        return exporting.some_of(data.load(name, root).test_images), f"{name}, test"
    shape = (exporting.CHECKED, 3, 32, 32)
    images = random.randint(random.key(0), shape, 0, 256).byte()
    return images, f"random, for {name} is not prepared here"


def _export_metrics(run: Path, to: Path, force: bool, json: bool) -> int:
    from fcifar.export import csv_log, exporting

    exporting.check_free(to, force=force)
    rows = csv_log.read_rows(run)
    columns = csv_log.write_csv(to, rows)
    if json:
        output.document(
            {
                "path": str(to),
                "format": "CSV",
                "bytes": to.stat().st_size,
                "rows": len(rows),
                "columns": columns,
            }
        )
    else:
        count = f"{output.count(len(rows), 'log point')}, {len(columns)} columns"
        output.facts([("written", f"{to}: {count}")])
    return 0
