"""Training beside other work: images a second by threads, quiet and beside processes that compute.

    python -m benchmarks.busy [--recipe blitz ...] [--threads 1 2] [--spin default 0 1000 ...]

Each combination runs in a process of its own, which compiles the recipe's step and then measures it
in turns: nothing else running, and beside as many busy processes as the machine has cores. The
benchmark starts and stops them. ``--spin`` is ``GOMP_SPINCOUNT``, how long an OpenMP thread spins
before it sleeps; ``--threads auto`` and ``--spin auto`` are what ``fcifar train`` takes.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", nargs="+", default=["blitz", "blitz64", "conv3-aug"])
    parser.add_argument("--threads", nargs="+", default=["1", "2"])
    parser.add_argument("--spin", nargs="+", default=["default"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3, help="measurements, each quiet and busy")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_measure(options)))
        return
    for recipe in options.recipe:
        for threads in options.threads:
            for spin in options.spin if threads != "1" else ["default"]:
                print(json.dumps(_in_process(options, recipe, threads, spin)), flush=True)


def _in_process(
    options: argparse.Namespace, recipe: str, threads: str, spin: str
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.busy", "--worker", "--recipe", recipe]
    command += ["--threads", threads, "--seconds", str(options.seconds)]
    command += ["--turns", str(options.turns), "--images", str(options.images)]
    environment = {**os.environ, **({} if spin == "default" else {"GOMP_SPINCOUNT": spin})}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return {"recipe": recipe, "threads": threads, "spin": spin, **json.loads(done)}


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from fcifar import random, recipes
    from fcifar.data.dataset import Split, make_dataset
    from fcifar.runs.program import build
    from fcifar.runs.runtime import activate, make_runtime

    (name,), n = options.recipe, options.images
    images = random.randint(random.key(0), (n, 3, 32, 32), 0, 256).to(torch.uint8)
    labels = torch.arange(n) % 10
    classes = tuple(map(str, range(10)))
    train, test = Split(images, labels), Split(images[:1000], labels[:1000])
    data = make_dataset("noise", train, test, classes, "drawn from a key")
    recipe = recipes.get(name)
    runtime = make_runtime(threads=int(options.threads[0]), preferred=recipe.precision)
    with activate(runtime):
        program = build(recipe, runtime, data, compiled=True)
        running, found = program.init(), {"quiet": [], "busy": []}
        for _ in range(2):
            running = _steps(program, running, options.seconds)[0]
        for _ in range(options.turns):
            for kind, busy in (("quiet", 0), ("busy", os.cpu_count() or 1)):
                with _noise(busy):
                    running, rate = _steps(program, running, options.seconds)
                found[kind].append(rate)
    medians = {kind: sorted(rates)[len(rates) // 2] for kind, rates in found.items()}
    return {**medians, "ratio": medians["busy"] / medians["quiet"], "all": found}


def _steps(program: Any, running: Any, seconds: float) -> tuple[Any, float]:
    """The state after steps of ``seconds``, and images a second."""
    images, started = 0, time.perf_counter()
    while True:
        for feed in program.feeds_from(0):
            running, _ = program.step_at(0)(running, feed)
            images += len(feed.rows)
            spent = time.perf_counter() - started
            if spent > seconds:
                return running, images / spent


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
