"""fcifar soup."""

from pathlib import Path
from typing import Annotated, Any

from fcifar.cli import options, output, progress
from fcifar.cli.options import option
from fcifar.errors import UsageError


def soup(
    runs: Annotated[
        list[Path],
        options.runs_argument(
            "Runs, or a group of them, by path or name; or final.safetensors and "
            "average.safetensors files."
        ),
    ],
    method: Annotated[
        str,
        option("--method", "All of them, or those that help on validation images.", "mean|greedy"),
    ] = "mean",
    to: Annotated[
        Path | None,
        options.path_option(
            "--to", "Write the model here, as .safetensors.", "FILE", dir_okay=False
        ),
    ] = None,
    out: Annotated[Path | None, option("--out", "A folder for report.json and a figure.")] = None,
    force: Annotated[bool, option("--force", "Overwrite an existing file.")] = False,
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
    """Average the weights of runs of one model, and measure the average as it grows.

    --method greedy tries them from the best to the worst, and keeps each that
    does not lower the accuracy on the validation images that all of them have
    left out. The file of --to is a model for eval, predict, compare and export.
    Runs average well if they share a part of their training, else badly.

    [dim]fcifar soup GROUP --method greedy --to soup.safetensors
    fcifar soup RUN/final.safetensors RUN/average.safetensors[/]
    """
    from fcifar.cli.data import open_dataset
    from fcifar.io import write_json
    from fcifar.report import draw
    from fcifar.runs import inference
    from fcifar.runs import soup as soups
    from fcifar.train import sweep
    from fcifar.train.runtime import make_runtime

    if to is not None:
        _check_file(to, force=force)
    paths = sweep.expand(runs)
    models = [inference.load(path) for path in paths]
    soups.check(paths, models, method)
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision,
        preferred=models[0].recipe.precision,
        deterministic=deterministic,
    )
    data = open_dataset(models[0].dataset, data_dir, quiet=quiet)
    with progress.counting(quiet=quiet) as count:
        trained, result = soups.make(paths, models, runtime, data, method, count)
    if to is not None:
        soups.save(to, trained)
        result["path"] = str(to)
    if out is not None:
        write_json(out / "report.json", result)
        draw.soup(out, result)
    output.result(result, _show, json)


def _check_file(path: Path, *, force: bool) -> None:
    """Raise a UsageError unless a soup may be written to ``path``."""
    from fcifar.export.exporting import check_free

    if path.suffix.lower() != ".safetensors":
        raise UsageError(
            f"--to is {path}; its name must end in .safetensors, which fcifar export converts to "
            "other formats"
        )
    check_free(path, force=force)


def _show(result: dict[str, Any]) -> None:
    ingredients, split = result["ingredients"], result["split"]
    # Paths are long: in the table they would leave no room for the figures.
    output.facts([(each["name"], each["run"]) for each in ingredients])
    output.stdout.print()
    which = "validation" if split == "valid" else "test"
    rows = [
        (
            each["name"],
            output.percent(each["accuracy"], 2),
            output.number(each["loss"]),
            output.percent(each["soup"]["accuracy"], 2),
            output.number(each["soup"]["loss"]),
            "" if each["kept"] else "left out",
        )
        for each in ingredients
    ]
    output.table(
        ("", "alone", "loss", "soup with it", "loss", ""),
        rows,
        title=f"{result['n']:,} {which} images of {result['dataset']}",
    )
    output.stdout.print()
    soup, best = result["test"]["soup"], result["test"]["best"]
    of = f" of {result['test_n']:,} test images"
    output.facts(
        [
            ("soup", f"{result['method']}, of {result['kept']} of {len(ingredients)} models"),
            ("accuracy", output.accuracy(soup["accuracy"], soup["interval95"], of)),
            ("loss", output.number(soup["loss"])),
            ("best alone", f"{best['name']}, {output.percent(best['accuracy'], 2)}"),
            *([("written", result["path"])] if "path" in result else []),
            ("digest", result["params_digest"]),
        ]
    )
