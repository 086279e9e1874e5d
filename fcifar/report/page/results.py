"""What came out, on a page: figures, classes, confusions, calibration, timings."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcifar.analysis import calibration
from fcifar.analysis.significance import against_first
from fcifar.metrics import wilson_interval
from fcifar.report.page.charts import bar_chart
from fcifar.report.page.gathering import Run, on_same_images
from fcifar.report.page.html import Html, join, table, tag, tiles
from fcifar.report.page.matrix import confusion_matrix, worst

_CLOCKS = (
    ("train_seconds", "training"),
    ("compile_seconds", "compiling"),
    ("valid_seconds", "validation"),
    ("eval_seconds", "evaluation"),
    ("safeguard_seconds", "digests and checkpoints"),
    ("convention_seconds", "train + eval time, warm"),
    ("process_seconds", "from the start of the process"),
)


def percent(fraction: float | None, digits: int = 2) -> str:
    """``0.564`` as ``56.40 %``."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def between(interval: Sequence[float | None] | None, digits: int = 2) -> str:
    """An interval of accuracies in per cent, without the sign."""
    if not interval or None in interval:
        return "-"
    return " to ".join(f"{100 * end:.{digits}f}" for end in interval if end is not None)


def headline(run: Run) -> Html:
    """The figures of a run that matter."""
    report = run.report
    figures = [
        (
            "test accuracy",
            percent(report["test_accuracy"]),
            f"of {report['test_n']:,} images; 95 % interval {between(report['interval95'])}",
        )
    ]
    if "tta" in report:
        figures.append(
            (
                f"with --tta {report['tta']}",
                percent(report["tta_accuracy"]),
                f"several views of each image; 95 % interval {between(report['tta_interval95'])}",
            )
        )
    figures += [
        ("test loss", loss(report["test_loss"]), "cross-entropy, nats"),
        (
            "training",
            seconds(report["train_seconds"]),
            f"{_epochs(report['epochs'])}, {report['steps']:,} steps, "
            f"{report['images_per_second']:,.0f} images/s",
        ),
    ]
    return join([tiles(figures), tag("p", _chosen(report), class_="note")])


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


def _chosen(report: Mapping[str, Any]) -> str:
    selected = report["selected"]
    stopped = " Training stopped early." if report["stopped_early"] else ""
    if "valid_loss" not in selected:
        return f"The model is that of the last step.{stopped}"
    count = f" on {report['valid_n']:,} images" if report.get("valid_n") else ""
    return (
        f"The model is that of step {selected['step']:,}, which had the lowest validation loss, "
        f"{loss(selected['valid_loss'])}{count}.{stopped}"
    )


def side_by_side(runs: Sequence[Run]) -> Html:
    """A row of figures for each run."""
    tta = any("tta" in run.report for run in runs)
    head = ["", "run", "recipe", "seed", "test accuracy", "95 % interval"]
    head += ["with TTA"] if tta else []
    head += ["loss", "training", "process", "digest"]

    def row(run: Run) -> list[object]:
        report = run.report
        return [
            run.name,
            run.path.name or run.path,
            report["recipe"],
            report["seed"],
            percent(report["test_accuracy"]),
            between(report["interval95"]),
            *([percent(report.get("tta_accuracy"))] if tta else []),
            loss(report["test_loss"]),
            seconds(report["train_seconds"]),
            seconds(report.get("process_seconds")),
            tag("code", report["params_digest"][:8]),
        ]

    count = {run.report["test_n"] for run in runs}
    images = f"{count.pop():,} test images" if len(count) == 1 else "test images"
    return table(f"Figures of each run, {images}", head, map(row, runs), wide=True)


def paired(runs: Sequence[Run]) -> Html:
    """Each run against the first, on the same images; or why that cannot be said."""
    if not on_same_images(runs):
        why = (
            "The runs have not all left predictions of the same test images, so their differences "
            "cannot be tested image by image."
        )
        return tag("p", why, class_="note")
    names = [run.name for run in runs]
    correct = [run.predictions[0].correct for run in runs if run.predictions is not None]
    pairs = [against_first(names, correct, i) for i in range(1, len(runs))]
    first = names[0]
    return table(
        f"Against {first} on the same images, in points of accuracy; p is McNemar's, exact",
        ("", "difference", "95 % interval", f"only {first} right", "only it right", "p", ""),
        [
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
        ],
        wide=True,
    )


