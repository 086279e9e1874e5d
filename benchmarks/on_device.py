"""Everything that needs a GPU, in one call of eight minutes.

    python -m benchmarks.on_device --out DIR [--archive FILE] [--dataset cifar10] [--data-dir DIR]
        [--device cuda] [--seconds 450] [--side 4] [--seeds 20] [--part NAME ...] [--fast]

First, --side at a time, the parts that only check:

* data: `fcifar data import` of --archive, unless the data set is prepared in --data-dir.
* environment: versions, devices and settings.
* tests: `pytest -m cuda`, a process for each file.
* draws: draws on the device, eager and compiled, against those on the CPU.
* recipe: every recipe but ``LEFT_OUT`` for one epoch; those that are measured below to their end.
* bits: digests of two runs of a recipe with --deterministic.
* warm: the compilations of the measurements.

Then, one at a time, the parts that measure; what they compile is in the cache:

* speed94: --seeds seeds; then in turns with the same method in plain PyTorch.
* steps: training steps beside the module, eager and as one compiled CUDA graph.
* blitz: once, and 16 replicas by vmap.
* speed95: three seeds.
* speed96: once.
* grads: gradients of each image beside those of a batch.

Each part is a process with a deadline, and whatever it does, the next one starts. Checks end after
55 % of --seconds. DIR/results.json is replaced after each part, and logs.txt has the output.
Without --data-dir, data is imported to a temporary folder; all caches and runs are temporary.
--part selects parts by the beginnings of their names. --fast tries the script: few seeds, one epoch
and, without --archive, 500 images of noise. On the CPU, recipes are not compiled.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import processes, script
from fcifar import io, random
from fcifar.analysis import confidence
from fcifar.data.paths import path_of
from fcifar.recipes import RECIPES
from fcifar.step_transforms import compile_pure
from fcifar.train import environment, run_dir

ROOT = Path(__file__).parent.parent
CHECKS = 0.55  # share of the time after which no more is checked
KILLED = 10.0  # seconds that a killed process has to end
LARGEST = 2**20  # bytes read of a part's output
MEASURED = ("speed94", "speed95", "speed96", "blitz")
LEFT_OUT = ("resnet56", "resnet110", "preact-resnet18", "wrn-16-8", "wrn-28-10", "mlp-mixer")
SLOWEST = ("speed96", "resnet18", "speed95", "speed94")  # to compile; these start first
DETERMINISTIC = ("blitz64", "speed94")
STEPS = ("--network", "lenet", "--batch", 4, "--batch", 64, "--batch", 512)
CANDIDATES = ("module", "module_compiled", "fcifar_compiled")
_KEPT = (
    *("recipe", "seed", "device", "steps", "epochs", "test_accuracy", "tta_accuracy", "test_loss"),
    *("adapt_seconds", "compile_seconds", "train_seconds", "eval_seconds", "convention_seconds"),
    *("process_seconds", "images_per_second", "params_digest"),
)


class Part(NamedTuple):
    """A process, its deadline, and how to read its results."""

    name: str
    command: Sequence[object]  # after the name of the interpreter
    limit: float  # seconds
    read: Callable[[str], Any] = lambda out: out[-2000:]  # of its standard output
    needs_data: bool = True


# Parts -------------------------------------------------------------------------------------------


def train(options: Namespace, name: str, recipe: str, *more: object, limit: float = 200) -> Part:
    """Return the part that calls `fcifar train`; its results are those of the finished runs."""
    folder = options.work / "runs" / name.replace(" ", "-")
    how = ["--no-compile" if options.device == "cpu" else "--compile", "--device", options.device]
    fast = ["--epochs", 1, "--batch-size", 32] if options.fast else []
    command = ["-m", "fcifar", "train", recipe, *how, "--dataset", options.dataset, *fast, *more]
    command += ["--json", "--quiet", "--out", folder]
    return Part(name, command, limit, lambda out: read_runs(folder))


def read_runs(folder: Path) -> dict[str, Any]:
    """Return the reports of a run, or of those runs of a sweep that have finished."""
    reports = [io.read_json(path) for path in sorted(folder.rglob(run_dir.REPORT))]
    runs = [{name: report[name] for name in _KEPT if name in report} for report in reports]
    if len(runs) < 2:
        return runs[0] if runs else {}
    names = ("test_accuracy", "tta_accuracy", "train_seconds", "convention_seconds")
    values = {name: [run[name] for run in runs if name in run] for name in names}
    means = {n: confidence.summarize(each)._asdict() for n, each in values.items() if each}
    return {"runs": runs, **means}


def bench(options: Namespace, name: str, module: str, *more: object) -> Part:
    """Return the part that calls a script of this folder; its results are those of its record."""
    record = options.work / "records" / name.replace(" ", "-")
    command = ["-m", f"benchmarks.{module}", "--device", options.device, "--name", record, *more]
    limit = 200 if name.startswith("warm") else 100
    return Part(name, command, limit, lambda out: io.read_json(record.with_suffix(".json")))


def benches(options: Namespace, kind: str) -> dict[str, Part]:
    """Return the scripts' parts, by name; as ``kind`` "warm " they mostly compile."""
    few = ["--repetitions", 1] if options.fast or kind else []
    short = ["--seconds", 0.01] if options.fast or kind else []
    of = ["--dataset", options.dataset]
    small = ["--images", 64, "--chunk", 8, "--compiled-chunk", 8] if options.fast else []
    plain = ["--batch-size", 32, "--epochs", 1] if options.fast else []
    plain += ["--no-compile"] if options.device == "cpu" else []
    names = ("module", "fcifar_eager") if options.device == "cpu" else CANDIDATES
    steps = [*STEPS, "--repetitions", 5, *few, *short, *(f"--implementation={n}" for n in names)]
    return {
        "plain": bench(options, f"{kind}speed94 plain", "bench_speed94", *of, *few, *plain),
        "steps": bench(options, f"{kind}steps", "bench_steps", *steps),
        "grads": bench(options, f"{kind}grads", "bench_grads", *of, *few, *small),
    }


