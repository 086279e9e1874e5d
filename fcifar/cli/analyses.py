"""What ``fcifar eval`` measures beside accuracy: each with its figures and its tables.

An analysis is made of a finished evaluation. It knows what it adds to the result, how its figures
are drawn into a folder, and how it is printed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from fcifar.cli import output, progress, render
from fcifar.report import rows

if TYPE_CHECKING:
    from fcifar.analysis.score_tables import Examined
    from fcifar.data import Dataset
    from fcifar.runs.adversarial import Plan
    from fcifar.runs.inference import Trained
    from fcifar.step import Batch, EvalOutput
    from fcifar.train.runtime import Runtime

_HARDEST = 5  # images
_MODELS = 8  # most columns of models
_ATTACKS = 4  # of a table by class, the last ones


class Evaluated(NamedTuple):
    """An evaluation of one model or several on the same images."""

    paths: Sequence[Path]
    first: "Trained"
    others: Sequence["Trained"]
    runtime: "Runtime"
    data: "Dataset"
    split: str
    images: "Batch"
    examples: "EvalOutput"  # of the first model
    logits: Tensor  # of all models, see inference.stack_logits
    quiet: bool


class Analysis(NamedTuple):
    """An analysis of an evaluation."""

    name: str  # of ``values`` in the result
    values: Any  # JSON-serializable
    draw: Callable[[Path, str], object]  # into a folder, with a title
    show: Callable[[], object]


# Corruptions -------------------------------------------------------------------------------------


def corruptions(
    of: Evaluated,
    chosen: Mapping[str, Sequence[int]],
    seed: int,
    reference: Path | None,
    unit: Sequence["Trained"],
) -> Analysis:
    """Evaluate all models on corrupted images, see ``runs.robustness``.

    Args:
        chosen: from ``robustness.parse``.
        reference: the run whose errors are the unit of the mean corruption error.
        unit: its model, or empty.
    """
    from fcifar.report import draw
    from fcifar.runs import robustness

    models = [of.first, *of.others, *unit]
    paths = [*of.paths, *([reference] if reference else [])]
    with progress.counting(quiet=of.quiet) as count:
        values = robustness.evaluate(
            *(paths, models, of.runtime, of.data, of.split, chosen, of.logits),
            seed=seed,
            has_reference=reference is not None,
            progress=count,
        )
    return Analysis(
        "robustness",
        values,
        lambda folder, title: draw.robustness(folder, values, of.images.images),
        lambda: _show_corruptions(values),
    )


def _show_corruptions(result: dict[str, Any]) -> None:
    """Print accuracies on corrupted images: what ``runs.robustness`` returned."""
    about = rows.corruption_facts(result)
    if len(result["runs"]) == 1:
        output.table(*rows.corruptions(result), title="Accuracy by severity, %")
        output.stdout.print()
        output.facts(about)
        return
    models = rows.with_reference(result)
    if len(models) <= _MODELS:
        output.table(*rows.corrupted_models(result), title="Accuracy, mean of severities, %")
        output.stdout.print()
    output.table(*rows.robustness(result))
    output.stdout.print()
    output.facts([*about, *((model["name"], model["run"]) for model in models)])


# Attacks -----------------------------------------------------------------------------------------


def attacks(of: Evaluated, plan: "Plan") -> Analysis:
    """Evaluate the first model on adversarial images, see ``runs.adversarial``."""
    from fcifar.report import draw
    from fcifar.runs import adversarial

    with progress.counting(quiet=of.quiet) as count:
        values, attacked = adversarial.evaluate(
            of.first, of.runtime, of.data, of.split, of.examples, plan, count
        )
    classes = of.data.classes
    return Analysis(
        "attacks",
        values,
        lambda folder, title: draw.attacks(folder, values, attacked, classes, title=title),
        lambda: _show_attacks(values, classes),
    )


def _show_attacks(result: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Print accuracy under attack, beside the accuracy on the same images without."""
    output.line(f"Under attack, {rows.attacked_images(result)}:")
    output.table(*rows.attacks(result))
    output.stdout.print()
    output.table(*rows.attacks_by_class(result, classes[: render.MEMBERS], _ATTACKS))
    render.show_rest(len(classes), "class", "in --json", plural="classes")
    if (more := len(result["found"]) - _ATTACKS) > 0:
        output.line(f"... and {output.count(more, 'attack')} more by class in --json")


