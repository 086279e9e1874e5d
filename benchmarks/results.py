"""The results page: docs/results.md, and its plots beside it, out of the records.

``benchmarks.page`` writes it together with bench_results/README.md, which has every figure.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.drawing import Line, Panel, Row, plot, rows
from benchmarks.tables import Step, by_device, machine, markdown, steps
from fcifar import intervals
from fcifar.data.files import write_text
from fcifar.runs.bench import YARDSTICK

PLOTS = "results"  # the folder of the plots, beside the page

INTRODUCTION = """# Results

Made by `python -m benchmarks.page` out of the records in
[bench_results](../bench_results/README.md), where every figure is, with the spread and the
environment; nothing here is typed by hand. The plots know light and dark.
"""
NAMES = {
    "module": "PyTorch",
    "module_compiled": "PyTorch, compiled",
    "fcifar_eager": "fcifar",
    "fcifar_compiled": "fcifar, compiled",
    "jax_nchw": "JAX, NCHW",
    "jax_nhwc": "JAX, NHWC",
    "jax_scan": "JAX, NHWC, scan",
}
COLORS = {
    "module": 6,
    "module_compiled": 6,
    "fcifar_eager": 5,
    "fcifar_compiled": 0,
    "jax_nchw": 4,
    "jax_nhwc": 1,
    "jax_scan": 3,
}
GROWTH = {
    "batch": ("batch size", "microseconds an image", 1e6),
    "width": ("hidden units, batch 64", "microseconds an image", 1e6),
    "images": ("images, batch 4", "seconds an epoch", 1.0),
}
_BATCH = "batch by 500"  # what gradients of each example are compared with

Record = Mapping[str, Any]


class Part(NamedTuple):
    """A part of the page, and the plots in it, by file name."""

    text: str
    plots: dict[str, str]


def write(folder: Path, found: Sequence[Record]) -> list[Path]:
    """Write ``results.md`` and its plots into ``folder``; plots that are no longer made go."""
    made = [part for make in PARTS if (part := make(found)) is not None]
    plots = {name: svg for part in made for name, svg in part.plots.items()}
    place = folder / PLOTS
    for path in place.glob("*.svg"):
        if path.name not in plots:
            path.unlink()
    for name, svg in plots.items():
        write_text(place / name, svg)
    page = folder / "results.md"
    write_text(page, "\n".join([INTRODUCTION, *(part.text for part in made)]))
    return [page, *(place / name for name in plots)]


# Accuracy ----------------------------------------------------------------------------------------


def recipes(found: Sequence[Record]) -> Part | None:
    """Accuracy of the recipes against the time that they take, each run a dot."""
    runs = _runs(found, "test_accuracy", "process_seconds")
    if not runs:
        return None
    plain = [(name, run) for name, _, each in runs for run in each]
    seen = [(name, run) for name, run in plain if run.get("tta_accuracy") is not None]
    latest = {name: max(run["process_seconds"] for run in each) for name, _, each in runs}
    labels = [name if run["process_seconds"] == latest[name] else "" for name, run in plain]
    lines = [
        Line(
            "each run, one view of an image",
            [(run["process_seconds"], 100 * run["test_accuracy"]) for _, run in plain],
            0,
            "dots",
            labels,
        ),
        Line(
            "the same with test-time augmentation",
            [(run["process_seconds"], 100 * run["tta_accuracy"]) for _, run in seen],
            1,
            "hollow",
        ),
    ]
    panel = Panel(
        [line for line in lines if line.points],
        "",
        "seconds from the start of the process",
        "test accuracy, %",
        log="x",
        width=760,
    )
    title = "Accuracy against time"
    svg = plot([panel], title, _sources([record for _, record, _ in runs]), 420)
    table = markdown(
        ("recipe", "runs", "accuracy", "with TTA", "95 % interval of the mean", "training",
         "field's clock", "process"),
        (_recipe_row(name, each) for name, _, each in runs),
    )  # fmt: skip
    text = (
        f"## {title}\n\n![{title}]({PLOTS}/recipes.svg)\n\nAccuracies are means, and the interval "
        "is that of the last accuracy before it; times are medians. The field's clock has training "
        f"and evaluation, warm.\n\n{table}"
    )
    return Part(text, {"recipes.svg": svg})


def _recipe_row(name: str, runs: Sequence[Record]) -> list[str]:
    plain = intervals.summarize([100 * run["test_accuracy"] for run in runs])
    seen = [100 * run["tta_accuracy"] for run in runs if run.get("tta_accuracy") is not None]
    views = intervals.summarize(seen) if seen else None
    last = views or plain
    return [
        name,
        str(len(runs)),
        f"{plain.mean:.2f} %",
        f"{views.mean:.2f} %" if views else "",
        f"{last.low:.2f} to {last.high:.2f}" if last.n > 1 else "",
        *(
            f"{statistics.median(times):,.0f} s"
            if (times := [run[key] for run in runs if run.get(key)])
            else ""
            for key in ("train_seconds", "convention_seconds", "process_seconds")
        ),
    ]


def ablation(found: Sequence[Record]) -> Part | None:
    """What each part of a recipe is worth: one changed at a time, a dot for each seed."""
    runs = _runs(found, "valid_accuracy", "train_seconds")
    if not runs:
        return None
    values = {name: [100 * run["valid_accuracy"] for run in each] for name, _, each in runs}
    first = next(iter(values))
    base = statistics.fmean(values[first])
    ranked = sorted(values, key=lambda name: -statistics.fmean(values[name]))
    gaps = {name: f"{statistics.fmean(values[name]) - base:+.1f}" for name in ranked}
    gaps[first] = ""
    drawn = [
        Row(name, values[name], 2 if name == first else 0, None, gaps[name]) for name in ranked
    ]
    title = "What each part is worth"
    svg = rows(drawn, title, _sources([r for _, r, _ in runs]), "validation accuracy, %", mark=base)
    text = (
        f"## {title}\n\n![{title}]({PLOTS}/ablation.svg)\n\nOne part of a recipe changed at a "
        "time, on images held out; a dot is a seed, the number the difference of the means in "
        "points.\n"
    )
    return Part(text, {"ablation.svg": svg})


def replicas(found: Sequence[Record]) -> Part | None:
    """How far apart the networks of one recipe come out."""
    drawn, sources, notes = [], [], []
    for record in found:
        for each in _dicts(record["results"].get("processes")):
            together = each.get("together", {})
            if "accuracies" in together:
                accuracies = [100 * value for value in together["accuracies"]]
                low, high = together["interval95"]
                name = f"{record['config']['recipe']}, {together['replicas']} seeds"
                drawn.append(Row(name, accuracies, 0, (100 * low, 100 * high)))
                sources.append(record)
                notes.append(_of_spread(record, each, together))
    if not drawn:
        return None
    title = "How far apart the seeds of a recipe are"
    svg = rows(drawn, title, _sources(sources), "test accuracy, %; the bar: 95 % of the mean")
    text = f"## {title}\n\n![{title}]({PLOTS}/replicas.svg)\n\n" + "\n".join(notes)
    return Part(text, {"replicas.svg": svg})


def _of_spread(record: Record, each: Record, together: Record) -> str:
    share = each["group_seconds"] / each["alone_seconds"]
    return (
        f"{together['replicas']} seeds of `{record['config']['recipe']}`: standard deviation "
        f"{100 * together['std_accuracy']:.2f} points, of which errors independent from image to "
        f"image give {100 * together['std_independent']:.2f}; the mean of their probabilities has "
        f"{_percent(together['ensemble_accuracy'])}. One process took {each['group_seconds']:,.0f} "
        f"s, as many processes as seeds took {each['alone_seconds']:,.0f} s: {share:.2f} of it.\n"
    )


# Speed -------------------------------------------------------------------------------------------


def training_steps(found: Sequence[Record]) -> Part | None:
    """Steps against PyTorch's module: how many times as fast, a plot for each record and device."""
    plots, shown = {}, []
    for record in found:
        for device, each in by_device(steps(record)).items():
            panels = [
                panel
                for network in dict.fromkeys(step.network for step in each)
                if (panel := _step_panel([step for step in each if step.network == network]))
            ]
            if panels:
                name = f"{record['name']}-{device.replace(':', '')}.svg"
                title = f"A training step on {device}: times as fast as PyTorch's"
                plots[name] = plot(panels, title, _sources([record]), 340)
                shown.append(f"![{title}, record {record['name']}]({PLOTS}/{name})\n")
    if not plots:
        return None
    text = (
        "## Training steps against PyTorch and JAX\n\nMedians of interleaved repetitions, warm: "
        "the seconds of the tutorial's own step in PyTorch over those of each. Above the dashed "
        "line is faster.\n\n"
    )
    return Part(text + "\n".join(shown), plots)


