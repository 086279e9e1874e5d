"""fcifar predict."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcifar.cli import completion, options, output
from fcifar.cli import models as opening
from fcifar.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from fcifar.analysis.predictions import Guess

GRID_LIMIT = 400  # images; the sheet is then 2000 by 16000 pixels
RANKS = ("first", "second", "third", "fourth", "fifth")


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run, by path or name; a final.safetensors, or a state_dict.",
            callback=options.where_run_is,
            autocompletion=completion.runs,
        ),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Image files, or folders of them."),
    ],
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            help="Draw the images with their classes into this PNG file.",
            dir_okay=False,
        ),
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    model: opening.Model = None,
    recipe: opening.RecipeName = None,
    changes: opening.Changes = None,
    dataset: opening.ClassesOf = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    deterministic: options.Deterministic = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Classify image files of any size with a trained model.

    The shorter side is resized to 32 pixels and the middle of the longer one cut
    out; an image of 32x32 pixels is taken as it is. It is turned as its EXIF
    orientation says, and what is transparent is seen on white: as in data import.
    Folders are searched, with those in them.

    [dim]fcifar predict runs/a photo.jpg
    fcifar predict runs/a photos/ --grid sheet.png[/]
    """
    import torch

    from fcifar.analysis.predictions import best_guesses
    from fcifar.cli.progress import counting
    from fcifar.data import image_files
    from fcifar.runs import inference as prediction
    from fcifar.train.runtime import make_runtime

    asked = opening.asked_recipe(model, recipe, changes)
    network = opening.load_one(run, asked, dataset)
    runtime = make_runtime(
        device=device or "auto",
        threads=threads,
        precision=precision or "fp32",
        deterministic=deterministic,
    )
    paths, left_out, _ = image_files.find(images)
    if left_out:
        output.note(f"not read: {image_files.in_words(left_out)}")
    if grid is not None and len(paths) > GRID_LIMIT:
        raise UsageError(
            f"--grid holds up to {GRID_LIMIT} images, not {len(paths):,}; give fewer, "
            "or leave it out"
        )
    with counting(quiet=quiet) as progress:
        rows, failures = image_files.read_those_that_can_be(paths, progress)
    if failures and not (skip_unreadable and rows):
        raise image_files.cannot_read(list(failures.values()), len(paths))
    if failures:
        output.note(f"skipped {output.count(len(failures), 'image')} that cannot be read:")
        for words in image_files.listed(list(failures.values())):
            output.note(f"  {words}")
    pixels, paths = torch.stack(rows), [path for path in paths if path not in failures]
    logits = prediction.predict(network, runtime, pixels)
    guesses = best_guesses(logits, network.classes, len(RANKS))
    if grid is not None:
        _draw(pixels, guesses, grid)
    if json:
        output.document(
            [
                {
                    "path": str(path),
                    "predictions": [
                        {"class": g.name, "probability": _finite(g.probability)} for g in row
                    ],
                }
                for path, row in zip(paths, guesses, strict=True)
            ]
        )
        return 0
    _show(paths, guesses)
    if grid is not None:
        output.stdout.print()
        output.facts([("drawn", grid)])
    return 0


def _draw(pixels: "Tensor", guesses: Sequence[Sequence["Guess"]], path: Path) -> None:
    from fcifar.report.figures import canvas, grids

    titles = [f"{row[0].name}\n{_percent(row[0])}" for row in guesses]
    canvas.save(grids.image_grid(pixels, titles), path)


def _show(paths: Sequence[Path], guesses: Sequence[Sequence["Guess"]]) -> None:
    ranks = RANKS[: len(guesses[0])]
    output.table(
        ("image", *ranks),
        [
            (_one_line(path), *(f"{g.name}\n{_percent(g)}" for g in row))
            for path, row in zip(paths, guesses, strict=True)
        ],
    )


def _one_line(path: Path) -> str:
    return str(path).replace("\n", "\N{REPLACEMENT CHARACTER}")


def _percent(guess: "Guess") -> str:
    return output.percent(_finite(guess.probability))


def _finite(probability: float) -> float | None:
    return probability if math.isfinite(probability) else None
