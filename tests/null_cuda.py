"""What the CUDA path does, counted without a GPU.

    python -m tests.null_cuda OUT [--recipe NAME ...] [--mode MODE ...] [--write]

OUT is the folder of a CUDA runtime that computes nothing and notes each launch, copy and wait
(``libnullcudart.so``, ``libnulllibs.so``, ``libcuda.so.1``). It is not part of this project. Torch,
inductor, Triton and its assembler run on it as they do on a GPU, up to the kernels themselves. For
each recipe, eager and compiled, this counts what a step, the order of an epoch, an evaluation and
the initial state do, and measures the time of the host.

It fails if a step copies between host and device or waits, if an evaluation or an epoch waits more
than once, or if something is launched more often than in ``golden/null_cuda.json``, the record.
"""

import argparse
import collections
import ctypes
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "golden/null_cuda.json"
QUICK = ("blitz", "dropout-adam", "conv3-aug", "speed94")  # compiled in minutes, not tens of them
MODES = ("eager", "compiled")
LIBRARIES = ("libnullcudart.so", "libnulllibs.so")
_LAUNCHES = {"K": "kernels", "T": "triton", "L": "library", "G": "graphs"}
_TEST_IMAGES = 10_000


# Counting ----------------------------------------------------------------------------------------


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    for name, kind in (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_char),
        ("count", ctypes.c_long),
    ):
        getattr(library, f"nullcuda_{name}").restype = kind
    for name in ("name", "kind"):
        getattr(library, f"nullcuda_{name}").argtypes = [ctypes.c_long]
    return library


def take_notes() -> list[tuple[str, str]]:
    """Return the kind and the name of each call since the last time."""
    library = _library()
    notes = [
        (library.nullcuda_kind(i).decode(), library.nullcuda_name(i).decode())
        for i in range(library.nullcuda_count())
    ]
    library.nullcuda_reset()
    return notes


def counted(notes: list[tuple[str, str]]) -> dict[str, int]:
    """Return the numbers of launches by kind, of copies between host and device, and of waits."""
    counts = collections.Counter(
        _LAUNCHES[kind] for kind, name in notes if kind in _LAUNCHES and "capture" not in name
    )
    crossing = sum(kind == "M" and name in ("H2D", "D2H") for kind, name in notes)
    waits = sum(kind == "S" for kind, _ in notes)
    return {**counts, "copies": crossing, "waits": waits}


