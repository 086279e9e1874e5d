"""fcifar export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fcifar.cli import models, options, output, progress
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fcifar.runs.inference import Trained


def export(
    run: Annotated[
        Path,
        options.run_argument(
            "A run, by path or name; a final.safetensors, or a state_dict; for .csv a run or "
            "a group of runs."
        ),
    ],
    to: Annotated[
        Path,
        options.path_option(
            "--to",
            "The file; its ending is the format: .pth, .safetensors, .onnx or .pt2 for the "
            "model, .csv for the metrics.",
            "FILE",
            dir_okay=False,
        ),
    ],
    force: Annotated[bool, options.option("--force", "Overwrite an existing file.")] = False,
    average: models.Average = False,
    calibrated: models.Calibrated = False,
    model: models.Model = None,
    recipe: models.RecipeName = None,
    changes: models.Changes = None,
    dataset: models.ClassesOf = None,
    threads: options.Threads = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Export a trained model, or a run's metrics, to another format.

    .pth and .safetensors hold the state_dict. .onnx and .pt2 (torch.export) hold
    the whole function, from uint8 images to logits, with the normalisation in it;
    .onnx needs pip install 'fcifar\\[onnx]'. A model is read back and compared
    with the original on up to 1,000 test images before the file is kept. With
    --calibrated, .onnx and .pt2 divide the logits by the temperature, and
    .safetensors has it in its metadata.

    [dim]fcifar export RUN --to cifar_net.pth
    fcifar export RUN --to net.onnx[/]
    """
    from fcifar.export import csv_log, exporting
    from fcifar.train import run_dir, sweep
    from fcifar.train.runtime import make_runtime

    saved_as = models.recipe_of(model, recipe, changes)
    if to.suffix.lower() == csv_log.SUFFIX:
        if (
            average
            or calibrated
            or any(g is not None for g in (saved_as, dataset, threads, data_dir))
        ):
            raise UsageError(
                f"{to} takes a run's metrics, and --average, --calibrated, --model, --recipe, "
                "--set, --dataset, --threads and --data-dir are of models; leave them out"
            )
        exporting.check_free(to, force=force)
        rows = csv_log.read_rows(run)
        columns = csv_log.write_csv(to, rows)
        values = {"path": str(to), "format": "CSV", "bytes": to.stat().st_size}
        output.result({**values, "rows": len(rows), "columns": columns}, _show_csv, json)
        return
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
    which = {"average": average, "calibrated": calibrated}
    trained = models.load_one(run, saved_as, dataset, data_dir, **which)
    images, source = _images(trained, dataset, data_dir)
    with progress.doing(f"writing and checking {to}", quiet=quiet):
        agreement = exporting.export(trained, to, images, threads=threads, force=force)
    result = exporting.summary(trained, to, agreement)
    result["check"]["source"] = source
    if json:
        output.document(result)
        return
    images_checked = f"{output.count(agreement.images, 'image')} ({source})"
    difference = f"the same predictions, logits within {agreement.largest_difference:.2g}"
    output.facts(
        [
            ("written", f"{to}: {result['format']}, {result['bytes']:,} bytes"),
            ("checked", f"{images_checked}: {difference}"),
            *([("temperature", f"{trained.temperature:.4f}")] if calibrated else []),
            ("classes", ", ".join(trained.classes)),
            ("digest", result["params_digest"]),
        ]
    )


def _show_csv(result: dict[str, Any]) -> None:
    count = f"{output.count(result['rows'], 'log point')}, {len(result['columns'])} columns"
    output.facts([("written", f"{result['path']}: {count}")])


def _images(trained: "Trained", dataset: str | None, data_dir: Path | None) -> "tuple[Tensor, str]":
    """Return images to check with, and their description: test images if they are prepared."""
    from fcifar import data, random
    from fcifar.export import exporting

    root = data.data_root(data_dir)
    name = dataset or trained.dataset or models.DEFAULT
    if any(s.name == name and s.bytes and not s.problem for s in data.list_prepared(root)):
        return exporting.some_of(data.load(name, root).test_images), f"{name}, test"
    shape = (exporting.CHECKED, 3, 32, 32)
    images = random.randint(random.key(0), shape, 0, 256).byte()
    return images, f"random: {name} is not prepared here"
