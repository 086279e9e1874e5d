"""Evaluation of the test images, from run directory to report, beside the tutorial's test loop.

    python -m benchmarks.bench_evaluation [--recipe blitz] [--dataset cifar10] [--repetitions 3]

Interleaved: the tutorial's loop with its model in memory (a DataLoader with two workers, batches of
four, accuracy alone); fcifar's evaluation as a call, which reads the run directory and returns
loss, accuracy with its interval, confusion and calibration; and the process of ``fcifar eval``,
without and with figures. Writes bench_results/NAME.json.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import processes, records, script
from benchmarks.reference import tutorial_loop
from fcifar import data, recipes
from fcifar.bench import reference_models
from fcifar.recipes.tutorials import TUTORIALS
from fcifar.runs import inference
from fcifar.train import loop
from fcifar.train.config import make_config
from fcifar.train.runtime import make_runtime


def main() -> None:
    parser = script.parser(__doc__, dataset="cifar10", repetitions=3, name="evaluation")
    parser.add_argument("--recipe", default="blitz", choices=[r.name for r in TUTORIALS])
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    recipe = recipes.get(options.recipe).replace(epochs=1, batch_size=64, learning_rate=0.01)
    runtime = make_runtime(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        loop.train(run, make_config(recipe, dataset, runtime=runtime), dataset)
        params = inference.load(run).variables.params
        net = reference_models.make_module(recipe, params).eval()
        images, labels = dataset.test_images, dataset.test_labels
        command = ("-m", "fcifar", "eval", str(run), "--dataset", options.dataset, "--json")
        functions: dict[str, Callable[[], object]] = {
            "tutorial": lambda: tutorial_loop.accuracy(net, images, labels),
            "fcifar, the call": lambda: inference.evaluate(
                inference.load(run), runtime, dataset, "test"
            ),
            "fcifar eval": lambda: processes.run(command),
            "fcifar eval --out": lambda: processes.run([*command, "--out", f"{folder}/out"]),
        }
        seconds = script.interleaved(functions, options.repetitions)
    medians = records.medians(seconds)
    ratios = {name: medians["tutorial"] / median for name, median in medians.items()}
    config = {**vars(options), "threads": runtime.threads, "data_source": dataset.source}
    results = {"seconds": seconds, "ratio_to_tutorial": ratios}
    for name, median in medians.items():
        print(f"{name:20} {median:7.2f} s {ratios[name]:7.2f}")
    print(records.write(options.name, config, results))


if __name__ == "__main__":
    main()
