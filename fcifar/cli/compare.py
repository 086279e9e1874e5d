"""fcifar compare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fcifar.cli import completion, options, output
from fcifar.cli import models as opening

SHORT = 8  # of the 64 letters of a digest


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Runs, by path or name; final.safetensors files or state_dicts; two or more.",
            callback=options.where_runs_are,
            autocompletion=completion.runs,
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="See fcifar data list.",
            show_default="the first run's",
            autocompletion=completion.datasets,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="test|train", help="Which images.")
    ] = "test",
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
    """Measure trained networks on the same images, and test each against the first.

    The test is McNemar's, exact and two-sided, at the 5 % level for each pair. It
    is about these networks: whether other seeds give the same order takes more
    runs to see.

    [dim]fcifar compare runs/a runs/b[/]
    """
    from fcifar.cli import progress
    from fcifar.cli.data import open_dataset
    from fcifar.runs import compare as comparing
    from fcifar.runs import inference
    from fcifar.train import sweep
    from fcifar.train.runtime import make_runtime

    runs = sweep.expand(runs)
    found = opening.load_all(runs, opening.asked_recipe(model, recipe, changes))
    comparing.check(runs, [])
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision or "fp32",
        deterministic=deterministic,
    )
    data = open_dataset(dataset or opening.dataset_of(found), data_dir, quiet=quiet)
    networks = opening.with_classes(found, data.classes)
    comparing.check(runs, networks)
    inference.check_images(networks, data, split)
    with progress.doing("evaluating", quiet=quiet):
        result = comparing.compare(runs, networks, runtime, data, split)
    if json:
        output.document(result)
    else:
        _show(result)
    return 0


def _show(result: dict[str, Any]) -> None:
    runs, first = result["runs"], result["runs"][0]["name"]
    # Paths are long: in the table they would leave no room for the figures.
    output.facts([(run["name"], run["run"]) for run in runs])
    output.stdout.print()
    output.table(
        ("", "recipe", "seed", "accuracy", "95 % interval", "loss", "trained", "digest"),
        [
            (
                run["name"],
                run["recipe"],
                _or_dash(run["seed"], "d"),
                output.percent(run["accuracy"], 2),
                "{:.2f} to {:.2f}".format(*(100 * end for end in run["interval95"])),
                _or_dash(run["loss"], ".4f"),
                _or_dash(run["train_seconds"], ".1f", " s"),
                run["params_digest"][:SHORT],
            )
            for run in runs
        ],
        title=f"{result['n']:,} {result['split']} images of {result['dataset']}",
    )
    output.stdout.print()
    output.table(
        ("", "difference", "95 % interval", f"only {first}", "only it", "p", ""),
        [
            (
                pair["second"],
                f"{100 * pair['difference']:+.2f}",
                "{:+.2f} to {:+.2f}".format(*(100 * end for end in pair["interval95"])),
                f"{pair['only_first']:,}",
                f"{pair['only_second']:,}",
                f"{pair['p_value']:.2g}",
                pair["statement"],
            )
            for pair in result["comparisons"]
        ],
        title=f"Against {first}, in points of accuracy; p is McNemar's, exact",
    )


def _or_dash(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"
