"""Training steps of every network, batch size and implementation, measured in turns.

    python -m benchmarks.steps [--network lenet] [--batch 4 --batch 64] [--implementation module]
        [--repetitions 7] [--seconds 0.3] [--device cpu] [--threads 2] [--precision fp32]
        [--name steps]

Writes bench_results/NAME.json, with every figure, and prints a table. A network and two or three
batch sizes take minutes; all of it takes far longer, and most of that is compiling.
"""

import argparse
from typing import Any

from benchmarks import records
from benchmarks.candidates import BATCHES, CANDIDATES, NETWORKS, why_not
from fcifar import recipes
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.train.runtime import activate, make_runtime

MISSING = "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--implementation", action="append", choices=list(CANDIDATES))
    parser.add_argument("--repetitions", type=int, default=timing.REPETITIONS)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="fp32", help="of fcifar's steps")
    parser.add_argument("--name", default="steps", help="of the record")
    options = parser.parse_args()
    runtime = make_runtime(
        device=options.device, threads=options.threads, precision=options.precision
    )
    makes = {}
    for name in options.implementation or CANDIDATES:
        if reason := why_not(name, runtime.device):
            print(f"without {name}: {reason}")
        else:
            makes[name] = CANDIDATES[name]
    works = [
        Case(network, batch)
        for network in options.network or NETWORKS
        for batch in options.batch or BATCHES
    ]
    config = {
        **vars(options),
        "threads": runtime.threads,
        "deterministic": runtime.deterministic,
        "implementations": list(makes),
        "recipes": {
            network: recipes.to_dict(bench.recipe_for(Case(network, 1)))
            for network in dict.fromkeys(case.network for case in works)
        },
    }
    dataset = bench.synthetic()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    path = None
    with activate(runtime):  # what the record says of threads and switches is then what was
        for case in works:
            group = bench.group(case, runtime)
            results[group] = bench.measure_step(
                case,
                makes,
                runtime,
                dataset,
                seconds=options.seconds,
                repetitions=options.repetitions,
            )
            print(table(group, results[group]), flush=True)
            path = records.write(options.name, config, results)
    print(path)


def table(group: str, figures: dict[str, dict[str, Any]]) -> str:
    """A line for each implementation: time, spread, images a second, ratio, first call."""
    lines = [f"{group:32} {'ms':>10} {'spread':>7} {'images/s':>9} {'times':>6} {'first, s':>8}"]
    for name, f in figures.items():
        times = f.get(f"times_{bench.YARDSTICK}")
        lines.append(
            f"  {name:30} {1000 * f['median_seconds']:10.3f} {100 * f['spread']:5.0f} % "
            f"{f['images_per_second']:9,.0f} {MISSING if times is None else f'{times:.2f}':>6} "
            f"{f['first_call_seconds']:8.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
