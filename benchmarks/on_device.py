"""Everything that only an accelerator can show, in one call.

    python -m benchmarks.on_device [--device cuda] [--dataset cifar10] [--seeds 10]
                                   [--part NAME ...] [--epochs N] [--seconds 540] [--name cuda]

Parts, in order, each in processes of its own:

* tests: `pytest -m cuda`, keys and draws against the CPU among them.
* bits: a recipe trained twice with --deterministic ends with the same digest; so does one resumed.
* recipes: every recipe once, as `fcifar train RECIPE --compile --device DEVICE`.
* ninety_four: speed94 with --seeds seeds in one program; mean, interval, and both timings.
* steps: times of steps against plain PyTorch, eager and compiled.
* replicas: 16 of blitz mapped by vmap, against one alone.
* grads: gradients of each example against those of the batch.

What a part prints is kept; a part that fails is recorded as such, and the next begins. After
--seconds no other begins: call again with the parts that are left. --epochs shortens the runs, to
try the script itself. Writes bench_results/NAME.json after each part; parts of an earlier record
that are not run again stay.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import records
from fcifar.analysis import confidence
from fcifar.recipes import RECIPES

_KEPT = (
    *("recipe", "seed", "device", "test_accuracy", "tta_accuracy", "test_loss", "train_seconds"),
    *("compile_seconds", "convention_seconds", "process_seconds", "images_per_second"),
    *("params_digest", "epochs", "interrupted"),
)


class Asked(NamedTuple):
    """What all parts are told."""

    device: str
    dataset: str
    seeds: int
    epochs: int | None
    folder: str


def call(*words: object) -> dict[str, Any]:
    """Run a module in a process of its own: its exit status, seconds, and what it printed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "command": " ".join(map(str, words)),
        "status": done.returncode,
        "seconds": time.perf_counter() - started,
        "out": done.stdout,
        "err": done.stderr[-2000:],
    }


def train(asked: Asked, recipe: str, name: str, *more: object) -> dict[str, Any]:
    """`fcifar train`: its report, or how it failed."""
    short = ["--epochs", asked.epochs] if asked.epochs else []
    where = ["--device", asked.device, "--dataset", asked.dataset, "--out"]
    done = call(
        *("fcifar", "train", recipe, "--compile", "--json", "--quiet", *where),
        *(f"{asked.folder}/{name}", *short, *more),
    )
    if done["status"]:
        return done
    return {**json.loads(done.pop("out")), "wall_seconds": done["seconds"]}


def tests(asked: Asked) -> dict[str, Any]:
    done = call("pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider")
    return {**done, "out": done["out"][-2000:]}


def bits(asked: Asked) -> dict[str, Any]:
    strict = "--deterministic"
    runs = [train(asked, "blitz64", f"bits{i}", strict, "--epochs", 1) for i in range(2)]
    found = call("fcifar", "reproduce", f"{asked.folder}/bits0", "--json", "--quiet")
    return {
        "digests": [run.get("params_digest") for run in runs],
        "reproduced": found["status"] == 0,
        "runs": [_chosen(run) for run in runs],
    }


def recipes(asked: Asked) -> dict[str, Any]:
    return {name: _chosen(train(asked, name, f"recipe-{name}")) for name in RECIPES}


def ninety_four(asked: Asked) -> dict[str, Any]:
    method = ["--replicas", asked.seeds, "--replica-method", "loop"]
    summary = train(asked, "speed94", "ninety_four", *method)
    if "members" not in summary:
        return summary
    found = {"wall_seconds": summary["wall_seconds"], "members": summary["members"]}
    for name in ("test_accuracy", "tta_accuracy", "train_seconds"):
        values = [member[name] for member in summary["members"] if name in member]
        if values:
            found[name] = confidence.summarize(values)._asdict()
    return found


def steps(asked: Asked) -> dict[str, Any]:
    done = call(
        *("benchmarks.steps", "--device", asked.device, "--name", "cuda_steps"),
        *("--network", "lenet", "--batch", 4, "--batch", 512),
    )
    return {**done, "out": done["out"][-2000:]}


def replicas(asked: Asked) -> dict[str, Any]:
    alone = train(asked, "blitz", "one")
    group = train(asked, "blitz", "sixteen", "--replicas", 16, "--replica-method", "vmap")
    return {
        "alone": _chosen(alone),
        "group": {name: group.get(name) for name in (*_KEPT, "method", "wall_seconds", "err")},
    }


def grads(asked: Asked) -> dict[str, Any]:
    done = call("benchmarks.grads", "--device", asked.device, "--name", "cuda_grads")
    return {**done, "out": done["out"][-2000:]}


def _chosen(report: dict[str, Any]) -> dict[str, Any]:
    kept = (*_KEPT, "wall_seconds", "status", "err")
    return {name: report[name] for name in kept if name in report}


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    part.__name__: part for part in (tests, bits, recipes, ninety_four, steps, replicas, grads)
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--part", action="append", choices=list(PARTS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--name", default="cuda", help="of the record")
    options = parser.parse_args()
    path = records.RESULTS / f"{options.name}.json"
    results = records.read(path)["results"] if path.exists() else {}
    started = time.perf_counter()
    for name in options.part or PARTS:
        if time.perf_counter() - started > options.seconds:
            print(f"{name}: left for another call", flush=True)
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            asked = Asked(options.device, options.dataset, options.seeds, options.epochs, folder)
            results[name] = PARTS[name](asked)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        records.write(options.name, vars(options), results)


if __name__ == "__main__":
    main()
