"""Whole processes: from the start of Python to the first step, and to the end.

    python -m benchmarks.bench_start [--before CHECKOUT] [--dataset cifar10] [--repetitions 3]

Runs ``fcifar train blitz --compile`` and ``fcifar eval`` of this checkout, in turns with those of
another one (--before), and the tutorial's script with two epochs. Cold processes have empty caches;
the others load what an earlier one compiled. Writes bench_results/start.json.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import processes, records, script
from fcifar import data, recipes
from fcifar.bench import timing
from fcifar.data.paths import path_of

HERE = Path(__file__).parent.parent
_TUTORIAL = """
import sys
from fcifar import data, recipes
from fcifar.bench.reference_models import MODULES
from benchmarks.reference import tutorial_loop
recipe, dataset = recipes.get("blitz"), data.load(sys.argv[1], data.data_root())
tutorial_loop.train(recipe, dataset, epochs=2)
net = MODULES[recipe.model](**recipe.model_options)
print(tutorial_loop.accuracy(net, dataset.test_images, dataset.test_labels))
"""


class Checkout:
    """A checkout of fcifar, with caches of its own."""

    def __init__(self, tree: Path, folder: Path, dataset: str) -> None:
        self.tree, self.folder = tree, folder
        self.train = ["train", "blitz", "--dataset", dataset, "--compile", "--threads", "1"]
        self.runs = 0

    def environment(self, caches: Path | None = None) -> dict[str, str]:
        """The variables of a process with empty caches, or with those of this checkout."""
        caches = caches or self.folder / "caches"
        own = processes.environment(caches)
        own["FCIFAR_DATA"] = str(data.data_root())
        own["PYTHONPATH"] = str(self.tree)
        own.pop("PYTHONDONTWRITEBYTECODE", None)
        return own

    def out(self) -> Path:
        """A new run directory."""
        self.runs += 1
        return self.folder / f"run{self.runs}"

    def call(self, *words: object) -> tuple[float, str]:
        """Run a command to its end; return the seconds, and what it printed."""
        command = [sys.executable, "-m", "fcifar", *map(str, words)]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return time.perf_counter() - started, done.stdout

    def whole(self, epochs: int) -> dict[str, Any]:
        """Train to the end; return the report, with the seconds of the process and the run."""
        out = self.out()
        seconds, text = self.call(
            *self.train, "--epochs", epochs, "--json", "--quiet", "--out", out
        )
        return {**json.loads(text), "wall": seconds, "out": out}

    def first_step(self, caches: Path | None = None) -> float:
        """Start training; return the seconds to the first step."""
        command = [sys.executable, "-m", "fcifar", *self.train, "--epochs", "1"]
        command += ["--log-every", "1", "--out", str(self.out())]
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=self.environment(caches),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch"):
                break
        seconds = time.perf_counter() - started
        processes.stop(process)
        return seconds

    def peak(self) -> int:
        """The peak memory of a whole process, in bytes."""
        words = [*self.train, "--epochs", "1", "--quiet", "--out", str(self.out())]
        return processes.peak_memory(processes.FCIFAR, words, variables=self.environment())


def measure(checkout: Checkout, number: int) -> dict[str, float]:
    """Return the seconds of every kind of process, once."""
    one, two = checkout.whole(1), checkout.whole(2)
    return {
        "first step": checkout.first_step(),
        "first step, cold": checkout.first_step(checkout.folder / f"cold{number}"),
        "process without training": one["wall"] - one["train_seconds"],
        "step, batch 4": two["train_seconds"] / two["steps"],
        "two epochs, process": two["wall"],
        "eval": checkout.call("eval", one["out"], "--quiet", "--json")[0],
    }


def main() -> None:
    parser = script.parser(__doc__, before=Path, dataset="cifar10", repetitions=3)
    options = parser.parse_args()
    recipe, path = recipes.get("blitz"), path_of(options.dataset, data.data_root())
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        checkouts = {"now": Checkout(HERE, Path(made) / "now", options.dataset)}
        if options.before:
            before = Checkout(options.before.resolve(), Path(made) / "before", options.dataset)
            checkouts = {"before": before, **checkouts}
        for checkout in checkouts.values():
            checkout.folder.mkdir()
            checkout.first_step()  # fills the caches
            checkout.whole(1)
        load = timing.load()
        for repetition in range(options.repetitions):
            for name, checkout in checkouts.items():
                for what, value in measure(checkout, repetition).items():
                    seconds.setdefault(what, {}).setdefault(name, []).append(value)
                    print(time.strftime("%H:%M:%S"), f"{what}, {name}: {value:.4g} s", flush=True)
            if repetition < 2:
                started = time.perf_counter()
                command = [sys.executable, "-c", _TUTORIAL, options.dataset]
                subprocess.run(command, check=True, cwd=HERE, stdout=subprocess.DEVNULL)
                value = time.perf_counter() - started
                seconds["two epochs, process"].setdefault("tutorial", []).append(value)
                print(time.strftime("%H:%M:%S"), f"tutorial: {value:.4g} s", flush=True)
        torch_alone = processes.peak_memory("import torch")
        beyond = torch_alone + path.stat().st_size
        peak = {name: checkout.peak() - beyond for name, checkout in checkouts.items()}
        others = timing.used_by_others(load, timing.load())
    medians = {what: records.medians(each) for what, each in seconds.items()}
    results = {"seconds": seconds, "medians": medians, "peak_bytes_beyond_torch_and_data": peak}
    for what, each in medians.items():
        print(what, {name: f"{value:.4g} s" for name, value in each.items()})
    print({name: f"{size / 2**20:.0f} MiB" for name, size in peak.items()})
    print(timing.busy_notice(others))
    config = {
        "dataset": options.dataset,
        "repetitions": options.repetitions,
        "batch_size": recipe.batch_size,
        "other_processes": others,
        "before": _commit(options.before) if options.before else None,
    }
    print(records.write("start", config, results))


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
