"""The results of runs on a page: accuracies, classes, confusions, calibration, images, timings."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar.analysis import calibration, ensembles
from fcifar.analysis.significance import against_first
from fcifar.metrics import wilson_interval
from fcifar.report import text
from fcifar.report.draw import leading_votes
from fcifar.report.figures import confusion as confusion_figure
from fcifar.report.figures import curves as curve_figures
from fcifar.report.figures import reliability as reliability_figure
from fcifar.report.page.blocks import (
    Chart,
    Image,
    Images,
    Pair,
    Table,
    Text,
    Tiles,
    chart,
    code,
)
from fcifar.report.page.reading import Run, on_same_images, test_images
from fcifar.report.text import between, number, percent, seconds
from fcifar.runs import temperature

_IMAGES = 24  # hardest images
_TIMINGS = {
    "train_seconds": "training",
    "compile_seconds": "compiling",
    "valid_seconds": "validation",
    "eval_seconds": "evaluation",
    "safeguard_seconds": "digests and checkpoints",
    "convention_seconds": "train + eval time, warm",
    "process_seconds": "from the start of the (last) process",
}


def headline(run: Run) -> list[Any]:
    """The main figures of a run."""
    report = run.report
    interval = f"95 % interval {between(report['interval95'])}"
    tiles = [
        (
            "test accuracy",
            percent(report["test_accuracy"], 2),
            f"of {report['test_n']:,} images; {interval}",
        )
    ]
    if "tta" in report:
        interval = f"95 % interval {between(report['tta_interval95'])}"
        tiles.append(
            (
                f"with --tta {report['tta']}",
                percent(report["tta_accuracy"], 2),
                f"several views of each image; {interval}",
            )
        )
    if "average" in report:
        interval = f"95 % interval {between(report['average_interval95'])}"
        name, value = f"of the average ({report['average']})", report["average_accuracy"]
        loss = f"loss {number(report['average_loss'])}; {interval}"
        tiles.append((name, percent(value, 2), loss))
    if "privacy" in report:
        found = report["privacy"]
        by = "; ".join(filter(None, (found["note"], found["sampling"], found["accountant"])))
        epsilon = "-" if found["epsilon"] is None else f"{found['epsilon']:.3g}"
        tiles.append(("epsilon", epsilon, f"at delta {found['delta']:g}; {by}"))
    rate = f"{report['steps']:,} steps, {report['images_per_second']:,.0f} images/s"
    epochs = f"{report['epochs']:g} epoch{'' if report['epochs'] == 1 else 's'}"
    tiles += [
        ("test loss", number(report["test_loss"]), "cross-entropy, nats"),
        ("training", seconds(report["train_seconds"]), f"{epochs}, {rate}"),
    ]
    return [Tiles(tiles), Text(f"The model is {text.selected(report)}.", is_note=True)]


def side_by_side(runs: Sequence[Run]) -> Table:
    """The main figures of several runs, a row each."""
    tta = any("tta" in run.report for run in runs)
    average = any("average" in run.report for run in runs)
    head = ["", "run", "recipe", "seed", "test accuracy", "95 % interval"]
    head += [*(["with TTA"] if tta else []), *(["of the average"] if average else [])]
    head += ["loss", "training", "process", "digest"]
    rows = [
        (
            run.name,
            run.path.name or run.path,
            run.report["recipe"],
            run.report["seed"],
            percent(run.report["test_accuracy"], 2),
            between(run.report["interval95"]),
            *([percent(run.report.get("tta_accuracy"), 2)] if tta else []),
            *([percent(run.report.get("average_accuracy"), 2)] if average else []),
            number(run.report["test_loss"]),
            seconds(run.report["train_seconds"]),
            seconds(run.report.get("process_seconds")),
            code(run.report["params_digest"][:8]),
        )
        for run in runs
    ]
    counts = {run.report["test_n"] for run in runs}
    images = f"{counts.pop():,} test images" if len(counts) == 1 else "test images"
    return Table(f"Each run, {images}", head, rows, is_wide=True)


def differences(runs: Sequence[Run]) -> Table | Text:
    """Each run against the first, on the same images."""
    if not on_same_images(runs):
        return Text(
            "The runs do not all have predictions of the same test images, so their differences "
            "cannot be tested image by image.",
            is_note=True,
        )
    names = [run.name for run in runs]
    correct = [run.predictions[0].correct for run in runs if run.predictions is not None]
    pairs = [against_first(names, correct, i) for i in range(1, len(runs))]
    rows = [
        (
            pair["second"],
            f"{100 * pair['difference']:+.2f}",
            " to ".join(f"{100 * end:+.2f}" for end in pair["interval95"]),
            f"{pair['only_first']:,}",
            f"{pair['only_second']:,}",
            f"{pair['p_value']:.2g}",
            pair["statement"],
        )
        for pair in pairs
    ]
    return Table(
        f"Against {names[0]} on the same images, in points of accuracy; p is McNemar's, exact",
        ("", "difference", "95 % interval", f"only {names[0]} right", "only it right", "p", ""),
        rows,
        is_wide=True,
    )


def curves(runs: Sequence[Run]) -> Pair:
    """The learning curves of one run or of several."""
    logs = {run.name: run.records for run in runs}
    return curve_pair(
        (
            curve_figures.of_run(runs[0].records, fields=[field])
            if len(runs) == 1
            else curve_figures.of_runs(logs, fields=[field])
        )
        for field in curve_figures.FIELDS
    )


def curve_pair(figures: Any) -> Pair:
    """Figures of loss and accuracy side by side."""
    return Pair(
        [
            chart(figure, f"{field.capitalize()} over the epochs", f"{field} over the epochs")
            for figure, field in zip(figures, curve_figures.FIELDS, strict=True)
        ]
    )


def by_class(per_class: Mapping[str, Mapping[str, Any]], what: str = "test images") -> Table:
    """Accuracy by class with Wilson's interval, the best first."""
    from markupsafe import Markup

    ranked = sorted(per_class.items(), key=lambda item: -(item[1]["accuracy"] or 0.0))
    rows = []
    for name, figures in ranked:
        right, total = int(figures["correct"]), int(figures["total"])
        if not total:
            rows.append((name, "-", "-", "-", ""))
            continue
        style = f"--share:{right / total:.3f}"
        bar = Markup('<span class="share" style="{}" aria-hidden="true"></span>').format(style)
        interval = between(wilson_interval(right, total), 1)
        rows.append((name, percent(right / total), interval, f"{right:,} of {total:,}", bar))
    head = ("class", "accuracy", "95 % interval", "right", "")
    return Table(f"By class, {what}", head, rows, is_wide=True)


