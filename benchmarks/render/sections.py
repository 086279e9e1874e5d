"""The sections of docs/results.md, each a function of all records."""

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.render.charts import Panel, Row, Series, draw_panels, draw_rows
from benchmarks.render.tables import Record, Step, machine, markdown, steps
from fcifar.analysis import confidence
from fcifar.bench.bench import REFERENCE
from fcifar.report.figures.canvas import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    OCHRE,
    PURPLE,
    SKY,
    VERMILION,
)

CHARTS = "results"  # the folder of charts, beside the page
IMPLEMENTATIONS = {  # names and colours
    "module": ("PyTorch", GREY),
    "module_compiled": ("PyTorch, compiled", GREY),
    "fcifar_eager": ("fcifar", SKY),
    "fcifar_compiled": ("fcifar, compiled", BLUE),
    "jax_nchw": ("JAX, NCHW", OCHRE),
    "jax_nhwc": ("JAX, NHWC", VERMILION),
    "jax_scan": ("JAX, NHWC, scan", PURPLE),
}
GROWTH = {  # axes and unit
    "batch": ("batch size", "microseconds per image", 1e6),
    "width": ("hidden units, batch 64", "microseconds per image", 1e6),
    "images": ("images, batch 4", "seconds per epoch", 1.0),
}
FAMILY = ("speed93", "speed94")  # which differ by the number of epochs
BATCH = "batch by 500"  # the reference of gradients of each example

Run = Mapping[str, Any]


class Chart(NamedTuple):
    """A chart of the page."""

    file: str
    title: str
    svg: str


class Section(NamedTuple):
    """A title, charts, and text before and after them."""

    title: str
    charts: Sequence[Chart]
    before: str = ""
    after: str = ""

    def markdown(self) -> str:
        images = [f"![{chart.title}]({CHARTS}/{chart.file})" for chart in self.charts]
        parts = [f"## {self.title}", self.before, *images, self.after.rstrip()]
        return "\n\n".join(filter(None, parts)) + "\n"


# Accuracy ----------------------------------------------------------------------------------------


def recipes(records: Sequence[Record]) -> Section | None:
    """Return the accuracy of each run against its time, and a table of the recipes."""
    latest = _latest(records)
    if not latest:
        return None
    runs = list(latest.values())
    points, labels, with_tta = [], [], []
    for name, _, each in runs:
        last = max(run["process_seconds"] for run in each)
        for run in each:
            seconds = run["process_seconds"]
            points.append((seconds, 100 * run["test_accuracy"]))
            labels.append(name if seconds == last else "")
            if run.get("tta_accuracy") is not None:
                with_tta.append((seconds, 100 * run["tta_accuracy"]))
    series = [Series("one view of each image", points, BLUE, "dots", labels)]
    if with_tta:
        series.append(Series("with test-time augmentation", with_tta, VERMILION, "hollow"))
    title = "Accuracy against time"
    panel = Panel(series, "", "seconds of the process", "test accuracy, %", log="x")
    subtitle = _sources([record for _, record, _ in runs])
    svg = draw_panels([panel], title, subtitle, width=8.0, height=4.4)
    table = recipe_table({name: each for name, _, each in runs})
    note = (
        "Accuracies are means, with the interval of the rightmost one; times are medians. Train + "
        "eval time excludes compilation."
    )
    return Section(title, [Chart("recipes.svg", title, svg)], after=f"{note}\n\n{table}")


