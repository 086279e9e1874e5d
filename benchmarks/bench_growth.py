"""Growth of the cost with the batch size, the width of the model, and the number of images.

    python -m benchmarks.bench_growth [--seconds 0.3] [--repetitions 5] [--name growth]

A compiled training step of lenet beside the tutorial's module, interleaved: time per image against
the batch size, and against the hidden units in batches of 64; and time per epoch against the number
of images in batches of 4. Writes bench_results/NAME.json.
"""

import argparse
import time

import torch

from benchmarks import records, script
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
    defaults = {"seconds": 0.3, "repetitions": 5, "threads": int, "name": "growth"}
    options = script.parser(__doc__, **defaults).parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    batches = {str(batch): bench.recipe_for(Case("lenet", batch)) for batch in BATCHES}
    base = bench.recipe_for(Case("lenet", 64))
    widths = {str(width): base.replace(model_options={"hidden": width}) for width in WIDTHS}
    with activate(runtime):
        results = {
            "batch": {name: steps(recipe, runtime, options) for name, recipe in batches.items()},
            "width": {name: steps(recipe, runtime, options) for name, recipe in widths.items()},
            "images": {str(size): epochs(size, runtime, options) for size in SIZES},
        }
    print(records.write(options.name, {**vars(options), "threads": runtime.threads}, results))


def steps(recipe: Recipe, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure the seconds per image."""
    torch._dynamo.reset()
    dataset = bench.synthetic()
    made = {name: CANDIDATES[name](recipe, runtime, dataset) for name in MEASURED}
    measured = timing.measure(made, seconds=options.seconds, repetitions=options.repetitions)
    result = {name: [s / recipe.batch_size for s in f["seconds"]] for name, f in measured.items()}
    print(recipe.batch_size, recipe.model_options, records.medians(result), flush=True)
    return result


def epochs(size: int, runtime: Runtime, options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure the seconds per epoch of fcifar's compiled steps, with the drawing of its order."""
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
    print(size, records.medians(result), flush=True)
    return result


if __name__ == "__main__":
    main()
