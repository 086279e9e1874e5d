"""How near the speed recipes come to the processor: their arithmetic against its rate in bfloat16.

    python -m benchmarks.speed_floor [--recipe speed94 ...] [--threads 2] [--name speed_floor]

Operations are those of torch's own counter on a training step, by image and by step, and on an
evaluation with the recipe's views. The rate is that of a product of two bfloat16 matrices of
4096 x 4096, the best of several. The floor is what a run would take if nothing but that arithmetic
took time; beside it stand the seconds of the records bench_results/RECORD.json. A kernel that
leaves out what is known to be zero, as behind a max-pool, may go below it.
"""

import argparse
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import records
from fcifar import random, recipes
from fcifar.recipes import Recipe
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step
from fcifar.train.runtime import activate, make_runtime

IMAGES, TEST = 50_000, 10_000
SIDE = 4096


def rate(calls: int = 3) -> float:
    """Operations a second in a product of bfloat16 matrices."""
    a = torch.ones(SIDE, SIDE, dtype=torch.bfloat16)
    started = time.perf_counter()
    for _ in range(calls):
        a @ a
    return 2 * SIDE**3 * calls / (time.perf_counter() - started)


def count(recipe: Recipe) -> dict[str, float]:
    """Operations: of training, by image and by step; and of evaluating an image."""
    model, optimizer = recipes.make_model(recipe, 10), recipes.make_optimizer(recipe, 100)
    step = make_train_step(model, optimizer, reduction=recipes.make_reduction(recipe))
    evaluate = make_eval_step(model, views=recipes.make_views(recipe))
    state = init_train_state(model, optimizer, key=random.key(0))
    found = []
    for size in (4, 8):
        images = random.randint(random.key(1), (size, 3, 32, 32), 0, 256).byte()
        batch = Batch(images, torch.arange(size) % 10)
        with FlopCounterMode(display=False) as training:
            step(state, batch)
        with FlopCounterMode(display=False) as evaluating:
            evaluate(state.variables, batch)
        found.append((training.get_total_flops(), evaluating.get_total_flops()))
    (few, _), (many, views) = found
    image = (many - few) / 4
    return {"image": image, "step": few - 4 * image, "evaluation": views / 8}


def floor(recipe: Recipe, operations: dict[str, float], rate_: float) -> dict[str, float]:
    """Seconds of a run at that rate."""
    steps = IMAGES // recipe.batch_size * recipe.epochs
    training = steps * (recipe.batch_size * operations["image"] + operations["step"])
    return {
        "train_seconds": training / rate_,
        "eval_seconds": TEST * operations["evaluation"] / rate_,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append", choices=list(recipes.RECIPES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--record", action="append", help="of benchmarks.recipes, to compare with")
    parser.add_argument("--name", default="speed_floor", help="of the record")
    options = parser.parse_args()
    measured: dict[str, list[dict[str, float]]] = {}
    for name in options.record or ("speed90", "speed93", "speed"):
        measured = records.read(records.RESULTS / f"{name}.json")["results"] | measured
    runtime = make_runtime(device="cpu", threads=options.threads)
    with activate(runtime):
        rates = [rate() for _ in range(9)]
        best = max(rates)
        print(
            f"{best / 1e9:.0f} billion operations a second, median "
            f"{records.median(rates) / 1e9:.0f}"
        )
        floors = {}
        for name in options.recipe or ("speed90", "speed93", "speed94"):
            operations = count(recipes.get(name))
            seconds = floor(recipes.get(name), operations, best)
            floors[name] = {"operations": operations, "floor": seconds}
            for what, least in seconds.items():
                if name in measured:
                    taken = records.median([run[what] for run in measured[name]])
                    floors[name][what] = {"measured": taken, "times_floor": taken / least}
                    print(f"{name} {what}: floor {least:.0f}, measured {taken:.0f}")
    config = {**vars(options), "threads": runtime.threads}
    print(records.write(options.name, config, {"operations_per_second": rates, "floors": floors}))


if __name__ == "__main__":
    main()
