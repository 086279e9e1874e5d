"""fcifar eval."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, options, output, render
from fcifar.cli import models as opening


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="A run or a group of runs, by path or name; a final.safetensors, or a "
            "state_dict. With several, the first is measured in full, and all of them together.",
            callback=options.where_runs_are,
            autocompletion=completion.runs,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="See fcifar data list.",
            show_default="the run's, else cifar10",
            autocompletion=completion.datasets,
        ),
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
    per_example: Annotated[
        Path | None,
        typer.Option(
            "--per-example",
            metavar="FILE",
            dir_okay=False,
            help="A row of scores for each image: .csv, .npz or .parquet.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for report.json and pictures.")
    ] = None,
    model: opening.Model = None,
    recipe: opening.RecipeName = None,
    changes: opening.Changes = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Measure a trained network: loss, accuracy with its interval, and accuracy by class.

    With --per-example also loss, probability, margin, gradient norm and error
    norm of each image (without --tta); of several networks, how they disagree.

    [dim]fcifar eval runs/a
    fcifar eval runs/a --tta translate --out evaluated/
    fcifar eval runs/a runs/b runs/c --per-example scores.csv
    fcifar eval cifar_net.pth --model lenet[/]
    """
    from fcifar.analysis import ensembles, score_tables
    from fcifar.cli import progress
    from fcifar.cli.data import open_dataset
    from fcifar.export import tables
    from fcifar.io import write_json
    from fcifar.report import draw
    from fcifar.runs import inference
    from fcifar.train import sweep
    from fcifar.train.runtime import make_runtime

    inference.find_views(tta)
    if per_example is not None:
        tables.check(per_example)
    runs = sweep.expand(runs)
    found = opening.load_all(runs, opening.asked_recipe(model, recipe, changes))
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=found[0].recipe.precision,
        deterministic=deterministic,
    )
    data = open_dataset(dataset or opening.dataset_of(found), data_dir, quiet=quiet)
    networks = opening.with_classes(found, data.classes)
    network = networks[0]
    inference.check_images(networks, data, split)
    pictured = inference.images_of(network, data, split)
    with progress.doing("evaluating", quiet=quiet):
        figures, examples = inference.evaluate(network, runtime, data, split)
        views = inference.evaluate_views(network, runtime, data, split, tta)
        logits = inference.stack_logits(examples, networks[1:], runtime, pictured)
    result: dict[str, Any] = {
        "run": str(runs[0]),
        "recipe": network.recipe.name,
        "dataset": data.name,
        "split": split,
        **figures,
        **views,
    }
    if len(runs) > 1:
        together = ensembles.summarize_replicas(logits, pictured.labels)
        result["networks"] = {"runs": list(map(str, runs)), **together}
    examined = None
    if per_example is not None:
        with progress.doing("scoring each image", quiet=quiet):
            examined = inference.score(network, runtime, data, split, logits)
            table = score_tables.tabulate(examined, data.classes)
            tables.write(per_example, table)
            summary = score_tables.summarize(examined, table)
            result["per_example"] = {"file": str(per_example), **summary}
    if out is not None:
        write_json(out / "report.json", result)
        title = f"{network.recipe.name} on {data.name}, {split} images"
        with progress.doing("drawing the figures", quiet=quiet):
            draw.evaluation(out, pictured, examples, data.classes, title=title)
            if examined is not None:
                draw.examples(out, pictured.images, examined, data.classes, title=title)
    if json:
        output.document(result)
        return 0
    low, high = result["interval95"]
    output.class_table(result["per_class"])
    output.stdout.print()
    output.facts(
        [
            (
                "accuracy" if len(runs) == 1 else "first accuracy",
                f"{output.percent(result['accuracy'], 2)} of {result['n']:,} {split} images "
                f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
            ),
            *render.tta_facts(result),
            ("loss", f"{result['loss']:.4f}"),
            ("calibration", output.calibration(result)),
            ("mistakes", output.confusions(result) or "none"),
            ("digest", result["params_digest"]),
            *render.ensemble_facts(result),
        ]
    )
    if examined is not None:
        render.show_hardest(examined, data.classes, result["per_example"])
    return 0
