"""fcifar lr-find."""

from pathlib import Path
from typing import Annotated, Any

from fcifar.cli import completion, options, output, progress
from fcifar.cli.options import argument, option
from fcifar.cli.overrides import naming_options, with_changes

RANGE = 30.0  # times the recipe's rate, and a part of it


def lr_find(
    recipe: Annotated[
        str, argument("RECIPE", "See fcifar recipes; or MODULE:RECIPE.", completion.recipes)
    ],
    dataset: Annotated[str | None, options.dataset_option("cifar10")] = None,
    lowest: Annotated[
        float | None, option("--lowest", "The lowest rate.", None, "the recipe's / 30")
    ] = None,
    highest: Annotated[
        float | None, option("--highest", "The highest rate.", None, "the recipe's * 30")
    ] = None,
    rates: Annotated[int, option("--rates", "How many, at equal ratios.")] = 11,
    steps: Annotated[
        int | None,
        option(
            "--steps",
            "Steps of each rate.",
            None,
            "a tenth of an epoch, at least 100, at most an epoch",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        option("--set", "Another setting of the recipe, or option of its model.", "NAME=VALUE"),
    ] = None,
    method: Annotated[
        str,
        option(
            "--method", "One rate after another, or all by vmap; auto: by device.", "auto|loop|vmap"
        ),
    ] = "auto",
    compile: Annotated[
        bool | None,
        option(
            "--compile/--no-compile", "Compile the step; by default, if that pays.", None, "auto"
        ),
    ] = None,
    out: Annotated[Path | None, option("--out", "A folder for report.json and a figure.")] = None,
    device: options.Device = None,
    seed: options.Seed = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    data_dir: options.DataDir = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train for a few steps with each of a range of learning rates, and suggest one.

    Every rate starts from the same parameters, sees the same batches, and stays
    constant, without the recipe's warm-up and schedule. Its loss is the mean over
    the last quarter of its steps, on images that it has not trained on before.
    The suggestion is the largest rate whose loss is within noise of the lowest.
    Only training images are used.

    [dim]fcifar lr-find blitz
    fcifar lr-find conv3-aug --lowest 0.001 --highest 1 --rates 7 --out found/[/]
    """
    from fcifar import recipes
    from fcifar.cli.data import open_dataset
    from fcifar.io import write_json
    from fcifar.recipes import trials
    from fcifar.recipes.checks import check_choice
    from fcifar.report import draw
    from fcifar.train import lr_find as search
    from fcifar.train import programs
    from fcifar.train.config import make_config
    from fcifar.train.runtime import make_runtime

    check_choice("--method", method, ("auto", *trials.METHODS))
    with naming_options(changes):
        base = with_changes(recipes.get(recipe), changes or [])
    low = base.learning_rate / RANGE if lowest is None else lowest
    high = base.learning_rate * RANGE if highest is None else highest
    tried = search.make_rates(low, high, rates)
    flops = recipes.count_flops(base)
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=base.precision,
        deterministic=deterministic,
        step_flops=flops,
    )
    method = trials.choose_method(method, base, runtime.device)
    data = open_dataset(dataset or "cifar10", data_dir, quiet=quiet)
    size = len(data.train_labels)
    count = search.default_steps(base, size) if steps is None else steps
    short = search.prepare(base, count, size)
    if compile is None and not base.compile:
        compile, why = programs.choose(runtime.device, count * len(tried), flops)
        if not quiet:
            output.note(why)
    config = make_config(
        short,
        data,
        seed=recipes.check_seed(seed or 0),
        runtime=runtime,
        compile=base.compile if compile is None else compile,
    )
    with progress.counting(quiet=quiet) as advance:
        found = search.find(config, data, tried, count, method=method, progress=advance)
    result = {
        "recipe": base.name,
        "dataset": data.name,
        "seed": config.seed,
        "device": runtime.device,
        "recipe_rate": base.learning_rate,
        **found,
    }
    if out is not None:
        write_json(out / "report.json", result)
        draw.rates(out, result)
    output.result(result, _show, json)


def _show(result: dict[str, Any]) -> None:
    rows = [
        (
            f"{each['rate']:g}",
            "diverged" if each["loss"] is None else output.number(each["loss"]),
            output.number(each["standard_error"]),
            "suggested" if each["rate"] == result["suggestion"] else "",
        )
        for each in result["rates"]
    ]
    output.table(("rate", "loss", "error", ""), rows)
    output.stdout.print()
    steps = f"{result['averaged_steps']:,} of {result['steps']:,} steps"
    output.facts(
        [
            ("suggestion", f"--lr {result['suggestion']:g}"),
            ("reason", result["reason"]),
            ("recipe", f"{result['recipe']}, whose rate is {result['recipe_rate']:g}"),
            ("loss", f"mean of the last {steps} on the training images of {result['dataset']}"),
        ]
    )
