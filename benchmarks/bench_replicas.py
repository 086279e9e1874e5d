"""Replicas of a recipe in one process, against one process for each.

    python -m benchmarks.bench_replicas [--recipe blitz] [--replicas 8] [--dataset cifar10]
        [--repetitions 1] [--steps 4,64] [--name replicas]

Measures whole processes: `fcifar train RECIPE --compile --replicas N` against N times `fcifar train
RECIPE --compile`. And steps, interleaved, at the batch sizes of --steps, which may be empty: one
compiled step called for each replica, against one compiled step over all of them by `vmap`; seconds
per replica and step. Writes bench_results/NAME.json.
"""

from typing import Any

import torch

from benchmarks import records, script
from benchmarks.processes import train
from fcifar import random, recipes
from fcifar.step import Batch, init_train_state, make_train_step
from fcifar.step_transforms import compile_step, init_replicas, map_replicas, take

ROUNDS = 9


def processes(recipe: str, dataset: str, count: int) -> dict[str, Any]:
    """Train one sweep of ``count`` seeds, then as many runs alone."""
    group = train(recipe, "--dataset", dataset, "--replicas", count)
    alone = [train(recipe, "--dataset", dataset, "--seed", seed) for seed in range(count)]
    digests = [member["params_digest"] for member in group["members"]]
    return {
        "group_seconds": group["process_seconds"],
        "group_train_seconds": group["train_seconds"],
        "alone_seconds": sum(run["process_seconds"] for run in alone),
        "alone_train_seconds": sum(run["train_seconds"] for run in alone),
        "method": group["method"],
        "same_bits": digests == [run["params_digest"] for run in alone],
        "together": group["cells"][0]["together"],
    }


def steps(recipe_name: str, batch_size: int, count: int) -> dict[str, float]:
    """Return the median seconds of a step of one replica by each method."""
    recipe = recipes.get(recipe_name)
    model, optimizer = recipes.make_model(recipe, 10), recipes.make_optimizer(recipe, 1000)
    step = make_train_step(model, optimizer, loss=recipes.make_loss(recipe))
    keys = random.split(random.key(0), count)
    images = random.randint(random.key(1), (count, batch_size, 3, 32, 32), 0, 256).byte()
    batches = Batch(images, random.randint(random.key(2), (count, batch_size), 0, 10))

    def init(key: torch.Tensor) -> Any:
        return init_train_state(model, optimizer, key=key)

    alone, mapped = compile_step(step), compile_step(map_replicas(step))
    own = [Batch(*(leaf.clone() for leaf in take(batches, i))) for i in range(count)]
    each = [(init(key), batch) for key, batch in zip(keys, own, strict=True)]
    stacked = init_replicas(init, keys)
    times = max(2, 256 // batch_size)

    def loop() -> None:
        for state, batch in each:
            for _ in range(times):
                alone(state, batch)

    def vmap() -> None:
        for _ in range(times):
            mapped(stacked, batches)

    medians = records.medians(script.interleaved({"loop": loop, "vmap": vmap}, ROUNDS))
    return {name: median / times / count for name, median in medians.items()}


def main() -> None:
    what = {"recipe": "blitz", "dataset": "cifar10", "replicas": 8}
    how = {"repetitions": 1, "steps": "4,64", "name": "replicas"}
    options = script.parser(__doc__, **what, **how).parse_args()
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
        times = ", ".join(f"{name} {1e6 * seconds:.0f} us" for name, seconds in found.items())
        print(f"batch {batch_size}: {times}")
    records.write(options.name, vars(options), results)


if __name__ == "__main__":
    main()
