"""Training on a busy machine: images per second, quiet and beside other processes.

    python -m benchmarks.bench_busy [--recipe blitz ...] [--threads 1 2] [--spin 0 1000] [--record]

Each combination runs in its own process, which compiles the recipe's step and measures it in turns:
alone, and beside as many busy processes as the machine has cores. ``--spin`` is
``GOMP_SPINCOUNT``, how long an OpenMP thread spins before it sleeps; ``--threads auto`` and
``--spin auto`` are the choices of ``fcifar train``. --record writes bench_results/busy.json.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from typing import Any

from benchmarks import records, script
from fcifar import recipes
from fcifar.bench import bench
from fcifar.cli import SPIN_COUNT
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_training

BUSY = "while True: pass"
RECIPES = ("blitz", "blitz10", "dropout-adam", "conv3-aug", "speed90", "speed94")


def main() -> None:
    parser = script.parser(__doc__, seconds=4.0, turns=3, images=10_000)
    parser.add_argument("--recipe", nargs="+", default=[*RECIPES])
    parser.add_argument("--threads", nargs="+", default=["auto"])
    parser.add_argument("--spin", nargs="+", default=["auto"])
    parser.add_argument("--record", action="store_true", help="write bench_results/busy.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_measure(options)))
        return
    results: dict[str, dict[str, list[float]]] = {}
    for recipe, threads, spin in itertools.product(options.recipe, options.threads, options.spin):
        rates = _in_process(options, recipe, threads, spin)
        quiet, busy = (statistics.median(rates[kind]) for kind in ("quiet", "busy"))
        print(
            f"{recipe:12} threads {threads:4} spin {spin:8} quiet {quiet:9,.1f} images/s, "
            f"busy {busy:9,.1f}, {busy / quiet:.2f}",
            flush=True,
        )
        label = f"{recipe}, threads {threads}, spin {spin}"
        results[label] = {f"{kind}, images/s": values for kind, values in rates.items()}
    if options.record:
        print(records.write("busy", {**vars(options), "busy_processes": os.cpu_count()}, results))


def _in_process(
    options: argparse.Namespace, recipe: str, threads: str, spin: str
) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.bench_busy", "--worker", "--recipe", recipe]
    command += ["--threads", threads, "--seconds", str(options.seconds)]
    command += ["--turns", str(options.turns), "--images", str(options.images)]
    environment = {**os.environ}
    if spin != "default":
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT) if spin == "auto" else spin
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure images per second of one recipe in this process, quiet and busy in turns."""
    (name,), (threads,) = options.recipe, options.threads
    recipe = recipes.get(name)
    runtime = make_runtime(
        device="cpu",
        threads=None if threads == "auto" else int(threads),
        preferred=recipe.precision,
        step_flops=recipes.count_flops(recipe),
    )
    data = bench.synthetic(options.images)
    rates: dict[str, list[float]] = {"quiet": [], "busy": []}
    with activate(runtime):
        training = make_training(make_config(recipe, data, runtime=runtime, compile=True), data)
        state, _ = _steps(training, training.init(), 0.0)  # compiles
        state, _ = _steps(training, state, options.seconds)
        for _ in range(options.turns):
            for kind, busy in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with _busy_processes(busy):
                    state, rate = _steps(training, state, options.seconds)
                rates[kind].append(rate)
    return rates


def _steps(training: Any, state: Any, seconds: float) -> tuple[Any, float]:
    """Train for ``seconds``; return the state and images per second."""
    images, started = 0, time.perf_counter()
    while True:
        for inputs in training.inputs(0):
            state, _ = training.stages[0](state, inputs)
            images += len(inputs.indices)
            spent = time.perf_counter() - started
            if spent > seconds:
                return state, images / spent


@contextlib.contextmanager
def _busy_processes(count: int) -> Generator[None]:
    """Keep ``count`` processes busy."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(0.2 if busy else 0.0)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
