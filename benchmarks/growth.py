"""How cost grows: with the batch, the width of the network, and the number of images.

    python -m benchmarks.growth [--seconds 0.3] [--repetitions 5] [--name growth]

A compiled training step of lenet beside the tutorial's module, in turns: time per image against the
batch, time per image against the hidden units at a batch of 64, and time per epoch against the
number of images at a batch of 4. Writes bench_results/NAME.json.
"""

import argparse
import time

import torch

from benchmarks import records
from fcifar.bench import bench, timing
from fcifar.bench.bench import CANDIDATES, Case
from fcifar.recipes import Recipe
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime, activate, make_runtime
from fcifar.train.setup import make_training

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (84, 336, 1344, 5376)  # hidden units
SIZES = (1250, 2500, 5000, 10_000, 20_000, 40_000)  # images
MEASURED = ("module", "fcifar_compiled")


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
                str(batch): steps(bench.recipe_for(Case("lenet", batch)), runtime, options)
                for batch in BATCHES
            },
            "width": {
                str(width): steps(
                    bench.recipe_for(Case("lenet", 64)).replace(model_options={"hidden": width}),
                    runtime,
                    options,
                )
                for width in WIDTHS
            },
            "images": {str(size): epochs(size, runtime, options) for size in SIZES},
        }
    config = {**vars(options), "threads": runtime.threads}
    path = records.write(options.name, config, results)
    print(path)


def steps(recipe: Recipe, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an image."""
    torch._dynamo.reset()
    dataset = bench.synthetic()
    made = {name: CANDIDATES[name](recipe, runtime, dataset) for name in MEASURED}
    figures = timing.measure(made, seconds=options.seconds, repetitions=options.repetitions)
    result = {name: [s / recipe.batch_size for s in f["seconds"]] for name, f in figures.items()}
    print(recipe.batch_size, recipe.model_options, _medians(result), flush=True)
    return result


def epochs(size: int, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an epoch of fcifar's compiled steps, the drawing of its order among them."""
    torch._dynamo.reset()
    recipe = bench.recipe_for(Case("lenet", 4)).replace(epochs=options.repetitions + 1)
    dataset = bench.synthetic(size)
    training = make_training(make_config(recipe, dataset, runtime=runtime, compile=True), dataset)
    state, seconds, started = training.init(), [], time.perf_counter()
    for step, inputs in enumerate(training.inputs(0), start=1):
        state, _ = training.stages[0](state, inputs)
        if step % training.steps_per_epoch == 0:
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
    result = {"fcifar_compiled": seconds[1:]}  # the first compiles
    print(size, _medians(result), flush=True)
    return result


def _medians(figures: dict[str, list[float]]) -> dict[str, str]:
    return {name: f"{records.median(values):.3g} s" for name, values in figures.items()}


if __name__ == "__main__":
    main()