def checks(options: Namespace) -> list[Part]:
    """Return the parts that run side by side, in the order in which they start."""
    call = f"from benchmarks import on_device; on_device.{{}}({options.device!r})"
    parts = [
        Part("environment", ["-c", call.format("describe")], 60, json.loads, False),
        Part("draws", ["-c", call.format("compare_draws")], 150, last_line, False),
    ]
    warm = benches(options, "warm ")
    parts.append(warm["steps"]._replace(needs_data=False))
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "mark.cuda" in path.read_text():
            command = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
            command += ["-W", "default", path.relative_to(ROOT)]
            parts.append(Part(f"tests {path.stem}", command, 200, needs_data=False))

    def strict(i: int) -> list[Part]:
        how = ("--deterministic", "--epochs", 1)
        return [train(options, f"bits {name} {i}", name, *how) for name in DETERMINISTIC]

    def recipe(name: str) -> Part:
        epochs = () if name in MEASURED else ("--epochs", 1)
        return train(options, f"recipe {name}", name, *epochs)

    others = [name for name in RECIPES if name not in (*SLOWEST, *LEFT_OUT)]
    parts += [*map(recipe, SLOWEST), *strict(1), warm["grads"], warm["plain"], *strict(2)]
    return [*parts, *map(recipe, others)]


def measurements(options: Namespace) -> list[Part]:
    """Return the parts that run alone, in order of importance."""
    found, seeds = benches(options, ""), 2 if options.fast else options.seeds
    loop = ["--replica-method", "loop", "--replicas"]
    vmap = ["--replica-method", "vmap", "--replicas", 16, "--epochs", 1]
    return [
        train(options, "speed94", "speed94", *loop, seeds, limit=120),
        found["plain"],
        found["steps"],
        train(options, "blitz", "blitz", limit=60),
        train(options, "speed95", "speed95", *loop, 2 if options.fast else 3, limit=80),
        train(options, "speed96", "speed96", limit=80),
        found["grads"],
        train(options, "blitz replicas", "blitz", *vmap, limit=80),
    ]


def preparation(options: Namespace) -> Part | None:
    """Return the part that prepares the data set, unless it is prepared."""
    if path_of(options.dataset, options.data_dir).exists():
        return None
    if options.archive:
        command = ["-m", "fcifar", "data", "import", options.archive, "--name", options.dataset]
        return Part("data", [*command, "--json"], 120, json.loads, False)
    if not options.fast:
        return None
    call = (
        "import sys; from benchmarks import processes as p; p.save_tiny(p.Path(sys.argv[1]), 500)"
    )
    return Part("data", ["-c", call, options.data_dir], 60, needs_data=False)


def last_line(out: str) -> Any:
    """Return the value of the last line of JSON."""
    return json.loads(out.rstrip().rpartition("\n")[2])