# Attributions, temperature, scores ---------------------------------------------------------------


def explanations(of: Evaluated, methods: Sequence[str], folder: Path | None) -> Analysis:
    """Explain the most confident mistakes of the first model, see ``runs.explain``.

    ``folder`` is where the figure will be.
    """
    from fcifar.report import draw
    from fcifar.runs import explain

    with progress.counting(quiet=of.quiet) as count:
        values, explained = explain.explain_mistakes(
            of.first, of.runtime, of.data, of.split, of.examples, methods, count
        )

    def draw_all(folder: Path, title: str) -> None:
        if explained is not None:
            explain.save(folder, explained)
            title = f"{title}: the most confident mistakes"
            draw.explanations(folder, explained, of.data.classes, title=title)

    def show() -> None:
        if explained is not None and folder is not None:
            render.show_explained(values, folder)

    return Analysis("explained", values, draw_all, show)


def calibration(of: Evaluated, own: "Dataset", *, average: bool) -> Analysis:
    """Fit a temperature to the first model, and keep it in its run, see ``runs.temperature``.

    ``own`` is the data set that the model was trained on.
    """
    from fcifar.report import draw
    from fcifar.runs import temperature

    labels = of.images.labels
    with progress.doing("fitting the temperature", quiet=of.quiet):
        fitted = temperature.fit(of.first, of.runtime, own)
        scaled = temperature.rescale(of.examples, labels, fitted["temperature"])
        values = temperature.compare(fitted, of.examples, scaled, labels)
    if of.paths[0].is_dir():
        values["file"] = str(temperature.save(of.paths[0], fitted, average=average))
    return Analysis(
        "calibration",
        values,
        lambda folder, title: draw.temperature(
            folder, of.examples, scaled, values["temperature"], title=title
        ),
        lambda: _show_calibration(values),
    )


def _show_calibration(found: dict[str, Any]) -> None:
    fitted = found["fitted"]
    cells = [
        (
            name,
            output.number(figures["loss"]),
            output.percent(figures["mean_confidence"]),
            output.percent(figures["ece"], 2),
        )
        for name, figures in (("before", found["before"]), ("after", found["after"]))
    ]
    output.table(("temperature scaling", "loss", "mean confidence", "calibration error"), cells)
    output.stdout.print()
    output.facts(
        [
            ("temperature", f"{found['temperature']:.4f}, of {fitted['n']:,} validation images"),
            *([("written", found["file"])] if "file" in found else []),
        ]
    )


def scores(of: Evaluated, file: Path) -> Analysis:
    """Score each image, and write the scores to a file, see ``analysis.score_tables``."""
    from fcifar.analysis import score_tables
    from fcifar.export import tables
    from fcifar.report import draw
    from fcifar.runs import inference

    classes = of.data.classes
    with progress.doing("scoring each image", quiet=of.quiet):
        examined = inference.score(of.first, of.runtime, of.data, of.split, of.logits)
        table = score_tables.tabulate(examined, classes)
        tables.write(file, table)
        values = {"file": str(file), **score_tables.summarize(examined, table)}
    return Analysis(
        "per_example",
        values,
        lambda folder, title: draw.examples(
            folder, of.images.images, examined, classes, title=title
        ),
        lambda: _show_hardest(examined, classes, values),
    )


def _show_hardest(examined: "Examined", classes: Sequence[str], written: dict[str, Any]) -> None:
    """Print the hardest examples, and the file of the scores."""
    from fcifar.analysis import score_tables

    together = examined.together
    if together is None:
        predictions, losses = examined.scores.prediction, examined.scores.loss
    else:
        predictions, losses = together.prediction, together.mean_loss
    cells = [
        (
            examined.names[row],
            classes[int(examined.labels[row])],
            classes[int(predictions[row])],
            f"{losses[row].item():.2f}",
            *(() if together is None else (output.percent(together.error_rate[row].item()),)),
        )
        for row in score_tables.hardest(examined)[:_HARDEST].tolist()
    ]
    wrong = () if together is None else ("wrong",)
    output.table(("hardest", "class", "predicted", "loss", *wrong), cells)
    output.stdout.print()
    count = f"{output.count(written['rows'], 'image')}, {len(written['columns'])} columns"
    output.facts([("written", f"{written['file']}: {count}")])
