"""fcifar eval."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import options, output
from fcifar.cli import trained as trained_report


def evaluate(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="A run directory, or a final.safetensors.")
    ],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="See fcifar data list.", show_default="the run's"),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="test|train|valid", help="Which images.")
    ] = "test",
    tta: Annotated[
        str,
        typer.Option(
            "--tta",
            metavar="none|mirror|translate",
            help="Measure again with several views of each image.",
        ),
    ] = "none",
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for report.json and pictures.")
    ] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Measure a trained network: loss, accuracy with its interval, and accuracy by class."""
    from fcifar.cli import progress
    from fcifar.cli.data import open_dataset
    from fcifar.report import evaluation
    from fcifar.runs import trained
    from fcifar.runs.jsonfiles import write as write_json
    from fcifar.runs.runtime import make_runtime

    trained.find_views(tta)
    network = trained.load(run)
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=network.recipe.precision,
        deterministic=deterministic,
    )
    data = open_dataset(dataset or network.dataset, data_dir, quiet=quiet)
    pictured = trained.images_of(network, data, split)
    with progress.doing("evaluating", quiet=quiet):
        figures, examples = trained.evaluate(network, runtime, data, split)
        views = trained.evaluate_views(network, runtime, data, split, tta)
    result: dict[str, Any] = {
        "run": str(run),
        "recipe": network.recipe.name,
        "dataset": data.name,
        "split": split,
        **figures,
        **views,
    }
    if out is not None:
        write_json(out / "report.json", result)
        title = f"{network.recipe.name} on {data.name}, {split} images"
        with progress.doing("drawing the pictures", quiet=quiet):
            evaluation.draw(out, pictured, examples, data.classes, title=title)
    if json:
        output.document(result)
        return 0
    low, high = result["interval95"]
    output.class_table(result["per_class"])
    output.stdout.print()
    output.facts(
        [
            (
                "accuracy",
                f"{output.percent(result['accuracy'], 2)} of {result['n']:,} {split} images "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
            ),
            *trained_report.of_views(result),
            ("loss", f"{result['loss']:.4f}"),
            ("calibration", output.calibration(result)),
            ("mistakes", output.confusions(result) or "none"),
            ("digest", result["params_digest"]),
        ]
    )
    return 0
