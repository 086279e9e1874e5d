"""The results of a group of runs on a page."""

from collections.abc import Mapping
from typing import Any

from fcifar.report import text
from fcifar.report.figures import sweep
from fcifar.report.page.blocks import Table, Text, Tiles, chart, code
from fcifar.report.text import between, number, percent, seconds


def headline(summary: Mapping[str, Any]) -> list[Any]:
    """The main figures of a group."""
    cells = summary["cells"]
    if len(cells) == 1 and cells[0]["together"]:
        return [Tiles(_of_replicas(cells[0]))]
    finished = sum(len(cell["runs"]) for cell in cells)
    runs = ("runs", f"{finished}", f"of {len(summary['members'])} finished")
    best = next((cell for cell in cells if cell["name"] == summary["best"]), None)
    if best is None:
        note = (
            "No images were held out, so no setting is selected as the best: no decision uses the "
            "test set."
        )
        if "fold" in summary["swept"]:
            note = "Each fold has other validation images, so no run is selected as the best."
        return [Tiles([runs]), *([Text(note, is_note=True)] if len(cells) > 1 else [])]
    tested = best["test_accuracy"]
    mean = "one run" if tested["n"] == 1 else f"mean of {tested['n']} runs"
    valid = percent(best["valid_accuracy"]["mean"], 2)
    return [
        Tiles(
            [
                ("test accuracy of the best", percent(tested["mean"], 2), mean),
                ("best on validation", best["name"], f"validation accuracy {valid}"),
                runs,
            ]
        )
    ]


def _of_replicas(cell: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    together, tta = cell["together"], cell["tta_accuracy"]
    average = cell.get("average_accuracy")
    interval = f"95 % interval of the mean {between(together['interval95'])}"
    extremes = between((together["min_accuracy"], together["max_accuracy"]))
    return [
        (
            "mean test accuracy",
            percent(together["mean_accuracy"], 2),
            f"over {together['replicas']} seeds; {interval}",
        ),
        *([("with TTA", percent(tta["mean"], 2), "mean over the same models")] if tta else []),
        *([("averages", percent(average["mean"], 2), "mean over the runs")] if average else []),
        (
            "spread",
            f"{100 * together['std_accuracy']:.2f}",
            f"points, standard deviation; from {extremes} %",
        ),
        ("ensemble", percent(together["ensemble_accuracy"], 2), "of the mean probabilities"),
        ("disagreement", percent(together["mean_disagreement"]), "of the images, for two models"),
    ]


def spread(summary: Mapping[str, Any]) -> list[Any]:
    """The test accuracy of each run, and how much of its spread is chance."""
    cells = [cell for cell in summary["cells"] if cell["runs"]]
    blocks: list[Any] = []
    if cells:
        caption = "Test accuracy of each model, %; the bar is the 95 % interval of the mean"
        blocks.append(chart(sweep.accuracies(summary), caption, "test accuracy of each model"))
    if len(cells) == 1 and cells[0]["together"]:
        return [*blocks, Text(f"Spread: {text.spread(cells[0]['together'])}.", is_note=True)]
    names = ("std_accuracy", "std_independent", "std_distribution")
    rows = [
        (cell["name"], len(cell["runs"]), *(f"{100 * cell['together'][n]:.2f}" for n in names))
        for cell in cells
        if cell["together"]
    ]
    if rows:
        title = "Standard deviation of the test accuracy, in points"
        head = ("", "runs", "seen", "independent errors", "real difference")
        note = (
            "Independent errors on each image explain part of it. The rest is real difference "
            "between the models; a negative value means that none shows."
        )
        blocks += [Table(title, head, rows), Text(note, is_note=True)]
    return blocks


def points(summary: Mapping[str, Any]) -> list[Any]:
    """The points of a sweep as a chart, and as a table."""

    def mean(figures: Mapping[str, Any] | None) -> str:
        return percent(figures["mean"], 2) if figures else "-"

    names = summary["swept"]
    averages = any(cell.get("average_accuracy") for cell in summary["cells"])
    rows = [
        (
            *cell["changes"].values(),
            mean(cell["valid_accuracy"]),
            mean(cell["test_accuracy"]),
            *([mean(cell["average_accuracy"])] if averages else []),
            number(cell["test_loss"]["mean"] if cell["test_loss"] else None),
            len(cell["runs"]),
            cell["failed"] or "",
        )
        for cell in summary["cells"]
    ]
    average = ("average",) if averages else ()
    head = (*names, "validation", "test", *average, "test loss", "runs", "failed")
    table = Table("Each point of the sweep, means over its runs", head, rows, is_wide=True)
    if len(names) > 2:
        return [table]
    has_valid = any(cell["valid_accuracy"] for cell in summary["cells"])
    caption = f"Mean accuracy on {'validation' if has_valid else 'test'} images, %"
    figure = chart(sweep.points(summary), f"{caption}: {' by '.join(names)}", caption)
    return [figure, table]


def members(summary: Mapping[str, Any]) -> Table:
    """Every run of the group."""
    average = ("average",) if any("average" in m for m in summary["members"]) else ()
    head = ("run", "test accuracy", *average, "test loss", "training", "digest")
    rows = [
        (member["name"], "-", *("-" for _ in average), "-", "-", f"failed: {member['failed']}")
        if "failed" in member
        else (
            member["name"],
            percent(member["test_accuracy"], 2),
            *(percent(member.get("average_accuracy"), 2) for _ in average),
            number(member["test_loss"]),
            seconds(member["train_seconds"]),
            code(member["params_digest"][:8]),
        )
        for member in summary["members"]
    ]
    return Table("Every run", head, rows, is_wide=True)


def timings(summary: Mapping[str, Any]) -> Table:
    """How long the group took."""
    how = "one after another" if summary["method"] == "loop" else "all at once, by vmap"
    rows = [
        ("method", how),
        ("training, all runs", seconds(summary["train_seconds"])),
        ("compiling", seconds(summary["compile_seconds"])),
        ("from the start of the (last) process", seconds(summary["process_seconds"])),
    ]
    return Table("Timings", ("", ""), rows)
