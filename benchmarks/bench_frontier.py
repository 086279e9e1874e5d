"""Accuracy against seconds: one recipe with fewer and with more epochs, a run of each at a time.

    python -m benchmarks.bench_frontier [--dataset cifar10] [--recipe speed94]
        [--epochs 1,2,3,12,18] [--seeds 2] [--name frontier]

Everything that is counted in epochs grows with them. speed93 is speed94 with five epochs instead of
eight: the chart takes these from the records of bench_recipes. Writes bench_results/NAME.json after
each run, so that the last runs may be left out.
"""

from typing import Any

from benchmarks import processes, records, script
from benchmarks.bench_ablation import with_epochs
from benchmarks.bench_recipes import KEPT
from fcifar.recipes import get


def main() -> None:
    defaults = {"dataset": "cifar10", "recipe": "speed94", "epochs": "1,2,3,12,18"}
    options = script.parser(__doc__, **defaults, seeds=2, name="frontier").parse_args()
    recipe = get(options.recipe)
    lengths = [int(epochs) for epochs in options.epochs.split(",")]
    results: dict[str, list[dict[str, Any]]] = {str(epochs): [] for epochs in lengths}
    for seed in range(options.seeds):
        for epochs in lengths:
            whiten = with_epochs(recipe, epochs).whiten_epochs
            settings = ("--epochs", epochs, "--set", f"whiten_epochs={whiten:g}", "--seed", seed)
            report = processes.train(options.recipe, "--dataset", options.dataset, *settings)
            results[str(epochs)].append({key: report[key] for key in KEPT if key in report})
            print(epochs, results[str(epochs)][-1], flush=True)
            records.write(options.name, vars(options), {"frontier": results})


if __name__ == "__main__":
    main()