def classes_side_by_side(runs: Sequence[Run]) -> Table:
    """Accuracy by class, a column for each run."""
    names = dict.fromkeys(name for run in runs for name in run.report["per_class"])
    rows = [
        (name, *(percent(run.report["per_class"].get(name, {}).get("accuracy")) for run in runs))
        for name in names
    ]
    return Table("Accuracy by class", ("class", *(run.name for run in runs)), rows)


def confusion(report: Mapping[str, Any], title: str = "Confusion matrix") -> Chart:
    """The confusion matrix, and its most frequent errors in words."""
    worst = text.confusions(report, 5)
    listed = f"Most often: {worst}." if worst else "There are no mistakes."
    matrix = torch.tensor(report["confusion"], dtype=torch.int64)
    figure = confusion_figure.draw(matrix, list(report["per_class"]))
    caption = f"{title}. Rows are true classes, columns predictions; blue is right, orange wrong."
    return chart(figure, caption, f"{title}. {listed}", listed)


def reliability(run: Run) -> Any:
    """Accuracy against confidence, and beside it with the temperature of ``fcifar eval
    --calibrate``, if the run has one.
    """
    if run.predictions is None:
        return Text(
            "The predictions of the run are missing, so its confidence is unknown.", is_note=True
        )
    examples, _ = run.predictions
    plain = _reliability(examples.logits, examples.correct, "")
    fitted = temperature.read(run.path)
    if fitted is None:
        return plain
    value, images = fitted["temperature"], f"{fitted['n']:,} validation images"
    about = f"With the temperature {value:.4f}, fitted to {images}. "
    return Pair([plain, _reliability(examples.logits / value, examples.correct, about)])


