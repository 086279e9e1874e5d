"""All measurements that need an accelerator, in one command.

    python -m benchmarks.on_device [--device cuda] [--dataset cifar10] [--seeds 10]
                                   [--part NAME ...] [--epochs N] [--seconds 540] [--name cuda]

Parts, in order, each in its own processes:

* tests: `pytest -m cuda`, with keys and draws against the CPU.
* bits: the digests of two runs of a recipe with --deterministic, and `fcifar reproduce`.
* recipes: every recipe once, as `fcifar train RECIPE --compile --device DEVICE`.
* ninety_four: speed94 with --seeds seeds in one program; mean, interval, and both timings.
* steps: training steps against plain PyTorch, eager and compiled.
* replicas: 16 replicas of blitz mapped by vmap, against one run.
* grads: gradients of each example against those of the batch.

A failed part is recorded with its output, and the next one starts. No part starts after --seconds:
call again with the remaining parts. --epochs shortens the runs, to try the script. Writes
bench_results/NAME.json after each part, and keeps the other parts of an earlier record.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from benchmarks import records, script
from fcifar.analysis import confidence
from fcifar.recipes import RECIPES

_KEPT = (
    *("recipe", "seed", "device", "test_accuracy", "tta_accuracy", "test_loss", "train_seconds"),
    *("compile_seconds", "convention_seconds", "process_seconds", "images_per_second"),
    *("params_digest", "epochs", "interrupted", "wall_seconds", "status", "err"),
)


def call(*args: object) -> tuple[dict[str, Any], str]:
    """Run a module in its own process; return how it ended, and its whole output."""
    started = time.perf_counter()
    command = [sys.executable, "-m", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = {
        "command": " ".join(map(str, args)),
        "status": done.returncode,
        "seconds": time.perf_counter() - started,
        "out": done.stdout[-2000:],
        "err": done.stderr[-2000:],
    }
    return ended, done.stdout


def train(options: Namespace, recipe: str, name: str, *more: object) -> dict[str, Any]:
    """Run `fcifar train`; return its report, or how it failed."""
    where = ["--device", options.device, "--dataset", options.dataset]
    epochs = ["--epochs", options.epochs] if options.epochs else []
    command = ["fcifar", "train", recipe, "--compile", "--json", "--quiet", *where]
    ended, out = call(*command, "--out", f"{options.folder}/{name}", *epochs, *more)
    if ended["status"]:
        return ended
    return {**json.loads(out), "wall_seconds": ended["seconds"]}


def bits(options: Namespace) -> dict[str, Any]:
    strict = ("--deterministic", "--epochs", 1)
    runs = [train(options, "blitz64", f"bits{i}", *strict) for i in range(2)]
    reproduced, _ = call("fcifar", "reproduce", f"{options.folder}/bits0", "--json", "--quiet")
    return {
        "digests": [run.get("params_digest") for run in runs],
        "reproduced": reproduced["status"] == 0,
        "runs": [_kept(run) for run in runs],
    }


def recipes(options: Namespace) -> dict[str, Any]:
    return {name: _kept(train(options, name, f"recipe-{name}")) for name in RECIPES}


def ninety_four(options: Namespace) -> dict[str, Any]:
    method = ["--replicas", options.seeds, "--replica-method", "loop"]
    summary = train(options, "speed94", "ninety_four", *method)
    if "members" not in summary:
        return summary
    found = {name: summary[name] for name in ("wall_seconds", "members")}
    for name in ("test_accuracy", "tta_accuracy", "train_seconds"):
        if values := [member[name] for member in summary["members"] if name in member]:
            found[name] = confidence.summarize(values)._asdict()
    return found


def replicas(options: Namespace) -> dict[str, Any]:
    alone = train(options, "blitz", "one")
    group = train(options, "blitz", "sixteen", "--replicas", 16, "--replica-method", "vmap")
    return {"alone": _kept(alone), "group": {**_kept(group), "method": group.get("method")}}


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in _KEPT if name in report}


STEPS = ("--name", "cuda_steps", "--network", "lenet", "--batch", 4, "--batch", 512)
PARTS: dict[str, Callable[[Namespace], dict[str, Any]]] = {
    "tests": lambda options: call("pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider")[0],
    "bits": bits,
    "recipes": recipes,
    "ninety_four": ninety_four,
    "steps": lambda options: call("benchmarks.bench_steps", "--device", options.device, *STEPS)[0],
    "replicas": replicas,
    "grads": lambda options: call(
        "benchmarks.bench_grads", "--device", options.device, "--name", "cuda_grads"
    )[0],
}


def main() -> None:
    parser = script.parser(
        __doc__, device="cuda", dataset="cifar10", seeds=10, epochs=int, seconds=540.0, name="cuda"
    )
    parser.add_argument("--part", action="append", choices=list(PARTS))
    options = parser.parse_args()
    config = vars(options).copy()
    path = records.RESULTS / f"{options.name}.json"
    results = records.read(path)["results"] if path.exists() else {}
    started = time.perf_counter()
    for name in options.part or PARTS:
        began = time.perf_counter()
        if began - started > options.seconds:
            print(f"{name}: left for another call", flush=True)
            continue
        with tempfile.TemporaryDirectory() as options.folder:
            results[name] = PARTS[name](options)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        records.write(options.name, config, results)


if __name__ == "__main__":
    main()
