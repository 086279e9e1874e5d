"""fcifar compare."""

from pathlib import Path
from typing import Annotated, Any

from fcifar.cli import landscape, models, options, output, progress

_DIGITS = 8  # of the 64 of a digest


def compare(
    runs: Annotated[
        list[Path],
        options.runs_argument(
            "Runs, by path or name; final.safetensors files or state_dicts; two or more."
        ),
    ],
    dataset: Annotated[str | None, options.dataset_option("the first run's")] = None,
    split: Annotated[str, options.option("--split", "Which images.", "test|train")] = "test",
    path: landscape.Path_ = False,
    plane: landscape.Plane = False,
    points: landscape.Points = None,
    match: landscape.Match = False,
    images: landscape.Images = None,
    out: landscape.Out = None,
    model: models.Model = None,
    recipe: models.RecipeName = None,
    changes: models.Changes = None,
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
    """Evaluate trained models on the same images, and test each against the first.

    The test is McNemar's, exact and two-sided, at the 5 % level for each pair. It
    compares these models; with other seeds the order may differ.

    With --path or --plane: loss and accuracy of the models between two or three
    runs, whose parameters are weighted means of theirs, and the barrier: how far
    the loss rises above the line between both ends. Batch norm is estimated again
    at each point. With --match also after weight matching (Git Re-Basin).

    [dim]fcifar compare runs/a runs/b
    fcifar compare runs/a runs/b --path --match --out between/
    fcifar compare runs/a runs/b runs/c --plane --images 2000 --out plane/[/]
    """
    from fcifar.cli.data import open_dataset
    from fcifar.runs import compare as comparison
    from fcifar.runs import inference
    from fcifar.train import sweep
    from fcifar.train.runtime import make_runtime

    given = {"--points": points, "--match": match, "--images": images, "--out": out}
    kind = landscape.kind_of(path, plane, given)
    runs = sweep.expand(runs)
    found = models.load_all(runs, models.recipe_of(model, recipe, changes))
    comparison.check(runs, [])
    runtime = make_runtime(
        device=device or "auto", threads=threads, precision=precision, deterministic=deterministic
    )
    data = open_dataset(dataset or models.dataset_of(found), data_dir, quiet=quiet)
    trained = models.with_classes(found, data.classes)
    comparison.check(runs, trained)
    inference.check_images(trained, data, split)
    if kind is not None:
        landscape.run(
            kind,
            runs,
            trained,
            runtime,
            data,
            split,
            points=points,
            images=images,
            match=match,
            out=out,
            json=json,
            quiet=quiet,
        )
        return
    with progress.doing("evaluating", quiet=quiet):
        result = comparison.compare(runs, trained, runtime, data, split)
    output.result(result, _show, json)


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
                run["params_digest"][:_DIGITS],
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