def recipe_table(recipes: Mapping[str, Sequence[Run]]) -> str:
    """Return a row for each recipe, with means and an interval of the accuracies of its runs."""
    columns = ("recipe", "runs", "accuracy", "with TTA", "95 % interval of the mean", "training",
               "train + eval time", "process")  # fmt: skip
    rows = []
    for name, runs in recipes.items():
        plain = confidence.summarize([100 * run["test_accuracy"] for run in runs])
        tta = [100 * run["tta_accuracy"] for run in runs if run.get("tta_accuracy") is not None]
        views = confidence.summarize(tta) if tta else None
        last = views or plain
        row = [name, str(len(runs)), f"{plain.mean:.2f} %", f"{views.mean:.2f} %" if views else ""]
        row.append(f"{last.low:.2f} to {last.high:.2f}" if last.n > 1 else "")
        for key in ("train_seconds", "convention_seconds", "process_seconds"):
            times = [run[key] for run in runs if run.get(key)]
            row.append(f"{statistics.median(times):,.0f} s" if times else "")
        rows.append(row)
    return markdown(columns, rows)


def frontier(records: Sequence[Record]) -> Section | None:
    """Return the accuracy of one method against its time, with fewer and with more epochs.

    A series for each processor; the recipes of the family belong to that of their record.
    """
    found = [record for record in records if "frontier" in record["results"]]
    if not found:
        return None
    processors: dict[str, dict[int, list[Run]]] = {}
    for record in found:
        lengths = processors.setdefault(record["environment"]["cpu"], {})
        for epochs, runs in record["results"]["frontier"].items():
            lengths.setdefault(int(epochs), []).extend(runs)
    used = [*found]
    for name, from_record, runs in _latest(records).values():
        if name in FAMILY:
            lengths = processors.setdefault(from_record["environment"]["cpu"], {})
            lengths.setdefault(runs[0]["epochs"], []).extend(runs)
            used.append(from_record)
    series, rows = [], []
    for (processor, lengths), color in zip(
        processors.items(), itertools.cycle(COLORS), strict=False
    ):
        points, means, labels = [], [], []
        for epochs, runs in sorted(lengths.items()):
            accuracies = [100 * run["tta_accuracy"] for run in runs]
            seconds = [run["convention_seconds"] for run in runs]
            if runs:
                points += zip(seconds, accuracies, strict=True)
                means.append((statistics.fmean(seconds), statistics.fmean(accuracies)))
                labels.append(str(epochs))
                row = (str(epochs), str(len(runs)), f"{statistics.fmean(accuracies):.2f} %")
                rows.append((processor, *row, f"{statistics.median(seconds):,.0f} s"))
        name = f"{processor}: mean, beside it the number of epochs"
        series.append(Series(name, means, color, "solid", labels))
        series.append(Series(f"{processor}: a run", points, color, "hollow"))
    title = "Accuracy for a number of seconds"
    x_label, y_label = "seconds of training and evaluation", "accuracy with TTA, %"
    svg = draw_panels(
        [Panel(series, "", x_label, y_label, log="x")], title, _sources(used), width=8.0, height=4.4
    )
    columns = ("processor", "epochs", "runs", "accuracy with TTA", "train + eval time")
    after = f"`{found[0]['config']['recipe']}` with fewer and more epochs.\n\n"
    return Section(
        title, [Chart("frontier.svg", title, svg)], after=after + markdown(columns, rows)
    )


def ablation(records: Sequence[Record]) -> Section | None:
    """Return the accuracy of a recipe with one change at a time, a dot for each seed."""
    charts = []
    for record in records:
        if runs := _runs_with([record], "valid_accuracy", "train_seconds"):
            charts.append(_changes(record, {name: each for name, _, each in runs}))
    if not charts:
        return None
    after = (
        "One change of a recipe at a time, on held-out images. A dot is a seed, the number the "
        "difference of the means in points."
    )
    return Section("Contribution of each part", charts, after=after)


