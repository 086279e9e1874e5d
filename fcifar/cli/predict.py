"""fcifar predict."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fcifar.cli import models, options, output
from fcifar.cli.options import argument, option
from fcifar.cli.progress import counting
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from fcifar.analysis.predictions import Guess

GRID_LIMIT = 400  # images; the sheet is then 2000 by 16000 pixels
RANKS = ("first", "second", "third", "fourth", "fifth")


def predict(
    run: Annotated[
        Path,
        options.run_argument("A run, by path or name; a final.safetensors, or a state_dict."),
    ],
    images: Annotated[list[Path], argument("IMAGE", "Image files, or folders of them.")],
    grid: Annotated[
        Path | None, option("--grid", "Draw the images with their classes (PNG).", dir_okay=False)
    ] = None,
    explain: options.Explain = None,
    out: Annotated[
        Path | None, option("--out", "A folder for what --explain draws and computes.")
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    average: models.Average = False,
    calibrated: models.Calibrated = False,
    model: models.Model = None,
    recipe: models.RecipeName = None,
    changes: models.Changes = None,
    dataset: models.ClassesOf = None,
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
    """Classify image files of any size with a trained model.

    The shorter side is resized to 32 pixels and the middle of the longer one cut
    out; an image of 32x32 pixels is used as it is. As in data import, EXIF
    orientation is applied, and transparent pixels are composited on white.
    Folders are searched recursively.

    [dim]fcifar predict runs/a photo.jpg
    fcifar predict runs/a photos/ --grid sheet.png
    fcifar predict runs/a photo.jpg --explain all --out explained/[/]
    """
    import torch

    from fcifar.analysis.predictions import best_guesses
    from fcifar.data import image_files
    from fcifar.runs import explain as explaining
    from fcifar.runs import inference
    from fcifar.train.runtime import make_runtime

    methods = explaining.parse(explain, out)
    if out is not None and not methods:
        raise UsageError("--out is a folder for --explain, which is not given; leave it out")
    saved_as = models.recipe_of(model, recipe, changes)
    which = {"average": average, "calibrated": calibrated}
    trained = models.load_one(run, saved_as, dataset, data_dir, **which)
    runtime = make_runtime(
        device=device or "auto", threads=threads, precision=precision, deterministic=deterministic
    )
    paths, left_out, _ = image_files.find(images)
    if left_out:
        output.note(f"not read: {image_files.in_words(left_out)}")
    if grid is not None and len(paths) > GRID_LIMIT:
        raise UsageError(
            f"--grid holds up to {GRID_LIMIT} images, not {len(paths):,}; give fewer, "
            "or leave it out"
        )
    if methods:
        explaining.check_count(len(paths))
    with counting(quiet=quiet) as progress:
        rows, failures = image_files.read_those_that_can_be(paths, progress)
    if failures and not (skip_unreadable and rows):
        raise image_files.cannot_read(list(failures.values()), len(paths))
    if failures:
        output.note(f"skipped {output.count(len(failures), 'image')} that cannot be read:")
        for words in image_files.listed(list(failures.values())):
            output.note(f"  {words}")
    pixels, paths = torch.stack(rows), [path for path in paths if path not in failures]
    logits = inference.predict(trained, runtime, pixels)
    guesses = best_guesses(logits, trained.classes, len(RANKS))
    if grid is not None:
        from fcifar.report.figures import canvas, grids

        titles = [f"{row[0].name}\n{_percent(row[0])}" for row in guesses]
        canvas.save(grids.image_grid(pixels, titles), grid)
    explained = []
    if methods and out is not None:
        from fcifar.report import draw

        with counting(quiet=quiet) as progress:
            found = explaining.explain(trained, runtime, pixels, methods, progress)
        explaining.save(out, found)
        draw.explanations(out, found, trained.classes, title=f"{trained.recipe.name}: {run}")
        explained = explaining.summarize(found, trained.classes)
    if json:
        output.document(
            [
                {
                    "path": str(path),
                    "predictions": [
                        {"class": g.name, "probability": _finite(g.probability)} for g in row
                    ],
                    **({"explained": explained[i]} if explained else {}),
                }
                for i, (path, row) in enumerate(zip(paths, guesses, strict=True))
            ]
        )
        return
    _show(paths, guesses)
    if grid is not None:
        output.stdout.print()
        output.facts([("drawn", grid)])
    if explained and out is not None:
        from fcifar.cli import render

        named = zip(paths, explained, strict=True)
        render.show_explained([{"id": path.name, **each} for path, each in named], out)


def _show(paths: Sequence[Path], guesses: Sequence[Sequence["Guess"]]) -> None:
    rows = [
        (
            str(path).replace("\n", "\N{REPLACEMENT CHARACTER}"),
            *(f"{guess.name}\n{_percent(guess)}" for guess in row),
        )
        for path, row in zip(paths, guesses, strict=True)
    ]
    output.table(("image", *RANKS[: len(guesses[0])]), rows)


def _percent(guess: "Guess") -> str:
    return output.percent(_finite(guess.probability))


def _finite(probability: float) -> float | None:
    return probability if math.isfinite(probability) else None