def _reliability(logits: Tensor, correct: Tensor, about: str) -> Chart:
    confidence, _ = calibration.softmax_confidence(logits)
    bins = calibration.reliability(confidence, correct)
    ece = calibration.expected_calibration_error(bins).item()
    return chart(
        reliability_figure.draw(bins, ece),
        f"{about}Accuracy against confidence. A bar below the dashed line is overconfident.",
        "accuracy against confidence",
        f"Expected calibration error {percent(ece, 2)}; mean confidence "
        f"{percent(confidence.mean().item())}.",
    )


def timings(runs: Sequence[Run]) -> Table:
    """Seconds of each part, a column for each run."""
    rows = [
        (name, *(seconds(run.report.get(key)) for run in runs))
        for key, name in _TIMINGS.items()
        if any(run.report.get(key) is not None for run in runs)
    ]
    rows.append(("images/s in training", *(f"{r.report['images_per_second']:,.0f}" for r in runs)))
    head = ("", *(run.name if len(runs) > 1 else "time" for run in runs))
    return Table("Timings", head, rows)


# The hardest images ------------------------------------------------------------------------------


def hardest(runs: Sequence[Run], root: Path) -> Images | Text:
    """The images with the highest loss; of several runs, those that most of them get wrong."""
    if not on_same_images(runs):
        return Text("The predictions are missing, or are of different images.", is_note=True)
    images, reason = test_images(runs[0], root)
    classes = list(runs[0].report["per_class"])
    found = _of_one(runs[0], classes) if len(runs) == 1 else _of_several(runs, classes)
    order = "Highest loss first" if len(runs) == 1 else "Those that most runs get wrong first"
    items = [_item(images, *each) for each in found]
    note = f"Without images: {reason}." if images is None else ""
    return Images(f"{order}: the prediction, and the true class.", items, note)


def _of_one(run: Run, classes: Sequence[str]) -> list[tuple[int, str, str, str]]:
    """Row, true class, prediction and loss of each image."""
    assert run.predictions is not None
    examples, labels = run.predictions
    confidence, predicted = calibration.softmax_confidence(examples.logits)
    return [
        (
            row,
            classes[int(labels[row])],
            f"{classes[int(predicted[row])]}, {100 * confidence[row].item():.0f} %",
            f"loss {examples.loss[row].item():.2f}",
        )
        for row in ensembles.ranked(examples.loss)[:_IMAGES].tolist()
    ]


def _of_several(runs: Sequence[Run], classes: Sequence[str]) -> list[tuple[int, str, str, str]]:
    found = [run.predictions for run in runs if run.predictions is not None]
    logits, labels = torch.stack([examples.logits.float() for examples, _ in found]), found[0][1]
    together = ensembles.examine(logits, labels)
    return [
        (
            row,
            classes[int(labels[row])],
            ", ".join(f"{name} {n}" for name, n in leading_votes(together.votes[row], classes)),
            f"{round(together.error_rate[row].item() * len(runs))} of {len(runs)} wrong, "
            f"loss {together.mean_loss[row].item():.2f}",
        )
        for row in ensembles.ranked(together.error_rate, together.mean_loss)[:_IMAGES].tolist()
    ]


def _item(images: Tensor | None, row: int, true: str, predicted: str, remark: str) -> Image:
    lines = (predicted, f"is {true}", remark, f"test/{row:05}")
    if images is None:
        return Image(lines)
    height, width = images.shape[-2:]
    alt = f"test image {row}, {true}, predicted as {predicted}"
    return Image(lines, data_uri(images[row]), alt, (width, height))


def data_uri(image: Tensor) -> str:
    """Return an image, uint8 [3, H, W], as a PNG in a data: address."""
    from PIL.Image import fromarray

    file = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    fromarray(pixels).save(file, format="png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
