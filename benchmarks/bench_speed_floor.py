"""The arithmetic floor of the speed recipes in bfloat16: the time of a run if only arithmetic took
time.

    python -m benchmarks.bench_speed_floor [--recipe speed94 ...] [--threads 2]
        [--name speed_floor]

torch's counter counts the operations of a training step, by image and by step, and of an evaluation
with the recipe's views. The rate is the best of several products of two bfloat16 matrices of
4096 x 4096. The measured seconds come from the records bench_results/RECORD.json. A kernel that
skips known zeros, as behind a max-pool, may be faster than the floor.
"""

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import records, script
from fcifar import random, recipes
from fcifar.recipes import Recipe
from fcifar.step import Batch, init_train_state, make_eval_step, make_train_step
from fcifar.train.runtime import activate, make_runtime

IMAGES, TEST = 50_000, 10_000
SIDE = 4096


def rate(calls: int = 3) -> float:
    """Return operations per second in a product of bfloat16 matrices."""
    a = torch.ones(SIDE, SIDE, dtype=torch.bfloat16)
    return 2 * SIDE**3 / script.seconds_per_call(lambda: a @ a, calls)


def count(recipe: Recipe) -> dict[str, float]:
    """Count the operations of training, by image and by step, and of evaluating an image."""
    model, optimizer = recipes.make_model(recipe, 10), recipes.make_optimizer(recipe, 100)
    step = make_train_step(model, optimizer, reduction=recipes.make_reduction(recipe))
    evaluate = make_eval_step(model, views=recipes.make_views(recipe))
    state = init_train_state(model, optimizer, key=random.key(0))
    counts = []
    for size in (4, 8):
        images = random.randint(random.key(1), (size, 3, 32, 32), 0, 256).byte()
        batch = Batch(images, torch.arange(size) % 10)
        with FlopCounterMode(display=False) as training:
            step(state, batch)
        with FlopCounterMode(display=False) as evaluating:
            evaluate(state.variables, batch)
        counts.append((training.get_total_flops(), evaluating.get_total_flops()))
    (few, _), (many, views) = counts
    image = (many - few) / 4
    return {"image": image, "step": few - 4 * image, "evaluation": views / 8}


def floor(recipe: Recipe, operations: dict[str, float], peak: float) -> dict[str, float]:
    """Return the seconds of a run at the peak rate."""
    steps = IMAGES // recipe.batch_size * recipe.epochs
    training = steps * (recipe.batch_size * operations["image"] + operations["step"])
    evaluation = TEST * operations["evaluation"]
    return {"train_seconds": training / peak, "eval_seconds": evaluation / peak}


def main() -> None:
    parser = script.parser(__doc__, threads=int, name="speed_floor")
    parser.add_argument("--recipe", action="append", choices=list(recipes.RECIPES))
    parser.add_argument("--record", action="append", help="of bench_recipes, to compare with")
    options = parser.parse_args()
    measured: dict[str, list[dict[str, float]]] = {}
    for name in options.record or ("speed90", "speed93", "speed"):
        measured = records.read(records.RESULTS / f"{name}.json")["results"] | measured
    runtime = make_runtime(device="cpu", threads=options.threads)
    with activate(runtime):
        rates = [rate() for _ in range(9)]
        best = max(rates)
        median = statistics.median(rates)
        print(f"{best / 1e9:.0f} billion operations per second, median {median / 1e9:.0f}")
        floors = {}
        for name in options.recipe or ("speed90", "speed93", "speed94"):
            operations = count(recipes.get(name))
            seconds = floor(recipes.get(name), operations, best)
            floors[name] = {"operations": operations, "floor": seconds}
            for what, least in seconds.items():
                if name in measured:
                    taken = statistics.median(run[what] for run in measured[name])
                    floors[name][what] = {"measured": taken, "times_floor": taken / least}
                    print(f"{name} {what}: floor {least:.0f}, measured {taken:.0f}")
    config = {**vars(options), "threads": runtime.threads}
    print(records.write(options.name, config, {"operations_per_second": rates, "floors": floors}))


if __name__ == "__main__":
    main()