def _step_panel(found: Sequence[Step]) -> Panel | None:
    known = [step for step in found if YARDSTICK in step.implementations]
    lines = []
    for name in NAMES:
        points = [
            (
                float(step.batch),
                step.implementations[YARDSTICK]["median_seconds"]
                / step.implementations[name]["median_seconds"],
            )
            for step in known
            if name in step.implementations
        ]
        if points and name != YARDSTICK:
            style = "dashed" if name.startswith("jax") else "solid"
            lines.append(Line(NAMES[name], points, COLORS[name], style))
    if not lines:
        return None
    batches = [float(step.batch) for step in known]
    network = known[0].network
    return Panel(lines, network, "batch size", "times as fast", batches, mark=1.0, width=500)


def whole_trainings(found: Sequence[Record]) -> Part | None:
    """Everything with a ratio to the tutorial's own loop, from end to end."""
    drawn, sources = [], []
    for record in found:
        ratios = record["results"].get("ratio_to_tutorial")
        if isinstance(ratios, dict):
            sources.append(record)
            of = record["name"].removesuffix("_end_to_end")
            for name, ratio in ratios.items():
                if name != "tutorial":
                    how = re.sub("^fcifar(_|, |$)", "", name).replace("_", " ") or "compiled"
                    drawn.append(Row(f"{of}, {how}", [ratio], 0, None, f"{ratio:.1f}x"))
    if not drawn:
        return None
    title = "From end to end, times as fast as the tutorial's loop"
    svg = rows(drawn, title, _sources(sources), "times as fast", bars=True, mark=1.0)
    text = (
        f"## {title}\n\n![{title}]({PLOTS}/end-to-end.svg)\n\nTraining an epoch, and evaluation "
        "of the test images; `with compiling` has the seconds of compiling in it.\n"
    )
    return Part(text, {"end-to-end.svg": svg})


