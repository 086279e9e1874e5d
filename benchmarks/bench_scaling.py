"""Steps of one process and of two that divide a batch, and the share of the gradient exchange.

    python -m benchmarks.bench_scaling [--recipe blitz64 --recipe speed90 ...] [--batch 64 ...]
        [--rounds 9] [--seconds 1] [--name scaling]

All measurements are interleaved in one pair of processes: process 0 alone with all rows and one
thread (the other sleeps), alone with two threads, both with half of the rows each, both without the
exchange, and the exchange alone. Writes bench_results/NAME.json.

    python -m benchmarks.bench_scaling --compute bench_results/scaling.json

computes the times of more hosts from such a record, with the links of LINKS: a ring passes
2 (W - 1) / W of the bytes through each link in 2 (W - 1) rounds.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives

from benchmarks import records, script
from benchmarks.render.tables import markdown
from fcifar import recipes, step_transforms
from fcifar.bench import bench
from fcifar.parallel import ALONE, Axis
from fcifar.recipes import Recipe
from fcifar.train import distributed
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_training

CASES = (("blitz64", 64), ("blitz64", 512), ("speed90", 500))
LINKS = {"10 Gbit/s, 50 us": (1.25e9, 50e-6), "100 Gbit/s, 10 us": (12.5e9, 10e-6)}
"""Bytes per second of a link, and seconds of a round."""
PROCESSES = (8, 64, 512)
SIZES = (2**2, 2**12, 2**18, 2**22, 2**25)  # bytes of bare exchanges


def main() -> None:
    parser = script.parser(__doc__, rounds=9, seconds=1.0, name="scaling")
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--out", type=Path, help="used by the processes")
    parser.add_argument("--compute", type=Path, metavar="RECORD")
    options = parser.parse_args()
    if options.compute:
        print(computed(records.read(options.compute)["results"]["steps"]))
        return
    cases = list(zip(options.recipe, options.batch, strict=True)) if options.recipe else CASES
    if options.out:
        runtime = make_runtime(device="cpu", processes=distributed.world_size())
        with distributed.group(runtime) as axis:
            results = measure(cases, axis, options.rounds, options.seconds)
        if axis.rank == 0:
            options.out.write_text(json.dumps(results))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", "-m", "benchmarks.bench_scaling", *sys.argv[1:]]
        subprocess.run([*command, "--out", str(out)], check=True)
        results = json.loads(out.read_text())
    config = {"works": cases, "rounds": options.rounds, "seconds": options.seconds}
    print(records.write(options.name, config, results))
    print(table(results["steps"]))


def measure(cases: Any, axis: Axis, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure in each of the two processes; process 0 keeps the results."""
    steps = {}
    for name, batch_size in cases:
        recipe = recipes.get(name).replace(batch_size=batch_size, drop_last=True, epochs=1)
        steps[f"{recipe.model}, batch {batch_size}"] = measure_steps(recipe, axis, rounds, seconds)
        if axis.rank == 0:
            print(table(steps), flush=True)
    return {"steps": steps, "exchanges": {str(size): exchange(size // 4) for size in SIZES}}


def measure_steps(recipe: Recipe, axis: Axis, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure a step of a recipe in all ways."""
    silent = axis._replace(psum=lambda tensors: [tensor * 1 for tensor in tensors])
    exchanges = exchanged_bytes(recipe, axis)
    bare = torch.zeros(max(exchanges) // 4)
    functions: dict[str, Callable[[], object] | None] = {
        "one": stepper(recipe, ALONE, threads=1) if axis.rank == 0 else None,
        "one_two_threads": stepper(recipe, ALONE, threads=2) if axis.rank == 0 else None,
        "two": stepper(recipe, axis, threads=1),
        "two_silent": stepper(recipe, silent, threads=1),
        "exchange": lambda: dist.all_reduce(bare),
    }
    each: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name, function in functions.items():
            dist.barrier()
            taken = timed(function, seconds, together=name.startswith(("two", "ex")))
            if number:  # the first round compiles
                each[name].append(taken)
    medians = {name: statistics.median(times) for name, times in each.items() if times}
    return {
        "seconds": medians,
        "each": each,
        "bytes": sum(exchanges),
        "exchanges": len(exchanges),
        "precision": make_runtime(device="cpu", preferred=recipe.precision).precision,
        "share": 1 - medians["two_silent"] / medians["two"],
        "speedup": medians["one"] / medians["two"] if "one" in medians else None,
    }


def stepper(recipe: Recipe, axis: Axis, threads: int) -> Callable[[], None]:
    """Return a function that does one compiled step with this process's rows."""
    dataset = bench.synthetic(4 * recipe.batch_size)
    runtime = make_runtime(
        device="cpu", threads=threads, preferred=recipe.precision, processes=axis.size
    )
    config = make_config(recipe, dataset, runtime=runtime, compile=True)
    with activate(runtime):
        training = make_training(config, dataset, axis)
        state = training.init()
        inputs = step_transforms.shard(next(training.inputs(0)), axis.rank, axis.size)

    def step() -> None:
        nonlocal state
        with activate(runtime):
            state, _ = training.stages[0](state, inputs)

    return step


def timed(function: Callable[[], object] | None, seconds: float, *, together: bool) -> float:
    """Return the seconds per call, over about ``seconds``.

    Args:
        function: None in a process that only waits.
        together: make the same number of calls in both processes.
    """
    if function is None:
        return 0.0
    started = time.perf_counter()
    function()
    once = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    if together:
        dist.broadcast(once, 0)
    calls = max(1, int(seconds / max(float(once), 1e-6)))
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def exchange(numbers: int, calls: int = 30) -> float:
    """Return the median seconds of a sum of float32 vectors over the processes."""
    vector, seconds = torch.zeros(numbers), []
    for _ in range(calls):
        started = time.perf_counter()
        dist.all_reduce(vector)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def exchanged_bytes(recipe: Recipe, axis: Axis) -> list[int]:
    """Return the bytes that a process puts into each exchange of a step."""
    runtime = make_runtime(device="cpu", threads=1, precision="fp32", processes=axis.size)
    small, dataset = recipe.replace(batch_size=2 * axis.size), bench.synthetic(64)
    all_reduce = mock.patch.object(collectives, "all_reduce", wraps=collectives.all_reduce)
    with activate(runtime), all_reduce as spy:
        training = make_training(make_config(small, dataset, runtime=runtime), dataset, axis)
        inputs = step_transforms.shard(next(training.inputs(0)), axis.rank, axis.size)
        training.stages[0](training.init(), inputs)
    return [call.args[0].nbytes for call in spy.call_args_list]


def computed(steps: dict[str, Any]) -> str:
    """Return a row for each step, link and number of processes.

    The same batch is divided, or every process has one. Computation is assumed to divide evenly.
    Exchanges by a ring follow one another, and do not overlap with it.
    """
    columns = ("step", "link", "processes", "exchange, ms", "same batch: speed-up", "share",
               "a batch each: share")  # fmt: skip
    rows = []
    for (name, f), link, processes in itertools.product(steps.items(), LINKS, PROCESSES):
        one, rounds, (bandwidth, latency) = f["seconds"]["one"], 2 * (processes - 1), LINKS[link]
        moved = rounds / processes * f["bytes"] / bandwidth + f["exchanges"] * rounds * latency
        divided = one / processes + moved
        shares = (f"{100 * moved / whole:.0f} %" for whole in (divided, one + moved))
        speedup = f"{one / divided:.1f}"
        rows.append((name, link, str(processes), f"{1000 * moved:.2f}", speedup, *shares))
    return markdown(columns, rows)


def table(steps: dict[str, Any]) -> str:
    """Return a row for each step, with its times in ms."""
    names = ("one", "one_two_threads", "two", "two_silent", "exchange")
    rows = [
        (
            name,
            *(f"{1000 * f['seconds'].get(key, 0.0):.2f}" for key in names),
            *(f"{100 * f['share']:.1f} %", f"{f['bytes']:,}", str(f["exchanges"])),
        )
        for name, f in steps.items()
    ]
    return markdown(("step", *names, "share", "bytes", "exchanges"), rows)


if __name__ == "__main__":
    main()
