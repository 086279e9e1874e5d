"""The recipe speed94 beside the same method in plain PyTorch, in turns.

    python -m benchmarks.bench_speed94 [--device cuda] [--dataset cifar10] [--repetitions 5]
        [--epochs 7] [--images N] [--batch-size 1000] [--no-compile] [--name speed94_plain]

Both train from scratch on the same images and evaluate with the same views, in one process; a first
round compiles and is not counted. Times include initialisation. Writes bench_results/NAME.json.
"""

import time
from typing import Any

import torch

from benchmarks import records, script
from benchmarks.reference.speed94_loop import Method
from fcifar import data, recipes, tree
from fcifar.analysis import confidence
from fcifar.bench.timing import wait_for
from fcifar.step import Batch
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_trainings


def main() -> None:
    where = {"device": "cuda", "threads": int, "dataset": "cifar10", "images": int}
    how = {"repetitions": 5, "epochs": 7, "batch_size": 1000, "name": "speed94_plain"}
    parser = script.parser(__doc__, **where, **how)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    compiled = not options.no_compile
    runtime = make_runtime(device=options.device, threads=options.threads, precision="bf16")
    dataset = data.load(options.dataset, data.data_root())
    if options.images:  # of the shuffled rows: a data set may be sorted by class
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(dataset.train_labels), generator=generator)[: options.images]
        parts = {n: getattr(dataset, n)[rows] for n in ("train_images", "train_labels")}
        dataset = dataset._replace(**parts)
    changes = {"epochs": options.epochs, "batch_size": options.batch_size}
    # Weight decay is per step, and that of the method per image.
    base = recipes.get("speed94")
    decay = base.weight_decay * options.batch_size / base.batch_size
    recipe = base.replace(**changes, weight_decay=decay)
    wait = wait_for(runtime.device)
    found: dict[str, list[dict[str, float]]] = {"fcifar": [], "plain": []}
    with activate(runtime):
        config = make_config(recipe, dataset, runtime=runtime, compile=compiled)
        make = make_trainings(config, dataset)
        train = Batch(dataset.train_images, dataset.train_labels)
        test = Batch(dataset.test_images, dataset.test_labels)
        train, test = tree.on_device((train, test), runtime.device)
        method = Method(runtime.device, compile=compiled, num_classes=len(dataset.classes))

        def fcifar(seed: int) -> dict[str, float]:
            report = script.train(config.replace(seed=seed), dataset, make=make)
            return {
                "seconds": report["convention_seconds"],
                "train_seconds": report["train_seconds"],
                "accuracy": report["tta_accuracy"],
            }

        def plain(seed: int) -> dict[str, float]:
            started = time.perf_counter()
            method.train(*train, seed=seed, epochs=options.epochs, batch=options.batch_size)
            wait()
            trained = time.perf_counter()
            accuracy = method.accuracy(*test)
            ended = time.perf_counter()
            times = {"seconds": ended - started, "train_seconds": trained - started}
            return {**times, "accuracy": accuracy}

        for repetition in range(options.repetitions + 1):
            for name, function in (("fcifar", fcifar), ("plain", plain)):
                figures = function(repetition)
                kind = "measured" if repetition else "warm-up"
                print(kind, name, {n: round(v, 4) for n, v in figures.items()}, flush=True)
                if repetition:
                    found[name].append(figures)
        medians = {name: _medians(rows) for name, rows in found.items()}
        results: dict[str, Any] = {**found, "medians": medians}
        results["accuracy"] = {
            name: confidence.summarize([row["accuracy"] for row in rows])._asdict()
            for name, rows in found.items()
        }
        config_values = {**vars(options), "data_source": dataset.source}
        print(records.write(options.name, config_values, results))


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return records.medians({name: [row[name] for row in rows] for name in rows[0]})


if __name__ == "__main__":
    main()