def by_class(per_class: Mapping[str, Mapping[str, Any]], what: str = "test images") -> Html:
    """Accuracy class by class with Wilson's interval, the best first."""
    ranked = sorted(per_class.items(), key=lambda item: -(item[1]["accuracy"] or 0.0))

    def row(name: str, figures: Mapping[str, Any]) -> list[object]:
        right, total = int(figures["correct"]), int(figures["total"])
        if not total:
            return [name, "-", "-", "-", ""]
        share = right / total
        bar = tag("span", class_="share", style=f"--share:{share:.3f}", aria_hidden="true")
        interval = between(wilson_interval(right, total), 1)
        return [name, percent(share, 1), interval, f"{right:,} of {total:,}", bar]

    head = ("class", "accuracy", "95 % interval", "right", "")
    return table(f"By class, {what}", head, [row(*item) for item in ranked], wide=True)


def classes_side_by_side(runs: Sequence[Run]) -> Html:
    """Accuracy class by class, a column for each run."""
    names = list(dict.fromkeys(name for run in runs for name in run.report["per_class"]))
    rows = [
        (
            name,
            *(percent(run.report["per_class"].get(name, {}).get("accuracy"), 1) for run in runs),
        )
        for name in names
    ]
    head = ("class", *(run.name for run in runs))
    return table("Accuracy by class", head, rows)


def confusion(
    counts: Sequence[Sequence[int]], classes: Sequence[str], title: str = "Confusion matrix"
) -> Html:
    """The confusion matrix, with its most frequent mistakes in words."""
    mistakes = worst(counts, classes, 5)
    listed = f"Most often: {', '.join(mistakes)}." if mistakes else "There are no mistakes."
    caption = tag(
        "figcaption",
        f"{title}. Rows are true classes, columns what was predicted; blue is right, orange wrong.",
    )
    matrix = confusion_matrix(counts, classes, f"{title}. {listed}")
    box = tag(
        "div", matrix, class_="scroll", tabindex=0, role="region", aria_label="Confusion matrix"
    )
    return tag("figure", caption, box, tag("p", listed, class_="note"))


def reliability(run: Run) -> Html:
    """Accuracy over confidence."""
    if run.predictions is None:
        return tag("p", "Its predictions are gone, and with them its confidence.", class_="note")
    examples, _ = run.predictions
    confidence, _ = calibration.softmax_confidence(examples.logits)
    bins = calibration.reliability(confidence, examples.correct)
    ece = calibration.expected_calibration_error(bins).item()
    bars = [
        (c, a, f"{n:,} images: confidence {100 * c:.1f} %, accuracy {100 * a:.1f} %")
        for c, a, n in zip(*(part.tolist() for part in bins), strict=True)
    ]
    caption = tag(
        "figcaption",
        "Accuracy over confidence, %. Dots are the mean confidence in each bar: above it the "
        "model is too sure.",
    )
    chart = bar_chart(bars, title="accuracy over confidence", x_name="confidence, %")
    note = f"Expected calibration error {percent(ece)}; mean confidence {_mean(run)}."
    return tag("figure", caption, chart, tag("p", note, class_="note"))


def _mean(run: Run) -> str:
    return percent(run.report.get("mean_confidence"), 1)


def timings(runs: Sequence[Run]) -> Html:
    """How long everything took, a column for each run."""
    rows = [
        (name, *(seconds(run.report.get(key)) for run in runs))
        for key, name in _CLOCKS
        if any(run.report.get(key) is not None for run in runs)
    ]
    rows.append(("images/s in training", *(f"{r.report['images_per_second']:,.0f}" for r in runs)))
    head = ("", *(run.name if len(runs) > 1 else "time" for run in runs))
    return table("Timings", head, rows)


def loss(value: float | None) -> str:
    """A loss to four places."""
    return "-" if value is None else f"{value:.4f}"


def seconds(value: float | None) -> str:
    """A time in seconds."""
    return "-" if value is None else f"{value:,.1f} s"
