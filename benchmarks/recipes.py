"""Recipes as a user runs them, several seeds each, in a process of its own: accuracy and time.

    python -m benchmarks.recipes [--dataset cifar10] [--seeds 3] [--recipe NAME ...] [--name FILE]

Without --recipe the five tutorials. Writes bench_results/FILE.json and prints the README's tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import records
from fcifar.analysis import confidence
from fcifar.recipes import RECIPES
from fcifar.recipes.tutorials import TUTORIALS

KEPT = (
    *("seed", "test_accuracy", "test_loss", "epochs", "stopped_early", "selected"),
    *("train_seconds", "valid_seconds", "compile_seconds", "eval_seconds", "images_per_second"),
    *("convention_seconds", "params_digest"),
)
VIEWS = ("tta", "tta_accuracy", "tta_loss")  # of a recipe that has them


def run(recipe: str, seed: int, dataset: str) -> dict[str, Any]:
    """Train once, as a user does, and keep the figures."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "fcifar",
            "train",
            recipe,
            "--compile",
            "--json",
            "--quiet",
        ]
        command += ["--dataset", dataset, "--seed", str(seed), "--out", f"{folder}/run"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        report = json.loads(result.stdout)
    return {
        **{name: report[name] for name in KEPT},
        **{name: report[name] for name in VIEWS if name in report},
        "process_seconds": time.perf_counter() - started,
    }


def row(recipe: str, runs: list[dict[str, Any]]) -> str:
    """A line of the README's table."""
    accuracies = ", ".join(f"{100 * r['test_accuracy']:.1f}" for r in runs)
    loss = statistics.mean(r["test_loss"] for r in runs)
    training = statistics.median(r["train_seconds"] + r["valid_seconds"] for r in runs)
    process = statistics.median(r["process_seconds"] for r in runs)
    return (
        f"| `fcifar train {recipe} --compile` | {accuracies} % | {loss:.3f} "
        f"| {training:.0f} s | {process:.0f} s |"
    )


def speed_row(recipe: str, runs: list[dict[str, Any]]) -> str:
    """A line of the README's table of the speed recipes."""
    plain, views = (
        confidence.summarize([100 * r[name] for r in runs])
        for name in ("test_accuracy", "tta_accuracy")
    )
    timings = (
        statistics.median(r[name] for r in runs)
        for name in ("compile_seconds", "convention_seconds", "process_seconds")
    )
    return (
        f"| `fcifar train {recipe}` | {plain.mean:.2f} % | **{views.mean:.2f} %** "
        f"| {views.std:.2f} | {views.low:.2f} to {views.high:.2f} | {views.n} | "
        + " | ".join(f"{seconds:.0f} s" for seconds in timings)
        + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--recipe", action="append", choices=list(RECIPES))
    parser.add_argument("--name", default="recipes", help="of the record")
    options = parser.parse_args()
    names = options.recipe or [recipe.name for recipe in TUTORIALS]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # Seed by seed, which spreads drift of the machine over the recipes.
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            results[name].append(run(name, seed, options.dataset))
            print(line(name, results[name]), flush=True)
            records.write(options.name, vars(options), results)
    print("\n".join(line(name, runs) for name, runs in results.items()))


def line(recipe: str, runs: list[dict[str, Any]]) -> str:
    """The line of a recipe in the table that it belongs to."""
    return (speed_row if "tta" in runs[0] else row)(recipe, runs)


if __name__ == "__main__":
    main()
