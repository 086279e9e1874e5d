"""Parts of the results page about speed: of steps, of whole trainings, and how cost grows."""

import re
import statistics
from collections.abc import Sequence

from benchmarks.drawing import Line, Panel, Row, plot, rows
from benchmarks.parts import PLOTS, Part, Record, sources
from benchmarks.tables import Step, by_device, steps
from fcifar.bench.bench import YARDSTICK

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


def training_steps(found: Sequence[Record]) -> Part | None:
    """Steps against PyTorch's module: how many times as fast, a plot for each record and device."""
    plots, shown = {}, []
    for record in found:
        for device, each in by_device(steps(record)).items():
            panels = [
                panel
                for network in dict.fromkeys(step.network for step in each)
                if (panel := step_panel([step for step in each if step.network == network]))
            ]
            if panels:
                name = f"{record['name']}-{device.replace(':', '')}.svg"
                title = f"A training step on {device}: times as fast as PyTorch's"
                plots[name] = plot(panels, title, sources([record]), 340)
                shown.append(f"![{title}, record {record['name']}]({PLOTS}/{name})\n")
    if not plots:
        return None
    text = (
        "## Training steps against PyTorch and JAX\n\nMedians of interleaved repetitions, warm: "
        "the seconds of the tutorial's own step in PyTorch over those of each. Above the dashed "
        "line is faster.\n\n"
    )
    return Part(text + "\n".join(shown), plots)


def step_panel(found: Sequence[Step]) -> Panel | None:
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
    drawn, found_in = [], []
    for record in found:
        ratios = record["results"].get("ratio_to_tutorial")
        if isinstance(ratios, dict):
            found_in.append(record)
            of = record["name"].removesuffix("_end_to_end")
            for name, ratio in ratios.items():
                if name != "tutorial":
                    how = re.sub("^fcifar(_|, |$)", "", name).replace("_", " ") or "compiled"
                    drawn.append(Row(f"{of}, {how}", [ratio], 0, None, f"{ratio:.1f}x"))
    if not drawn:
        return None
    title = "From end to end, times as fast as the tutorial's loop"
    svg = rows(drawn, title, sources(found_in), "times as fast", bars=True, mark=1.0)
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
                NAMES[candidate],
                [
                    (float(x), unit * statistics.median(each[candidate]))
                    for x, each in figures.items()
                    if candidate in each
                ],
                COLORS[candidate],
            )
            for candidate in ("module", "fcifar_compiled")
        ]
        xs = [float(x) for x in figures]
        lines = [line for line in lines if line.points]
        panels.append(Panel(lines, "", x_name, y_name, xs, width=330))
    title = "How the cost of training lenet grows"
    svg = plot(panels, title, f"{sources([record])}; both axes are logarithmic", 340)
    return Part(f"## {title}\n\n![{title}]({PLOTS}/growth.svg)\n", {"growth.svg": svg})


def gradients(found: Sequence[Record]) -> Part | None:
    """What gradients of each example cost, beside those of batches."""
    drawn, found_in = [], []
    for record in found:
        for kind, ratios in record["results"].get("times_batch_by_500", {}).items():
            found_in.append(record)
            for name, ratio in ratios.items():
                if name != _BATCH:
                    how = kind.removesuffix("_seconds")
                    color = 0 if how == "compiled" else 5
                    drawn.append(Row(f"{name}, {how}", [ratio], color, None, f"{ratio:.1f}x"))
    if not drawn:
        return None
    title = "What gradients of each example cost"
    x_name = "times the seconds of the gradients of batches of 500"
    svg = rows(drawn, title, sources(found_in), x_name, bars=True, mark=1.0)
    return Part(f"## {title}\n\n![{title}]({PLOTS}/gradients.svg)\n", {"gradients.svg": svg})
