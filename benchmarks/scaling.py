"""Steps of one process and of two that divide the same batch, and what the exchange takes of them.

    python -m benchmarks.scaling [--recipe blitz64 --recipe speed90 ...] [--batch 64 ...]
                                 [--rounds 9] [--seconds 1] [--name scaling]

Everything is measured in one pair of processes, in turns: process 0 alone with all rows and one
thread (the other sleeps), alone with two threads, both with half of the rows each, both without the
exchange, and the exchange of as many bytes by itself. Writes bench_results/NAME.json.

    python -m benchmarks.scaling --compute bench_results/scaling.json

computes from such a record what more hosts would take, with the assumptions of LINKS and nothing
else: a ring passes 2 (W - 1) / W of the bytes through each link in 2 (W - 1) rounds.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import records
from fcifar import parallel, recipes, step_transforms
from fcifar.bench import bench
from fcifar.parallel import ALONE, Axis
from fcifar.recipes import Recipe
from fcifar.train import distributed
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_training

CASES = (("blitz64", 64), ("blitz64", 512), ("speed90", 500))
LINKS = {"10 Gbit/s, 50 us": (1.25e9, 50e-6), "100 Gbit/s, 10 us": (12.5e9, 10e-6)}
"""Bytes a second of a link, and seconds of a round."""
PROCESSES = (8, 64, 512)
SIZES = (2**2, 2**12, 2**18, 2**22, 2**25)  # bytes of bare exchanges


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--name", default="scaling", help="of the record")
    parser.add_argument("--out", type=Path, help="for the processes themselves")
    parser.add_argument("--compute", type=Path, metavar="RECORD")
    options = parser.parse_args()
    if options.compute:
        print(computed(records.read(options.compute)["results"]["steps"]))
        return
    works = list(zip(options.recipe, options.batch, strict=True)) if options.recipe else CASES
    if options.out:
        runtime = make_runtime(device="cpu", processes=distributed.world_size())
        with distributed.group(runtime) as axis:
            results = measure(works, axis, options.rounds, options.seconds)
        if axis.rank == 0:
            options.out.write_text(json.dumps(results))
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", "-m", "benchmarks.scaling", *sys.argv[1:]]
        subprocess.run([*command, "--out", str(out)], check=True)
        results = json.loads(out.read_text())
    config = {"works": works, "rounds": options.rounds, "seconds": options.seconds}
    print(records.write(options.name, config, results))
    print(table(results["steps"]))


def measure(works: Any, axis: Axis, rounds: int, seconds: float) -> dict[str, Any]:
    """In each of the two processes; the first one's figures count."""
    steps = {}
    for name, batch_size in works:
        recipe = recipes.get(name).replace(batch_size=batch_size, drop_last=True, epochs=1)
        steps[f"{recipe.model}, batch {batch_size}"] = measure_steps(recipe, axis, rounds, seconds)
        if axis.rank == 0:
            print(table(steps), flush=True)
    return {"steps": steps, "exchanges": {str(size): exchange(size // 4) for size in SIZES}}


def measure_steps(recipe: Recipe, axis: Axis, rounds: int, seconds: float) -> dict[str, Any]:
    """Median seconds of a step: see the top."""
    silent = axis._replace(psum=lambda tensors: [tensor * 1 for tensor in tensors])
    takes: dict[str, Callable[[], object] | None] = {
        "one": taker(recipe, ALONE, threads=1) if axis.rank == 0 else None,
        "one_two_threads": taker(recipe, ALONE, threads=2) if axis.rank == 0 else None,
        "two": taker(recipe, axis, threads=1),
        "two_silent": taker(recipe, silent, threads=1),
    }
    counted, exchanges = count(recipe, axis.size)
    bare = torch.zeros(max(exchanges) // 4)
    takes["exchange"] = lambda: dist.all_reduce(bare)
    found: dict[str, list[float]] = {name: [] for name in takes}
    for number in range(rounds):
        for name, take in takes.items():
            dist.barrier()
            found[name].append(timed(take, seconds, together=name.startswith(("two", "ex"))))
            if number == 0:
                found[name].clear()  # it compiled, or warmed up
    medians = {name: statistics.median(times) for name, times in found.items() if times}
    return {
        "seconds": medians,
        "each": found,
        "bytes": counted,
        "exchanges": len(exchanges),
        "precision": make_runtime(device="cpu", preferred=recipe.precision).precision,
        "share": 1 - medians["two_silent"] / medians["two"],
        "speedup": medians["one"] / medians["two"] if "one" in medians else None,
    }


def taker(recipe: Recipe, axis: Axis, threads: int) -> Callable[[], None]:
    """A function that makes one compiled step, with this process's rows."""
    dataset = bench.synthetic(4 * recipe.batch_size)
    runtime = make_runtime(
        device="cpu", threads=threads, preferred=recipe.precision, processes=axis.size
    )
    config = make_config(recipe, dataset, runtime=runtime, compile=True)
    with activate(runtime):
        training = make_training(config, dataset, axis)
        state = training.init()
        inputs = step_transforms.shard(next(training.inputs(0)), axis.rank, axis.size)

    def take() -> None:
        nonlocal state
        with activate(runtime):
            state, _ = training.stages[0](state, inputs)

    return take


def timed(take: Callable[[], object] | None, seconds: float, *, together: bool) -> float:
    """Seconds of one call, over as many as fit; both processes make the same number."""
    if take is None:
        return 0.0
    started = time.perf_counter()
    take()
    once = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
    if together:
        dist.broadcast(once, 0)
    calls = max(1, int(seconds / max(float(once), 1e-6)))
    started = time.perf_counter()
    for _ in range(calls):
        take()
    return (time.perf_counter() - started) / calls


def exchange(numbers: int, calls: int = 30) -> float:
    """Median seconds of a sum of so many float32 numbers over the processes."""
    vector, found = torch.zeros(numbers), []
    for _ in range(calls):
        started = time.perf_counter()
        dist.all_reduce(vector)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def count(recipe: Recipe, size: int) -> tuple[int, list[int]]:
    """Bytes that a process puts into the exchanges of a step, and of each of them."""
    found: list[int] = []

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(vector: Tensor) -> Tensor:
            found.append(vector.numel() * vector.element_size())
            return vector * 1

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return Counting.apply(gradients[0])

    axis = Axis(size, functools.partial(parallel.sum_flat, sum_vector=Counting.apply))
    runtime = make_runtime(device="cpu", threads=1, precision="fp32", processes=size)
    small, dataset = recipe.replace(batch_size=2 * size), bench.synthetic(64)
    with activate(runtime):
        training = make_training(make_config(small, dataset, runtime=runtime), dataset, axis)
        inputs = step_transforms.shard(next(training.inputs(0)), axis.rank, size)
        training.stages[0](training.init(), inputs)
    return sum(found), found


def exchange_seconds(
    bytes_: int, exchanges: int, processes: int, link: tuple[float, float]
) -> float:
    """Of a step, by a ring: every exchange waits for the one before."""
    bandwidth, latency = link
    rounds = 2 * (processes - 1)
    return rounds / processes * bytes_ / bandwidth + exchanges * rounds * latency


def computed(steps: dict[str, Any]) -> str:
    """A line for each step, link and number of processes: the same batch divided, and one each.

    Computing is taken to divide evenly, and the exchange not to overlap with it.
    """
    lines = [
        "| step | link | processes | exchange, ms | same batch: speed-up | share | "
        "a batch each: share |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, f in steps.items():
        one = f["seconds"]["one"]
        for link, figures in LINKS.items():
            for count_ in PROCESSES:
                moved = exchange_seconds(f["bytes"], f["exchanges"], count_, figures)
                divided = one / count_ + moved
                lines.append(
                    f"| {name} | {link} | {count_} | {1000 * moved:.2f} | {one / divided:.1f} | "
                    f"{100 * moved / divided:.0f} % | {100 * moved / (one + moved):.0f} % |"
                )
    return "\n".join(lines)


def table(steps: dict[str, Any]) -> str:
    """A line for each step."""
    lines = [
        f"{'':24} {'one, ms':>9} {'2 threads':>9} {'two':>9} {'silent':>9} {'share':>7} "
        f"{'bytes':>12} {'exchanges':>9} {'bare, ms':>9}"
    ]
    for name, f in steps.items():
        ms = {k: 1000 * v for k, v in f["seconds"].items()}
        lines.append(
            f"{name:24} {ms.get('one', 0):9.2f} {ms.get('one_two_threads', 0):9.2f} "
            f"{ms['two']:9.2f} {ms['two_silent']:9.2f} {100 * f['share']:5.1f} % "
            f"{f['bytes']:12,} {f['exchanges']:9} {ms['exchange']:9.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