def _changes(record: Record, runs: dict[str, list[Run]]) -> Chart:
    """Return the chart of a record of ``bench_ablation``."""
    values = {name: [100 * run["valid_accuracy"] for run in each] for name, each in runs.items()}
    means = {name: statistics.fmean(each) for name, each in values.items()}
    first = next(iter(values))
    rows = []
    for name in sorted(values, key=lambda name: -means[name]):
        note = f"{means[name] - means[first]:+.1f}" if name != first else ""
        rows.append(Row(name, values[name], GREEN if name == first else BLUE, note=note))
    added = record["config"].get("changes") == "additions"
    title = "Contribution of additions to a recipe" if added else "Contribution of each part"
    svg = draw_rows(
        rows, title, _sources([record]), "validation accuracy, %", reference=means[first]
    )
    return Chart(f"{record['name']}.svg", title, svg)


def replicas(records: Sequence[Record]) -> Section | None:
    """Return the accuracies of the seeds of a recipe."""
    rows, used, notes = [], [], []
    for record in records:
        for each in _dicts(record["results"].get("processes")):
            together = each.get("together", {})
            if "accuracies" in together:
                accuracies = [100 * value for value in together["accuracies"]]
                low, high = (100 * value for value in together["interval95"])
                name = f"{record['config']['recipe']}, {together['replicas']} seeds"
                rows.append(Row(name, accuracies, interval=(low, high)))
                used.append(record)
                notes.append(_replicas_note(record["config"]["recipe"], each, together))
    if not rows:
        return None
    title = "Spread over seeds"
    x_label = "test accuracy, %; the bar is the 95 % interval of the mean"
    svg = draw_rows(rows, title, _sources(used), x_label)
    return Section(title, [Chart("replicas.svg", title, svg)], after="\n".join(notes))


def _replicas_note(recipe: str, each: Run, together: Run) -> str:
    one, many = each["group_seconds"], each["alone_seconds"]
    return (
        f"{together['replicas']} seeds of `{recipe}`: standard deviation "
        f"{100 * together['std_accuracy']:.2f} points, of which errors independent from image to "
        f"image give {100 * together['std_independent']:.2f}; the mean of their probabilities has "
        f"{100 * together['ensemble_accuracy']:.2f} %. One process for all took {one:,.0f} s, one "
        f"for each {many:,.0f} s in total: a ratio of {one / many:.2f}.\n"
    )


# Speed -------------------------------------------------------------------------------------------


def training_steps(records: Sequence[Record]) -> Section | None:
    """Return the speed-up of steps over PyTorch's, a chart for each record and device."""
    charts = []
    for record in records:
        every = steps(record)
        for device in dict.fromkeys(step.device for step in every):
            here = [step for step in every if step.device == device]
            models = dict.fromkeys(step.model for step in here)
            panels = [
                step_panel([step for step in here if step.model == model]) for model in models
            ]
            if panels := [panel for panel in panels if panel is not None]:
                title = f"A training step on {device}: speed-up over PyTorch"
                width = 0.6 + 4.7 * len(panels)
                svg = draw_panels(panels, title, _sources([record]), width=width, height=4.3)
                file = f"{record['name']}-{device.replace(':', '')}.svg"
                charts.append(Chart(file, f"{title}, record {record['name']}", svg))
    before = (
        "Medians of interleaved repetitions, warm: the seconds of the tutorial's own step in "
        "PyTorch over those of each implementation. Above the dashed line is faster."
    )
    return Section("Training steps against PyTorch and JAX", charts, before) if charts else None


def step_panel(measured: Sequence[Step]) -> Panel | None:
    """Return the speed-ups over batch sizes of one model."""
    known = [step for step in measured if REFERENCE in step.implementations]
    series = []
    for name, (label, color) in IMPLEMENTATIONS.items():
        points = [
            (float(step.batch), speedup)
            for step in known
            if name in step.implementations and (speedup := step.speedup(name))
        ]
        if points and name != REFERENCE:
            style = "dashed" if name.startswith("jax") else "solid"
            series.append(Series(label, points, color, style))
    if not series:
        return None
    batches = [float(step.batch) for step in known]
    return Panel(series, known[0].model, "batch size", "speed-up", batches, reference=1.0)


