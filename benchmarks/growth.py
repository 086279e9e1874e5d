"""How cost grows: with the batch, the width of the network, and the number of images.

    python -m benchmarks.growth [--seconds 0.3] [--repetitions 5] [--name growth]

A compiled training step of lenet beside the tutorial's module, in turns: time per image against the
batch, time per image against the hidden units at a batch of 64, and time per epoch against the
number of images at a batch of 4. Writes bench_results/NAME.json and NAME.png.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import records
from fcifar.recipes import Recipe
from fcifar.report.figures import BLUE, INK, SOFT, save, tidy, titled
from fcifar.runs import bench
from fcifar.runs.bench import CONTENDERS, Work
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime, activate, make_runtime

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (84, 336, 1344, 5376)  # hidden units
SIZES = (1250, 2500, 5000, 10_000, 20_000, 40_000)  # images
COLORS = {"module": INK, "fcifar_compiled": BLUE}
LABELS = {"module": "the tutorial's module", "fcifar_compiled": "fcifar, compiled"}
PANELS = {
    "batch": ("batch size", "microseconds an image", 1e6),
    "width": ("hidden units, batch 64", "microseconds an image", 1e6),
    "images": ("images, batch 4", "seconds an epoch", 1.0),
}

Figures = dict[str, dict[str, list[float]]]  # by x and contender, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="growth", help="of the record")
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    with activate(runtime):
        results = {
            "batch": {
                str(batch): steps(bench.recipe_for(Work("lenet", batch)), runtime, options)
                for batch in BATCHES
            },
            "width": {
                str(width): steps(
                    bench.recipe_for(Work("lenet", 64)).replace(model_options={"hidden": width}),
                    runtime,
                    options,
                )
                for width in WIDTHS
            },
            "images": {str(size): epochs(size, runtime, options) for size in SIZES},
        }
    config = {**vars(options), "threads": runtime.threads}
    path = records.write(options.name, config, results)
    print(path, plot(results, path.with_suffix(".png")), sep="\n")


def steps(recipe: Recipe, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an image."""
    torch._dynamo.reset()
    dataset = bench.made_up()
    made = {name: CONTENDERS[name](recipe, runtime, dataset) for name in COLORS}
    figures = bench.measure(made, seconds=options.seconds, repetitions=options.repetitions)
    result = {name: [s / recipe.batch_size for s in f["seconds"]] for name, f in figures.items()}
    print(recipe.batch_size, recipe.model_options, _medians(result), flush=True)
    return result


def epochs(size: int, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an epoch of fcifar's compiled steps, the drawing of its order among them."""
    torch._dynamo.reset()
    recipe = bench.recipe_for(Work("lenet", 4)).replace(epochs=options.repetitions + 1)
    program = build(recipe, runtime, bench.made_up(size), compiled=True)
    running, seconds, started = program.init(), [], time.perf_counter()
    for step, feed in enumerate(program.feeds_from(0), start=1):
        running, _ = program.step_at(0)(running, feed)
        if step % program.steps_per_epoch == 0:
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    result = {"fcifar_compiled": seconds[1:]}  # the first compiles
    print(size, _medians(result), flush=True)
    return result


def _medians(figures: dict[str, list[float]]) -> dict[str, str]:
    return {name: f"{records.median(values):.3g} s" for name, values in figures.items()}


def plot(results: dict[str, Figures], path: Path) -> Path:
    """A panel for each thing that grows."""
    from matplotlib.ticker import LogLocator, NullLocator

    width, height, panel = 14.2, 4.4, 3.6
    title = "How the cost of training lenet grows"
    figure = titled(width, height, title, "medians, two cores; both axes are logarithmic")
    for place, (name, (x_label, y_label, unit)) in enumerate(PANELS.items()):
        left = (0.75 + 4.55 * place) / width
        axes: Any = figure.add_axes((left, 0.6 / height, panel / width, (height - 1.6) / height))
        tidy(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for contender, color in COLORS.items():
            points = {
                int(x): unit * records.median(f[contender])
                for x, f in results[name].items()
                if contender in f
            }
            if points:
                axes.plot(
                    list(points),
                    list(points.values()),
                    color=color,
                    linewidth=2,
                    marker="o",
                    markersize=5,
                    markeredgecolor="white",
                    label=LABELS[contender],
                )
        xs = [int(x) for x in results[name]]
        axes.set_xticks(xs, [f"{x:,}" for x in xs], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel(x_label, color=SOFT)
        axes.set_title(y_label, loc="left", size=10, color=INK)
        if place == 0:
            axes.legend(frameon=False, fontsize=9)
    return save(figure, path)


if __name__ == "__main__":
    main()