def compare_bits(results: dict[str, Any]) -> dict[str, bool]:
    """Return whether the two deterministic runs of each recipe have equal digests."""
    digests = {
        name: [(results[f"bits {name} {i}"]["result"] or {}).get("params_digest") for i in (1, 2)]
        for name in DETERMINISTIC
        if all("result" in results.get(f"bits {name} {i}", {}) for i in (1, 2))
    }
    return {
        name: first is not None and first == second for name, (first, second) in digests.items()
    }


def describe(device: str) -> None:
    """Print the environment as JSON."""
    print(json.dumps(environment.describe()))


DRAWS: dict[str, Callable[[random.Key, torch.Tensor], torch.Tensor]] = {
    "split": lambda key, logits: random.split(key, 7),
    "fold_in": lambda key, logits: random.fold_in(key, 5),
    "from_row": lambda key, logits: random.uniform(random.from_row(key, 3), (999,)),
    "skip_rows": lambda key, logits: random.uniform(random.skip_rows(key, 3), (999,)),
    "bits": lambda key, logits: random.bits(key, (10_007,)),
    "uniform": lambda key, logits: random.uniform(key, (10_007,), -1.0, 3.0),
    "bernoulli": lambda key, logits: random.bernoulli(key, 0.3, (10_007,)),
    "randint": lambda key, logits: random.randint(key, (10_007,), -5, 1000),
    "permutation": lambda key, logits: random.permutation(key, 50_000),
    "normal": lambda key, logits: random.normal(key, (10_007,)),
    "truncated_normal": lambda key, logits: random.truncated_normal(key, -2.0, 1.0, (10_007,)),
    "gumbel": lambda key, logits: random.gumbel(key, (10_007,)),
    "categorical": lambda key, logits: random.categorical(key, logits, shape=(999, 2)),
    "tails": lambda key, logits: random.truncated_normal(key, -3.0, 9.0, (10_007,)),
}


def compare_draws(device: str) -> None:
    """Print for each draw whether it is equal on a device and on the CPU, and the difference.

    A line of JSON after each draw, with all until then.
    """

    def arguments(device: str) -> tuple[random.Key, torch.Tensor]:
        logits = torch.tensor([[0.0, 1.0, 2.0, -1.0], [3.0, 0.0, 0.0, 0.0]], device=device)
        return random.key(42, device=device), logits

    compared: dict[str, dict[str, Any]] = {}
    for name, draw in DRAWS.items():
        expected, compared[name] = draw(*arguments("cpu")), {}
        for how, function in (("eager", draw), ("compiled", compile_pure(draw))):
            try:
                found = function(*arguments(device)).cpu()
                difference = (found.double() - expected.double()).abs().max().item()
                result = {"equal": torch.equal(found, expected), "difference": difference}
            except Exception as error:  # the other draws remain
                result = {"error": f"{error!r}"[:500]}
            compared[name][how] = result
        print(json.dumps(compared), flush=True)


# Running -----------------------------------------------------------------------------------------