def growth(found: Sequence[Record]) -> Part | None:
    """Cost against batch, width and number of images."""
    record = next((r for r in found if set(GROWTH) <= set(r["results"])), None)
    if record is None:
        return None
    panels = []
    for name, (x_name, y_name, unit) in GROWTH.items():
        figures = record["results"][name]
        lines = [
            Line(
                NAMES[contender],
                [
                    (float(x), unit * statistics.median(each[contender]))
                    for x, each in figures.items()
                    if contender in each
                ],
                COLORS[contender],
            )
            for contender in ("module", "fcifar_compiled")
        ]
        xs = [float(x) for x in figures]
        lines = [line for line in lines if line.points]
        panels.append(Panel(lines, "", x_name, y_name, xs, width=330))
    title = "How the cost of training lenet grows"
    svg = plot(panels, title, f"{_sources([record])}; both axes are logarithmic", 340)
    return Part(f"## {title}\n\n![{title}]({PLOTS}/growth.svg)\n", {"growth.svg": svg})


def gradients(found: Sequence[Record]) -> Part | None:
    """What gradients of each example cost, beside those of batches."""
    drawn, sources = [], []
    for record in found:
        for kind, ratios in record["results"].get("times_batch_by_500", {}).items():
            sources.append(record)
            for name, ratio in ratios.items():
                if name != _BATCH:
                    how = kind.removesuffix("_seconds")
                    color = 0 if how == "compiled" else 5
                    drawn.append(Row(f"{name}, {how}", [ratio], color, None, f"{ratio:.1f}x"))
    if not drawn:
        return None
    title = "What gradients of each example cost"
    x_name = "times the seconds of the gradients of batches of 500"
    svg = rows(drawn, title, _sources(sources), x_name, bars=True, mark=1.0)
    return Part(f"## {title}\n\n![{title}]({PLOTS}/gradients.svg)\n", {"gradients.svg": svg})


PARTS = (recipes, ablation, training_steps, whole_trainings, growth, replicas, gradients)


def _runs(found: Sequence[Record], *needed: str) -> list[tuple[str, Record, list[dict[str, Any]]]]:
    """Everything in the records that is a list of runs with these figures, by name."""
    return [
        (name, record, values)
        for record in found
        for name, runs in record["results"].items()
        if (values := _dicts(runs)) and all(set(needed) <= set(run) for run in values)
    ]


def _dicts(values: Any) -> list[dict[str, Any]]:
    return [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []


def _sources(found: Sequence[Record]) -> str:
    """Which records, on what machine."""
    names = ", ".join(dict.fromkeys(record["name"] for record in found))
    return f"{'; '.join(dict.fromkeys(map(machine, found)))}; {names}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
