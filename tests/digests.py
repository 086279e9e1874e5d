"""Digests of what training computes, to compare before and after a change of its code.

    python -m tests.digests --out before.json            # on the commit to start from
    python -m tests.digests --out after.json --compare before.json

Each case is a small, seeded training by the command line: every recipe, eager and compiled; a
resumed run; replicas and a sweep by both methods; two processes; early stopping; the digest that
``fcifar reproduce`` comes to. Its digests are those of the state at each log point and of the final
parameters. They depend on the machine and on torch, so compare records of one machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SMALL = {
    "speednet": ("widths=8,12,16",),
    "resnet18": ("width=4",),
    "resnet20": ("width=4",),
    "preact_resnet18": ("width=4",),
    "wrn": ("depth=10", "width=1", "dropout=0.3"),
    "vit_tiny": ("patch=8", "width=12", "depth=2"),
    "mlp_mixer": ("patch=8", "width=12", "depth=2", "token_hidden=8", "channel_hidden=24"),
}
"""Values that make a model quick to train, by its name."""

DEEPER = ("resnet56", "resnet110", "wrn-28-10")
"""Recipes that differ from resnet20 and wrn-16-8 in their depth, their width and a warm-up."""

Case = Callable[[Path], dict[str, Any]]


def cases() -> dict[str, Case]:
    """What to train, by name."""
    from fcifar.recipes import RECIPES

    found: dict[str, Case] = {}
    for name, recipe in RECIPES.items():
        if name in DEEPER:
            continue
        small = [word for value in SMALL.get(recipe.model, ()) for word in ("--set", value)]
        for how in ("--no-compile", "--compile"):
            found[f"{name} {how}"] = _of_run([name, how, *small])
    conv3 = ["conv3-aug", "--no-compile", "--patience", "1", "--lr", "0.1", "--epochs", "8"]
    found["early stopping"] = _of_run([*conv3, "--valid-fraction", "0.25"])
    found["resumed"] = lambda folder: _resumed(folder, ["blitz", "--compile"])
    found["resumed with best epoch"] = lambda folder: _resumed(
        folder, ["conv3-aug", "--no-compile", "--valid-fraction", "0.25"]
    )
    for method in ("loop", "vmap"):
        for how in ("--no-compile", "--compile"):
            many = [how, "--replica-method", method]
            found[f"replicas {method} {how}"] = _of_group(
                ["blitz", "--replicas", "3", "--valid-fraction", "0.25", *many]
            )
        found[f"sweep {method}"] = _of_group(
            [
                *("dropout-adam", "--no-compile", "--sweep", "lr=0.001,0.003", "--replicas", "2"),
                *("--replica-method", method, "--patience", "1", "--valid-fraction", "0.25"),
            ]
        )
    for how in ("--no-compile", "--compile"):
        found[f"two ranks {how}"] = _of_run(["blitz", how], ranks=2)
    speed = ["speed90", "--no-compile", "--set", "widths=8,12,16"]
    found["two ranks, batch norm"] = _of_run(speed, ranks=2)
    found["two ranks, sweep"] = _of_group(["blitz", "--no-compile", "--replicas", "3"], ranks=2)
    gradients = ["--micro-batch", "5", "--sam-rho", "0.05", "--momentum", "0"]
    for how in ("--no-compile", "--compile"):
        for optimizer in ("schedule_free", "schedule_free_adamw"):
            words = ["blitz", how, *gradients, "--optimizer", optimizer]
            found[f"sam, micro-batches, {optimizer} {how}"] = _of_run(words)
    found["two ranks, sam, micro-batches"] = _of_run(["blitz", "--no-compile", *gradients], ranks=2)
    found["resumed, sam, micro-batches"] = lambda folder: _resumed(
        folder, ["blitz", "--no-compile", *gradients, "--optimizer", "schedule_free"]
    )
    found["reproduced"] = lambda folder: _reproduced(folder, ["blitz", "--compile"])
    found["reproduced in part"] = lambda folder: _reproduced(
        folder, ["conv3-aug", "--no-compile"], "--until", "7"
    )
    return found


def _of_run(words: Sequence[str], ranks: int = 1) -> Case:
    def run(folder: Path) -> dict[str, Any]:
        _train(folder, words, ranks)
        return read(folder / "run")

    return run


def _of_group(words: Sequence[str], ranks: int = 1) -> Case:
    def run(folder: Path) -> dict[str, Any]:
        _train(folder, words, ranks)
        return {path.parent.name: read(path.parent) for path in _reports(folder / "run")}

    return run


def _resumed(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """A run that goes on after all but its first checkpoints are gone."""
    _train(folder, [*words, "--checkpoint-every", "5", "--keep-checkpoints", "50"])
    run = folder / "run"
    checkpoints = sorted(run.glob("checkpoint-*.safetensors"))
    for path in [run / "report.json", run / "final.safetensors", *checkpoints[2:]]:
        path.unlink()
    _fcifar(["train", "--resume", str(run), "--data-dir", str(folder.parent), "--quiet"])
    return read(run)


def _reproduced(folder: Path, words: Sequence[str], *more: str) -> dict[str, Any]:
    _train(folder, words)
    where = ["--data-dir", str(folder.parent), "--json", "--quiet"]
    found = json.loads(_fcifar(["reproduce", str(folder / "run"), *more, *where]))
    return {"digest": found["digest"], "identical": found["identical"], **read(folder / "run")}


def _train(folder: Path, words: Sequence[str], ranks: int = 1) -> None:
    length = [] if "--epochs" in words else ["--epochs", "2"]
    size = ["--batch-size", "16", "--log-every", "2", "--seed", "7", "--threads", "1"]
    where = ["--dataset", "small", "--data-dir", str(folder.parent), "--out", str(folder / "run")]
    _fcifar(["train", *words, *length, *size, *where, "--quiet"], ranks)


def _fcifar(words: Sequence[str], ranks: int = 1) -> str:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    start = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "fcifar", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(start)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _reports(group: Path) -> list[Path]:
    return sorted(group.glob("*/report.json"))


def read(run: Path) -> dict[str, Any]:
    """The digests of a run directory: of each log point, and of the final parameters."""
    file = run / "digests.jsonl"
    lines = (file if file.exists() else run / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    final = json.loads((run / "report.json").read_text())["params_digest"]
    return {"log": [f"{p['step']} {p['digest']}" for p in points], "final": final}


def make_data(folder: Path) -> None:
    """Save the data set ``small``: noise, 120 training and 40 test images of ten classes."""
    import torch

    from fcifar import data, random
    from fcifar.data import Split, make_dataset

    def split(key: random.Key, count: int) -> Split:
        images = random.randint(key, (count, 3, 32, 32), 0, 256).to(torch.uint8)
        return Split(images, torch.arange(count) % 10)

    keys = random.split(random.key(0))
    train, test = split(keys[0], 120), split(keys[1], 40)
    data.save(make_dataset("small", train, test, tuple("abcdefghij"), "noise"), folder)


def main() -> None:
    """Train every case, write the record, and compare it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    parser.add_argument("--compare", type=Path, help="exit 1 unless equal to this record")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    chosen = parser.parse_args()
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        make_data(Path(root))
        for number, (name, case) in enumerate(cases().items()):
            if chosen.only not in name:
                continue
            started = time.perf_counter()
            folder = Path(root) / f"case{number}"
            folder.mkdir()
            record[name] = case(folder)
            print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")
    if chosen.compare:
        before = json.loads(chosen.compare.read_text())
        differing = [name for name in record if record[name] != before.get(name)]
        print(f"{len(record) - len(differing)} of {len(record)} cases are equal")
        for name in differing:
            print(f"differs: {name}")
        sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
