"""Replicas of a recipe in one program, against as many runs one by one.

    python -m benchmarks.replicas [--recipe blitz] [--replicas 8] [--dataset cifar10]
                                  [--repetitions 1] [--steps 4,64] [--name replicas]

Two questions. Whole processes: `fcifar train RECIPE --compile --replicas N` against N times `fcifar
train RECIPE --compile`, from start to end, in turn. And steps: one compiled step called for one
replica after another, against one compiled step over all of them by `vmap`, per replica and step,
interleaved, at the batch sizes of --steps. Writes bench_results/NAME.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks import records
from fcifar import random, recipes
from fcifar.step import Batch, init_train_state, make_train_step
from fcifar.step_transforms import compile_step, init_replicas, map_replicas, take

ROUNDS = 9


def process(recipe: str, dataset: str, *more: str) -> dict[str, Any]:
    """Train as a user does; the report, and the seconds of the process."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "fcifar", "train", recipe, "--compile", "--json"]
        command += ["--quiet", "--dataset", dataset, "--out", f"{folder}/run", *more]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(result.stdout), "seconds": time.perf_counter() - started}


def processes(recipe: str, dataset: str, count: int) -> dict[str, Any]:
    """One group, then as many runs alone."""
    group = process(recipe, dataset, "--replicas", str(count))
    alone = [process(recipe, dataset, "--seed", str(seed)) for seed in range(count)]
    digests = [member["params_digest"] for member in group["members"]]
    together = group["cells"][0]["together"]
    return {
        "group_seconds": group["seconds"],
        "group_train_seconds": group["train_seconds"],
        "alone_seconds": sum(run["seconds"] for run in alone),
        "alone_train_seconds": sum(run["train_seconds"] for run in alone),
        "method": group["method"],
        "same_bits": digests == [run["params_digest"] for run in alone],
        "together": together,
    }


def steps(recipe_name: str, batch_size: int, count: int) -> dict[str, float]:
    """Median seconds of a step of one replica, by each method."""
    recipe = recipes.get(recipe_name)
    model, optimizer = recipes.make_model(recipe, 10), recipes.make_optimizer(recipe, 1000)
    step = make_train_step(model, optimizer, loss=recipes.make_loss(recipe))
    keys = random.split(random.key(0), count)
    images = random.randint(random.key(1), (count, batch_size, 3, 32, 32), 0, 256).byte()
    batches = Batch(images, random.randint(random.key(2), (count, batch_size), 0, 10))

    def init(key: torch.Tensor) -> Any:
        return init_train_state(model, optimizer, key=key)

    alone, mapped = compile_step(step), compile_step(map_replicas(step))
    each = [
        (init(key), Batch(*(leaf.clone() for leaf in take(batches, i))))
        for i, key in enumerate(keys)
    ]
    stacked = init_replicas(init, keys)
    times = max(2, 256 // batch_size)

    def loop() -> None:
        for state, batch in each:
            for _ in range(times):
                alone(state, batch)

    def vmap() -> None:
        for _ in range(times):
            mapped(stacked, batches)

    found: dict[str, list[float]] = {"loop": [], "vmap": []}
    for i in range(ROUNDS + 1):  # the first compiles
        for name, run in (("loop", loop), ("vmap", vmap)):
            started = time.perf_counter()
            run()
            if i:
                found[name].append((time.perf_counter() - started) / times / count)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="blitz")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--steps", default="4,64", help="batch sizes; empty for none")
    parser.add_argument("--name", default="replicas", help="of the record")
    options = parser.parse_args()
    results: dict[str, Any] = {"processes": [], "steps": {}}
    for _ in range(options.repetitions):
        found = processes(options.recipe, options.dataset, options.replicas)
        results["processes"].append(found)
        ratio = found["group_seconds"] / found["alone_seconds"]
        print(
            f"{options.replicas} replicas {found['group_seconds']:.1f} s, alone "
            f"{found['alone_seconds']:.1f} s: {ratio:.2f}; same bits: {found['same_bits']}",
            flush=True,
        )
    for batch_size in filter(None, options.steps.split(",")):
        found = steps(options.recipe, int(batch_size), options.replicas)
        results["steps"][batch_size] = found
        print(
            f"batch {batch_size}: " + ", ".join(f"{k} {1e6 * v:.0f} us" for k, v in found.items())
        )
    records.write(options.name, vars(options), results)


if __name__ == "__main__":
    main()