def whole_trainings(records: Sequence[Record]) -> Section | None:
    """Return the speed-ups over the tutorial's whole loops."""
    rows, used = [], []
    for record in records:
        ratios = record["results"].get("ratio_to_tutorial")
        if isinstance(ratios, dict):
            used.append(record)
            what = record["name"].removesuffix("_end_to_end")
            for name, ratio in ratios.items():
                if name != "tutorial":
                    how = re.sub("^fcifar(_|, |$)", "", name).replace("_", " ") or "compiled"
                    rows.append(Row(f"{what}, {how}", [ratio], note=f"{ratio:.1f}x"))
    title = "End to end, speed-up over the tutorial's loop"
    after = (
        "Training for an epoch, and evaluation of the test images; `with compiling` includes the "
        "seconds of compilation."
    )
    return _bars(title, "end-to-end.svg", rows, used, "speed-up", after)


def growth(records: Sequence[Record]) -> Section | None:
    """Return the cost against batch size, width and number of images."""
    record = next((r for r in records if set(GROWTH) <= set(r["results"])), None)
    if record is None:
        return None
    panels = []
    for name, (x_label, y_label, unit) in GROWTH.items():
        measured = record["results"][name]
        series = []
        for implementation in ("module", "fcifar_compiled"):
            points = [
                (float(x), unit * statistics.median(each[implementation]))
                for x, each in measured.items()
                if implementation in each
            ]
            if points:
                label, color = IMPLEMENTATIONS[implementation]
                series.append(Series(label, points, color))
        panels.append(Panel(series, "", x_label, y_label, [float(x) for x in measured]))
    title = "Cost of training lenet"
    subtitle = f"{_sources([record])}; both axes are logarithmic"
    svg = draw_panels(panels, title, subtitle, width=11.0, height=3.6)
    return Section(title, [Chart("growth.svg", title, svg)])


def gradients(records: Sequence[Record]) -> Section | None:
    """Return the cost of gradients of each example, relative to that of batches."""
    rows, used = [], []
    for record in records:
        for kind, ratios in record["results"].get("times_batch_by_500", {}).items():
            used.append(record)
            for name, ratio in ratios.items():
                if name != BATCH:
                    how = kind.removesuffix("_seconds")
                    color = BLUE if how == "compiled" else SKY
                    rows.append(Row(f"{name}, {how}", [ratio], color, note=f"{ratio:.1f}x"))
    x_label = "seconds relative to gradients of batches of 500"
    return _bars("Cost of gradients of each example", "gradients.svg", rows, used, x_label)


# Shared ------------------------------------------------------------------------------------------


def _bars(
    title: str, file: str, rows: list[Row], used: list[Record], x_label: str, after: str = ""
) -> Section | None:
    if not rows:
        return None
    svg = draw_rows(rows, title, _sources(used), x_label, bars=True, reference=1.0)
    return Section(title, [Chart(file, title, svg)], after=after)


def _runs_with(records: Sequence[Record], *keys: str) -> list[tuple[str, Record, list[Run]]]:
    """Return the lists of runs in the records that have these values, with their names."""
    return [
        (name, record, runs)
        for record in records
        for name, values in record["results"].items()
        if (runs := _dicts(values)) and all(set(keys) <= set(run) for run in runs)
    ]


def _latest(records: Sequence[Record]) -> dict[str, tuple[str, Record, list[Run]]]:
    """Return the runs of each recipe, from the last record that has any."""
    return {found[0]: found for found in _runs_with(records, "test_accuracy", "process_seconds")}


def _dicts(values: Any) -> list[Run]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _sources(records: Sequence[Record]) -> str:
    """Return the machines and the names of records."""
    names = ", ".join(dict.fromkeys(record["name"] for record in records))
    return f"{'; '.join(dict.fromkeys(map(machine, records)))}; {names}"


SECTIONS = (
    recipes,
    frontier,
    ablation,
    training_steps,
    whole_trainings,
    growth,
    replicas,
    gradients,
)
