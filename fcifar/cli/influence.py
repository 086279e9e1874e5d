"""fcifar influence."""

from pathlib import Path
from typing import Annotated, Any

from fcifar.cli import options, output, progress
from fcifar.cli.options import option
from fcifar.report import rows

_OTHER_STEPS = "tracin assumes steps of SGD, and those of {optimizer} have other directions"


def influence(
    run: Annotated[Path, options.run_argument("A run, by path or name; or its final.safetensors.")],
    image: Annotated[
        str, option("--image", "The images, by row of their split.", "ROW[,ROW...]", ...)
    ],
    split: Annotated[str, option("--split", "Which images they are.", "test|train|valid")] = "test",
    method: Annotated[
        str,
        option(
            "--method",
            "Gradients at the run's checkpoints, or influence functions at its final model.",
            "tracin|gauss_newton",
        ),
    ] = "tracin",
    damping: Annotated[
        float | None,
        option("--damping", "Of gauss_newton: added to the curvature.", None, "0.1"),
    ] = None,
    curvature_images: Annotated[
        int | None,
        option(
            "--curvature-images",
            "Of gauss_newton: training images to take the curvature at.",
            None,
            "2000",
        ),
    ] = None,
    top: Annotated[int, option("--top", "How many training images to list at each end.")] = 10,
    out: Annotated[
        Path | None,
        option("--out", "A folder for report.json, influence.csv (all scores) and a figure."),
    ] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    runs_dir: options.RunsDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the training images that lower the loss of an image most, and that raise it.

    A proponent has a positive score, an opponent a negative one. Scores are of
    the training images as they are, without augmentation. tracin sums over all
    checkpoints that a run has kept: train with --checkpoint-every 1000
    --keep-checkpoints 10 for more of them.

    [dim]fcifar influence RUN --image 42
    fcifar influence RUN --image 3,17 --method gauss_newton --out influence/[/]
    """
    from fcifar.cli.data import open_dataset
    from fcifar.errors import UsageError
    from fcifar.export import tables
    from fcifar.io import write_json
    from fcifar.report import draw
    from fcifar.runs import inference, proponents
    from fcifar.train.runtime import make_runtime

    rows = proponents.parse_rows(image)
    if method == "tracin":
        for flag, value in (("--damping", damping), ("--curvature-images", curvature_images)):
            if value is not None:
                raise UsageError(f"{flag} is of --method gauss_newton; leave it out for tracin")
    chosen = proponents.Options(
        method,
        proponents.DAMPING if damping is None else damping,
        proponents.CURVATURE if curvature_images is None else curvature_images,
    )
    proponents.check(chosen, top)
    trained = inference.load(run)
    runtime = make_runtime(
        device=device or "auto", threads=threads, precision=precision, deterministic=deterministic
    )
    if not trained.dataset:
        raise UsageError(f"{run} does not record the data set that it was trained on; give a run")
    data = open_dataset(trained.dataset, data_dir, quiet=quiet)
    with progress.counting(quiet=quiet) as count:
        found, result = proponents.make(
            run, trained, runtime, data, split, rows, chosen, top=top, progress=count
        )
    if out is not None:
        write_json(out / "report.json", result)
        tables.write(out / "influence.csv", proponents.tabulate(found, data.classes))
        draw.influence(out, found, data.train_images, result)
    output.result(result, _show, json)


def _show(result: dict[str, Any]) -> None:
    for each in result["images"]:
        # Not as the title of the table, which would be wrapped at its width.
        output.line(rows.influenced(each))
        output.table(*rows.influences(each))
        output.stdout.print()
    is_approximate = result["method"] == "tracin" and result["optimizer"] != "sgd"
    output.facts(
        [
            ("method", rows.influence_method(result)),
            ("scores", f"of {result['train_n']:,} training images of {result['dataset']}"),
            *([("note", _OTHER_STEPS.format(**result))] if is_approximate else []),
        ]
    )
