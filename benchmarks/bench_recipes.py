"""Recipes as a user runs them, several seeds each, each run in its own process: accuracy and time.

    python -m benchmarks.bench_recipes [--dataset cifar10] [--seeds 3] [--recipe NAME ...]
        [--name FILE]

By default the tutorials' recipes. Writes bench_results/FILE.json and prints the table of
docs/results.md.
"""

from typing import Any

from benchmarks import processes, records, script
from benchmarks.render.sections import recipe_table
from fcifar.recipes import RECIPES
from fcifar.recipes.tutorials import TUTORIALS

KEPT = (
    *("seed", "test_accuracy", "test_loss", "epochs", "stopped_early", "selected"),
    *("train_seconds", "valid_seconds", "compile_seconds", "eval_seconds", "images_per_second"),
    *("convention_seconds", "params_digest"),
    *("tta", "tta_accuracy", "tta_loss"),  # only of a recipe with test-time augmentation
    "process_seconds",
)


def main() -> None:
    parser = script.parser(__doc__, dataset="cifar10", seeds=3, first_seed=0, name="recipes")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    options = parser.parse_args()
    names = options.recipe or [recipe.name for recipe in TUTORIALS]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # Seed by seed, which spreads drift of the machine over the recipes.
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            report = processes.train(name, "--dataset", options.dataset, "--seed", seed)
            results[name].append({key: report[key] for key in KEPT if key in report})
            print(name, results[name][-1], flush=True)
            records.write(options.name, vars(options), results)
    print(recipe_table(results))


if __name__ == "__main__":
    main()