def captured(notes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what the last captured graph has in it."""
    names = [name for _, name in notes]
    if "end capture" not in names:
        return []
    end = len(names) - names[::-1].index("end capture")
    begin = len(names[:end]) - names[:end][::-1].index("begin capture")
    return notes[begin : end - 1]


def host_microseconds(function: Callable[[], Any], repetitions: int, rounds: int = 5) -> float:
    """Return the least time of a call, with nothing noted."""
    library = _library()
    library.nullcuda_pause(0)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repetitions):
            function()
        best = min(best, (time.perf_counter() - started) / repetitions)
    library.nullcuda_pause(1)
    return round(best * 1e6, 1)


def answer_nonzero() -> Any:
    """Let ``nonzero`` find every element, because the number of its results would be noise."""
    import torch

    def nonzero(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(x.shape).nonzero().to(x.device)

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):
        library.impl("nonzero", nonzero, "CUDA")
    return library


# Measuring ---------------------------------------------------------------------------------------


def measure(name: str, mode: str) -> dict[str, Any]:
    """Count what the parts of a run of a recipe do."""

    from fcifar import recipes
    from fcifar.bench import bench
    from fcifar.data import Split, make_dataset
    from fcifar.train.config import make_config
    from fcifar.train.evaluate import evaluate
    from fcifar.train.runtime import activate, make_runtime
    from fcifar.train.setup import make_training

    library = answer_nonzero()
    take_notes()
    train = bench.synthetic(50_000)
    images, labels = train.train_images, train.train_labels
    test = Split(images[:_TEST_IMAGES], labels[:_TEST_IMAGES])
    dataset = make_dataset("noise", Split(images, labels), test, train.classes, "noise")
    recipe, found = recipes.get(name), {}
    runtime = make_runtime(device="cuda", preferred=recipe.precision, threads=1)
    with activate(runtime):
        config = make_config(recipe, dataset, runtime=runtime, compile=mode == "compiled")
        training = make_training(config, dataset)
        take_notes()
        started = time.perf_counter()
        state = training.init()
        found["init"] = counted(take_notes())
        found["init"]["seconds"] = round(time.perf_counter() - started, 2)
        list(zip(training.inputs(0), range(2), strict=False))  # captures the order
        take_notes()
        inputs = [each for each, _ in zip(training.inputs(0), range(20), strict=False)]
        found["epoch"] = counted(take_notes())
        step = training.stages[0]
        started = time.perf_counter()
        for each in inputs[:4]:
            state, _ = step(state, each)
        found["first_seconds"] = round(time.perf_counter() - started, 1)
        found["graph"] = counted(captured(take_notes()))
        state, _ = step(state, inputs[4])
        found["step"] = counted(take_notes())
        turn = iter(range(10**9))
        repetitions = 300 if mode == "compiled" else 30
        found["step"]["host_us"] = host_microseconds(
            lambda: step(state, inputs[next(turn) % len(inputs)]), repetitions
        )
        eval_step, variables = training.eval_views_step, training.value(state.state)
        for _ in range(2):
            take_notes()
            started = time.perf_counter()
            evaluate(eval_step, variables, training.test)
            seconds = time.perf_counter() - started
        found["evaluation"] = {**counted(take_notes()), "seconds": round(seconds, 3)}
    del library
    return found


def wrong(name: str, mode: str, now: dict[str, Any], then: dict[str, Any] | None) -> list[str]:
    """Return what is not as it must be, a line each."""
    lines = [
        f"{what}: {now[part][what]} in the {part} of {name}, {mode}; at most {most}"
        for part, most in (("step", 0), ("epoch", 0), ("evaluation", 1))
        for what in ("copies", "waits")
        if now[part][what] > most
    ]
    for part in ("step", "graph", "epoch", "evaluation") if then else ():
        for what in _LAUNCHES.values():
            before, after = then[part].get(what, 0), now[part].get(what, 0)  # type: ignore[index]
            if after > before:
                lines.append(f"{what}: {after} in the {part} of {name}, {mode}; it was {before}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the runtime")
    parser.add_argument("--recipe", action="append", help=f"default: {', '.join(QUICK)}")
    parser.add_argument("--mode", action="append", choices=MODES, help="default: both")
    parser.add_argument("--write", action="store_true", help="write the record instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(*options.one.split(":"))))
        return
    if missing := [name for name in LIBRARIES if not (options.out / name).exists()]:
        sys.exit(f"{options.out} has no {' and no '.join(missing)}")
    import torch

    version = torch.__version__.partition("+")[0]
    out = options.out.absolute()
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(str(out / name) for name in LIBRARIES),
        "LD_LIBRARY_PATH": str(out),
        "TRITON_LIBCUDA_PATH": str(out),
        "OMP_NUM_THREADS": "1",
        # Constants are folded on the device: what is compiled here is wrong on a real one.
        "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor"),
        "TRITON_CACHE_DIR": str(out / "triton"),
    }
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known = record.setdefault(version, {})
    lines: list[str] = []
    for name in options.recipe or QUICK:
        for mode in options.mode or MODES:
            command = [sys.executable, "-m", "tests.null_cuda", str(out), "--one", f"{name}:{mode}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name}, {mode}: {done.stderr[-3000:]}")
            key = f"{name} {mode}"
            found = json.loads(done.stdout.splitlines()[-1])
            print(key, json.dumps(found), flush=True)
            lines += wrong(name, mode, found, None if options.write else known.get(key))
            if options.write:
                known[key] = found
                RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if lines:
        sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
