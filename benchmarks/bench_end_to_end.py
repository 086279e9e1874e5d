"""Training of a recipe end to end, with data loading: the tutorial's loop against fcifar.

    python -m benchmarks.bench_end_to_end [--recipe blitz] [--dataset cifar10] [--epochs 1]
        [--repetitions 3]

Both train the same model on the same images with the same settings, in turns, in one process. The
time includes the validation after each epoch, if the recipe has one. Writes
bench_results/RECIPE_end_to_end.json.
"""

import time

import torch

from benchmarks import records, script
from benchmarks.reference import tutorial_loop
from fcifar import data, recipes
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime


def main() -> None:
    parser = script.parser(__doc__, dataset="cifar10", epochs=1, repetitions=3)
    parser.add_argument("--recipe", default="blitz", choices=[r.name for r in TUTORIALS])
    options = parser.parse_args()

    dataset = data.load(options.dataset, data.data_root())
    recipe = recipes.get(options.recipe).replace(epochs=options.epochs)
    held_out = int(recipe.valid_fraction * len(dataset.train_labels))
    images = (len(dataset.train_labels) - held_out) * options.epochs
    seconds: dict[str, list[float]] = {}
    for repetition in range(options.repetitions + 1):
        measured = {"tutorial": tutorial_loop.train(recipe, dataset, epochs=options.epochs)}
        for compiled in (True, False):
            torch._dynamo.reset()
            how = {"runtime": make_runtime(device="cpu"), "compile": compiled}
            config = make_config(recipe, dataset, seed=repetition, **how)
            report = script.train(config, dataset)
            training = report["train_seconds"] + report["valid_seconds"]
            if compiled:
                measured["fcifar"] = training
                measured["fcifar_with_compiling"] = training + report["compile_seconds"]
            else:
                measured["fcifar_eager"] = training
        kind = "measured" if repetition else "warm-up"  # which fills caches and is not counted
        rates = {name: f"{images / s:,.0f} images/s" for name, s in measured.items()}
        print(time.strftime("%H:%M:%S"), kind, rates, flush=True)
        if repetition:
            for name, value in measured.items():
                seconds.setdefault(name, []).append(value)

    rates = {name: images / median for name, median in records.medians(seconds).items()}
    results = {
        "seconds": seconds,
        "median_images_per_second": rates,
        "ratio_to_tutorial": {name: rate / rates["tutorial"] for name, rate in rates.items()},
    }
    config = {
        **vars(options),
        "recipe": recipes.to_dict(recipe),
        "data_source": dataset.source,
        "threads": torch.get_num_threads(),
    }
    print({name: round(ratio, 2) for name, ratio in results["ratio_to_tutorial"].items()})
    print(records.write(f"{options.recipe}_end_to_end", config, results))


if __name__ == "__main__":
    main()
