"""Training steps of every model, batch size and implementation, interleaved.

    python -m benchmarks.bench_steps [--network lenet] [--batch 4 --batch 64]
        [--implementation module] [--repetitions 7] [--seconds 0.3] [--device cpu] [--threads 2]
        [--precision fp32] [--name steps]

--seconds is the time of one measurement, --precision that of fcifar's steps. Writes
bench_results/NAME.json and prints a table. A model with two or three batch sizes takes minutes; all
of them take far longer, mostly to compile.
"""

from typing import Any

from benchmarks import records, script
from benchmarks.reference.candidates import BATCHES, CANDIDATES, MODELS, why_not
from benchmarks.render.tables import group_table
from fcifar import recipes
from fcifar.bench import bench
from fcifar.bench.bench import Case
from fcifar.train.runtime import activate, make_runtime


def main() -> None:
    where = {"device": "cpu", "threads": int, "precision": "fp32"}
    parser = script.parser(__doc__, repetitions=7, seconds=0.3, **where, name="steps")
    parser.add_argument("--network", action="append", choices=MODELS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--implementation", action="append", choices=list(CANDIDATES))
    options = parser.parse_args()
    runtime = make_runtime(**{name: getattr(options, name) for name in where})
    makes = {}
    for name in options.implementation or CANDIDATES:
        if reason := why_not(name, runtime.device):
            print(f"without {name}: {reason}")
        else:
            makes[name] = CANDIDATES[name]
    models, batches = options.network or MODELS, options.batch or BATCHES
    cases = [Case(model, batch) for model in models for batch in batches]
    config = {
        **vars(options),
        "threads": runtime.threads,
        "deterministic": runtime.deterministic,
        "implementations": list(makes),
        "recipes": {name: recipes.to_dict(bench.recipe_for(Case(name, 1))) for name in models},
    }
    dataset = bench.synthetic()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    limits = {"seconds": options.seconds, "repetitions": options.repetitions}
    path = None
    with activate(runtime):  # so that the record has its threads and switches
        for case in cases:
            group = bench.group(case, runtime)
            results[group] = bench.measure_step(case, makes, runtime, dataset, **limits)
            print(f"{group}\n{group_table(results[group])}", flush=True)
            path = records.write(options.name, config, results)
    print(path)


if __name__ == "__main__":
    main()