def run_parts(
    first: Part | None,
    checks: Sequence[Part],
    measurements: Sequence[Part],
    *,
    out: Path,
    work: Path,
    seconds: float,
    side: int,
    env: Callable[[bool], dict[str, str]] = lambda alone: dict(os.environ),
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run all parts, and return their results by name, as they are in ``out/results.json``.

    Args:
        first: a part that others need, unless there is nothing to prepare.
        checks: run ``side`` at a time, until ``CHECKS`` of the time has passed.
        measurements: run after them, one at a time.
        work: a folder for the parts' output.
        env: ``(alone) -> environment variables``.

    Raises:
        KeyboardInterrupt, SystemExit: by a signal. All processes have been killed then, and the
            results of the parts that have ended are written.
    """
    started, date = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    commit = environment.git_commit()
    lock, prepared, stopping = threading.Lock(), threading.Event(), threading.Event()
    results: dict[str, Any] = {}
    running: set[subprocess.Popen[bytes]] = set()

    def elapsed() -> float:
        return time.monotonic() - started

    def note(name: str, values: dict[str, Any], log: str = "") -> None:
        """Write the results, with those of another part."""
        with lock:
            results[name] = values
            document = {
                "name": "on_device",
                "date": date,
                "commit": commit,
                "environment": results.get("environment", {}).get("result"),
                "config": config or {},
                "seconds": elapsed(),
                "results": results,
            }
            line = f"{name}: {values['status']}, {values.get('seconds', 0):.1f} s"
            with contextlib.suppress(Exception):  # such as a full disk; the next part may fit
                print(f"{elapsed():6.1f} {line}", flush=True)
                io.write_json(out / "results.json", document)
                with (out / "logs.txt").open("a") as file:
                    file.write(f"\n##### {line}\n{log}")

    def run(part: Part, end: float, alone: bool) -> None:
        if part.needs_data:
            prepared.wait()
        limit = min(part.limit, end - elapsed())
        if stopping.is_set():
            return
        if limit < 1:
            note(part.name, {"status": "no time left"})
            return
        began = elapsed()
        paths = [work / f"{part.name.replace(' ', '-')}.{kind}" for kind in ("out", "err")]
        try:
            with paths[0].open("wb") as stdout, paths[1].open("wb") as stderr, lock:
                process = subprocess.Popen(
                    [sys.executable, *map(str, part.command)],
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=ROOT,
                    env=env(alone),
                    process_group=0,
                )
                running.add(process)
                if stopping.is_set():
                    kill(process)
            status: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        except OSError as error:
            note(part.name, {"status": f"did not start: {error}"})
            return
        with lock:
            running.remove(process)
            kill(process)  # what it left behind
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED)
        status = "interrupted" if stopping.is_set() else status
        values: dict[str, Any] = {"status": status, "seconds": elapsed() - began}
        text, err = map(tail, paths)
        try:
            values["result"] = part.read(text)
            json.dumps(values)
        except Exception as error:  # whatever it has written
            values |= {"result": None, "unreadable": f"{error!r}"[:500]}
        if status != 0:
            values |= {"out": text[-2000:], "err": err[-2000:]}
        note(part.name, values, f"{text[-10_000:]}\n{err[-10_000:]}")

    def prepare() -> None:
        try:
            if first:
                run(first, CHECKS * seconds, False)
        finally:
            prepared.set()

    pool = concurrent.futures.ThreadPoolExecutor(side)
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        jobs = [pool.submit(prepare)]
        jobs += [pool.submit(run, part, CHECKS * seconds, False) for part in checks]
        concurrent.futures.wait(jobs)
        for error in filter(None, (job.exception() for job in jobs)):
            print(f"an error of this script: {error!r}", flush=True)
        if same := compare_bits(results):
            note("bits", {"status": 0 if all(same.values()) else 1, "result": same})
        for part in measurements:
            # In the pool, so that a signal finds this thread waiting.
            concurrent.futures.wait([pool.submit(run, part, seconds, True)])
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with lock:
            stopping.set()
            for process in running:
                kill(process)
        raise
    finally:
        prepared.set()
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, previous)
    return results


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and those it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def tail(path: Path) -> str:
    """Return the end of a file, at most ``LARGEST`` bytes."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LARGEST))
        return file.read().decode(errors="replace")
    return ""


def main() -> None:
    parser = script.parser(
        __doc__,
        out=Path,
        archive=Path,
        dataset="cifar10",
        data_dir=Path,
        device="cuda",
        seconds=450.0,
        side=4,
        seeds=20,
    )
    parser.add_argument("--part", action="append", metavar="NAME")
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    if not options.out:
        parser.error("give --out, the folder of results.json and logs.txt")
    if options.fast and not options.archive:
        options.dataset = "tiny"
    config = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    options.archive = options.archive and options.archive.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = str(math.ceil((cores or 1) / options.side))

    def is_chosen(part: Part) -> bool:
        return not options.part or part.name.startswith(tuple(options.part))

    def env(alone: bool) -> dict[str, str]:
        shared = {} if alone else {"OMP_NUM_THREADS": share, "TORCHINDUCTOR_COMPILE_THREADS": share}
        own = {"FCIFAR_DATA": str(options.data_dir), "PYTHONUNBUFFERED": "1"}
        # Shared caches make no part wait for another: torch locks them for single C++ files, and
        # not for a compilation.
        return {**shared, **processes.environment(options.work / "caches"), **own}

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options.work = Path(folder)
        options.data_dir = (options.data_dir or options.work / "data").resolve()
        (options.work / "records").mkdir()
        plan = checks(options), measurements(options)
        try:
            run_parts(
                preparation(options),
                *([part for part in parts if is_chosen(part)] for parts in plan),
                out=options.out,
                work=options.work,
                seconds=options.seconds,
                side=options.side,
                env=env,
                config=config,
            )
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
