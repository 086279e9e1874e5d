"""A recipe's training end to end, data loading included: the tutorial's loop against fcifar.

    python -m benchmarks.end_to_end [--recipe blitz] [--dataset cifar10] [--epochs 1]
        [--repetitions 3]

Both train the same network on the same images with the same settings, in turn, in one process;
where images are held out, both look at them after each epoch, which is in the time. Writes
bench_results/RECIPE_end_to_end.json.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import records, tutorial
from fcifar import data, recipes
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="blitz", choices=[r.name for r in TUTORIALS])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()

    dataset = data.load(options.dataset, data.data_root())
    recipe = recipes.get(options.recipe).replace(epochs=options.epochs)
    held_out = int(recipe.valid_fraction * len(dataset.train_labels))
    images = (len(dataset.train_labels) - held_out) * options.epochs
    seconds: dict[str, list[float]] = {
        name: [] for name in ("tutorial", "fcifar", "fcifar_with_compiling", "fcifar_eager")
    }
    for repetition in range(options.repetitions + 1):
        figures = {"tutorial": tutorial.train(recipe, dataset, epochs=options.epochs)}
        for compiled in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                torch._dynamo.reset()
                config = make_config(
                    recipe,
                    dataset,
                    seed=repetition,
                    runtime=make_runtime(device="cpu"),
                    compile=compiled,
                )
                report = loop.train(Path(folder) / "run", config, dataset)
            assert isinstance(report, dict)
            training = report["train_seconds"] + report["valid_seconds"]
            if compiled:
                figures["fcifar"] = training
                figures["fcifar_with_compiling"] = training + report["compile_seconds"]
            else:
                figures["fcifar_eager"] = training
        warm = repetition > 0  # the first round fills caches and counts nowhere
        print(
            time.strftime("%H:%M:%S"),
            "measured" if warm else "warm-up",
            {name: f"{images / s:,.0f} images/s" for name, s in figures.items()},
            flush=True,
        )
        if warm:
            for name, value in figures.items():
                seconds[name].append(value)

    rates = {name: images / records.median(values) for name, values in seconds.items()}
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
    path = records.write(f"{options.recipe}_end_to_end", config, results)
    print({name: round(ratio, 2) for name, ratio in results["ratio_to_tutorial"].items()})
    print(path)


if __name__ == "__main__":
    main()
