"""Evaluation of the test images, from run directory to report, beside the tutorial's test loop.

    python -m benchmarks.evaluation [--recipe blitz] [--dataset cifar10] [--repetitions 3]

In turns: the tutorial's loop, with its network in memory (DataLoader, two workers, four images at a
time, accuracy alone); fcifar's evaluation as a call, which reads the run directory and returns
loss, accuracy with its interval, confusion and calibration; and the whole command ``fcifar eval``,
from its start to its end, without and with the pictures. Writes bench_results/NAME.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import processes, records, tutorial
from fcifar import data, recipes
from fcifar.bench import reference_models
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.runs import inference
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="blitz", choices=[r.name for r in TUTORIALS])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--name", default="evaluation", help="of the record")
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    recipe = recipes.get(options.recipe).replace(epochs=1, batch_size=64, learning_rate=0.01)
    runtime = make_runtime(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        loop.train(run, make_config(recipe, dataset, runtime=runtime), dataset)
        network = inference.load(run)
        net = reference_models.make_module(recipe, network.variables.params).eval()
        images, labels = dataset.test_images, dataset.test_labels
        command = ("-m", "fcifar", "eval", str(run), "--dataset", options.dataset, "--json")

        ways: dict[str, Callable[[], object]] = {
            "tutorial": lambda: tutorial.accuracy(net, images, labels),
            "fcifar, the call": lambda: inference.evaluate(
                inference.load(run), runtime, dataset, "test"
            ),
            "fcifar eval": lambda: processes.run(command),
            "fcifar eval --out": lambda: processes.run([*command, "--out", f"{folder}/out"]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repetition in range(options.repetitions + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if repetition:  # the first round fills caches and counts nowhere
                    seconds[name].append(time.perf_counter() - started)
    medians = {name: records.median(values) for name, values in seconds.items()}
    ratios = {name: medians["tutorial"] / median for name, median in medians.items()}
    config = {**vars(options), "threads": runtime.threads, "data_source": dataset.source}
    results = {"seconds": seconds, "ratio_to_tutorial": ratios}
    for name, median in medians.items():
        print(f"{name:20} {median:7.2f} s {ratios[name]:7.2f}")
    print(records.write(options.name, config, results))


if __name__ == "__main__":
    main()
