"""Training beside other work: images a second by threads, quiet and beside processes that compute.

    python -m benchmarks.busy [--recipe blitz ...] [--threads 1 2] [--spin 0 1000] [--record]

Each combination runs in a process of its own, which compiles the recipe's step and then measures it
in turns: nothing else running, and beside as many busy processes as the machine has cores. The
benchmark starts and stops them. ``--spin`` is ``GOMP_SPINCOUNT``, how long an OpenMP thread spins
before it sleeps; ``--threads auto`` and ``--spin auto`` are what ``fcifar train`` takes.
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
from collections.abc import Iterator
from typing import Any

from fcifar.cli import SPIN_COUNT

BUSY = "while True: pass"
RECIPES = ("blitz", "blitz10", "dropout-adam", "conv3-aug", "speed90", "speed94")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", nargs="+", default=[*RECIPES])
    parser.add_argument("--threads", nargs="+", default=["auto"])
    parser.add_argument("--spin", nargs="+", default=["auto"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3, help="measurements, each quiet and busy")
    parser.add_argument("--images", type=int, default=10_000)
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
        from benchmarks import records

        print(records.write("busy", {**vars(options), "busy_processes": os.cpu_count()}, results))


def _in_process(
    options: argparse.Namespace, recipe: str, threads: str, spin: str
) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.busy", "--worker", "--recipe", recipe]
    command += ["--threads", threads, "--seconds", str(options.seconds)]
    command += ["--turns", str(options.turns), "--images", str(options.images)]
    environment = {**os.environ}
    if spin != "default":
        environment["GOMP_SPINCOUNT"] = str(SPIN_COUNT) if spin == "auto" else spin
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of one recipe in this process: quiet and busy, in turns."""
    import torch

    from fcifar import random, recipes
    from fcifar.data.dataset import Split, make_dataset
    from fcifar.train.config import make_config
    from fcifar.train.runtime import activate, make_runtime
    from fcifar.train.setup import make_training

    (name,), (threads,) = options.recipe, options.threads
    recipe = recipes.get(name)
    runtime = make_runtime(
        device="cpu",
        threads=None if threads == "auto" else int(threads),
        preferred=recipe.precision,
        step_flops=recipes.count_flops(recipe),
    )
    images = random.randint(random.key(0), (options.images, 3, 32, 32), 0, 256).to(torch.uint8)
    labels = torch.arange(options.images) % 10
    train, test = Split(images, labels), Split(images[:1000], labels[:1000])
    data = make_dataset("noise", train, test, tuple("abcdefghij"), "drawn from a key")
    found: dict[str, list[float]] = {"quiet": [], "busy": []}
    with activate(runtime):
        training = make_training(make_config(recipe, data, runtime=runtime, compile=True), data)
        state, _ = _steps(training, training.init(), 0.0)  # compiles
        state, _ = _steps(training, state, options.seconds)
        for _ in range(options.turns):
            for kind, busy in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with _noise(busy):
                    state, rate = _steps(training, state, options.seconds)
                found[kind].append(rate)
    return found


def _steps(training: Any, state: Any, seconds: float) -> tuple[Any, float]:
    """The state after steps of ``seconds``, and images a second."""
    images, started = 0, time.perf_counter()
    while True:
        for inputs in training.inputs(0):
            state, _ = training.stages[0](state, inputs)
            images += len(inputs.indices)
            spent = time.perf_counter() - started
            if spent > seconds:
                return state, images / spent


@contextlib.contextmanager
def _noise(count: int) -> Iterator[None]:
    """That many processes that compute."""
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
