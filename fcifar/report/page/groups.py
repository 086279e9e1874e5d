"""What the runs of a group say together, on a page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fcifar.report.page.charts import Strip, legend, strip_chart
from fcifar.report.page.html import Html, join, scroll, table, tag, tiles
from fcifar.report.page.results import between, loss, percent, seconds

STRIPS = 40  # rows of the chart of the spread; the table has all
_SPREAD = ("std_accuracy", "std_independent", "std_distribution")
_GRID = "Mean accuracy of each point of the sweep on {} images, %"


def headline(summary: Mapping[str, Any]) -> Html:
    """The figures of a group that matter."""
    cells = summary["cells"]
    if len(cells) == 1 and cells[0]["together"]:
        return tiles(_of_replicas(cells[0]))
    best = next((cell for cell in cells if cell["name"] == summary["best"]), None)
    ended = sum(len(cell["runs"]) for cell in cells)
    runs = ("runs", ended, f"of {len(summary['members'])} finished")
    figures: list[tuple[object, object, object]] = [runs]
    if best is not None:
        tested = best["test_accuracy"]
        figures = [
            (
                "test accuracy of the best",
                percent(tested["mean"]),
                "one run" if tested["n"] == 1 else f"mean of {tested['n']} runs",
            ),
            (
                "best on validation",
                best["name"],
                f"right on {percent(best['valid_accuracy']['mean'])} of the images held out",
            ),
            runs,
        ]
    note = (
        "No images were held out, so no setting is selected as the best: no decision uses the "
        "test set."
    )
    chosen = [] if best is not None or len(cells) == 1 else [tag("p", note, class_="note")]
    return join([tiles(figures), *chosen])


def _of_replicas(cell: Mapping[str, Any]) -> list[tuple[object, object, object]]:
    together = cell["together"]
    tta = cell["tta_accuracy"]
    views = [("with TTA", percent(tta["mean"]), "mean over the same models")] if tta else []
    return [
        (
            "mean test accuracy",
            percent(together["mean_accuracy"]),
            f"over {together['replicas']} seeds; 95 % interval of the mean "
            f"{between(together['interval95'])}",
        ),
        *views,
        (
            "spread",
            f"{100 * together['std_accuracy']:.2f}",
            f"points, standard deviation; from {percent(together['min_accuracy'])} to "
            f"{percent(together['max_accuracy'])}",
        ),
        (
            "all together",
            percent(together["ensemble_accuracy"]),
            "the mean of their probabilities",
        ),
        (
            "disagreement",
            percent(together["mean_disagreement"], 1),
            "of the images, for two of the models",
        ),
    ]


def spread(summary: Mapping[str, Any]) -> Html:
    """The test accuracy of each network, a row for each point of the sweep, and its origin."""
    members = {member["name"]: member for member in summary["members"]}
    cells = [cell for cell in summary["cells"] if cell["runs"]]
    strips = [
        Strip(
            cell["name"] or "all seeds",
            [100 * members[name]["test_accuracy"] for name in cell["runs"]],
            _interval(cell["test_accuracy"]),
        )
        for cell in cells[:STRIPS]
    ]
    chart = strip_chart(strips, title="test accuracy of each model", x_name="test accuracy, %")
    named = [("a model", 0, "dots", "")]
    if any(strip.interval for strip in strips):
        named.append(("95 % interval of the mean", 1, "interval", ""))
    caption = tag("figcaption", "Test accuracy of each model, %")
    origin = _origins(cells) if len(cells) > 1 else join(map(_origin, cells))
    return join([tag("figure", caption, chart, legend(named)), origin])


def _interval(figures: Mapping[str, Any]) -> tuple[float, float] | None:
    """Of the mean, in per cent; None for one run."""
    ends = figures["low"], figures["high"]
    if None in ends:
        return None
    return 100 * max(ends[0], 0.0), 100 * min(ends[1], 1.0)  # of few runs it may go beyond


def _origins(cells: Sequence[Mapping[str, Any]]) -> Html:
    """How much of the spread is real at each point of a sweep."""
    rows = [
        (
            cell["name"],
            len(cell["runs"]),
            *(f"{100 * cell['together'][name]:.2f}" for name in _SPREAD),
        )
        for cell in cells
        if cell["together"]
    ]
    title = "Standard deviation of the test accuracy, in points"
    note = (
        "Independent errors from image to image give some of it. The rest is real difference "
        "between the models; where it is negative, none shows."
    )
    head = ("", "runs", "seen", "independent errors", "real difference")
    return join([table(title, head, rows), tag("p", note, class_="note")]) if rows else Html("")


def _origin(cell: Mapping[str, Any]) -> Html:
    """How much of the spread is real, in words."""
    together = cell["together"]
    if not together:
        return Html("")
    real = together["std_distribution"]
    rest = (
        f"{100 * real:.2f} is real difference between the models"
        if real > 0
        else "which is more than was seen: no real difference between the models shows"
    )
    name = f"{cell['name']}: of" if cell["name"] else "Of"
    words = (
        f"{name} the standard deviation of {100 * together['std_accuracy']:.2f} points, "
        f"{100 * together['std_independent']:.2f} is what independent errors on "
        f"{together['n']:,} images give, and {rest}."
        if real > 0
        else f"{name} {together['n']:,} images, independent errors alone give a standard deviation "
        f"of {100 * together['std_independent']:.2f} points, {rest} "
        f"({100 * together['std_accuracy']:.2f})."
    )
    return tag("p", words, class_="note")


def points(summary: Mapping[str, Any]) -> Html:
    """The points of a sweep as a table, and as a grid where two values are swept."""
    if not summary["swept"]:
        return Html("")
    rows = [
        (
            *cell["changes"].values(),
            _mean(cell["valid_accuracy"]),
            _mean(cell["test_accuracy"]),
            loss(cell["test_loss"]["mean"]) if cell["test_loss"] else "-",
            len(cell["runs"]),
            cell["failed"] or "",
        )
        for cell in summary["cells"]
    ]
    head = (*summary["swept"], "validation", "test", "test loss", "runs", "failed")
    listed = table("Each point of the sweep, means over its runs", head, rows, wide=True)
    return join([_grid(summary), listed]) if len(summary["swept"]) == 2 else listed


def _grid(summary: Mapping[str, Any]) -> Html:
    """Two swept values as rows and columns, coloured by accuracy."""
    has_valid = any(cell["valid_accuracy"] for cell in summary["cells"])
    first, second = summary["swept"]
    found = {}
    for cell in summary["cells"]:
        figures = cell["valid_accuracy"] or cell["test_accuracy"]
        key = str(cell["changes"][first]), str(cell["changes"][second])
        found[key] = figures["mean"] if figures else math.nan
    known = [value for value in found.values() if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    columns = list(dict.fromkeys(column for _, column in found))

    def cell_of(row: str, column: str) -> Html:
        value = found.get((row, column), math.nan)
        if not math.isfinite(value):
            return tag("td", "failed", class_="soft")
        share = (value - low) / max(high - low, 1e-9)
        style = f"--share:{share:.3f}"
        return tag("td", f"{100 * value:.2f}", class_="heat number", style=style)

    caption = _GRID.format("validation" if has_valid else "test")
    head = tag(
        "tr",
        tag("th", f"{first} by {second}", scope="col"),
        *(tag("th", column, scope="col", class_="number") for column in columns),
    )
    body = [
        tag("tr", tag("th", row, scope="row"), *(cell_of(row, column) for column in columns))
        for row in dict.fromkeys(row for row, _ in found)
    ]
    grid = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *body)
    )
    return scroll(caption, grid)


def members(summary: Mapping[str, Any]) -> Html:
    """Every run of the group."""
    head = ("run", "test accuracy", "test loss", "training", "digest")
    rows = [
        (member["name"], "-", "-", "-", f"failed: {member['failed']}")
        if "failed" in member
        else (
            member["name"],
            percent(member["test_accuracy"]),
            loss(member["test_loss"]),
            seconds(member["train_seconds"]),
            tag("code", member["params_digest"][:8]),
        )
        for member in summary["members"]
    ]
    return table("Every run", head, rows, wide=True)


def timings(summary: Mapping[str, Any]) -> Html:
    """How long the group took."""
    how = "one after another" if summary["method"] == "loop" else "all at once, by vmap"
    rows = [
        ("how", how),
        ("training, all runs", seconds(summary["train_seconds"])),
        ("compiling", seconds(summary["compile_seconds"])),
        ("from the start of the process", seconds(summary["process_seconds"])),
    ]
    return table("Timings", ("", ""), rows)


def _mean(figures: Mapping[str, Any] | None) -> str:
    return percent(figures["mean"]) if figures else "-"
