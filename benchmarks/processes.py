"""Programs in processes of their own, as a user starts them: their output, seconds and memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fcifar import data
from fcifar.bench import bench

# Prints the peak memory of the process at its end. The resource usage of a child that the system
# reports starts at the memory of its parent.
_PEAK = """
import atexit, re, sys
def report():
    status = open("/proc/self/status").read()
    print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", status).group(1), file=sys.stderr, flush=True)
atexit.register(report)
"""
IMPORT_COMPILER = "import torch._dynamo, torch._inductor.compile_fx"
FCIFAR = "import fcifar.cli; fcifar.cli.main()"


def run(args: Sequence[str]) -> None:
    """Run Python with ``args``."""
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.DEVNULL)


def environment(caches: Path | None) -> dict[str, str]:
    """Return the environment variables of this process, with all caches in ``caches``."""
    if caches is None:
        return dict(os.environ)
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "XDG_CACHE_HOME": str(caches),
        "FCIFAR_CACHE": str(caches / "programs"),
    }
    return {**os.environ, **folders}


# Training ----------------------------------------------------------------------------------------


def train(recipe: str, *args: object) -> dict[str, Any]:
    """Run ``fcifar train RECIPE --compile``; return its report with ``process_seconds``."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = ["-m", "fcifar", "train", recipe, "--compile", "--json", "--quiet"]
        command += ["--out", f"{folder}/run", *map(str, args)]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=True
        )
        report = json.loads(done.stdout)
    return {**report, "process_seconds": time.perf_counter() - started}


def save_tiny(folder: Path, size: int = 256) -> Path:
    """Save a data set of noise named tiny, and return its path."""
    return data.save(bench.synthetic(size)._replace(name="tiny"), folder)


def until_first_step(folder: Path, out: Path, caches: Path, *options: str) -> subprocess.Popen:
    """Start ``fcifar train`` on the data of ``save_tiny``, and return after its first step."""
    args = [
        *("-m", "fcifar", "train", "--dataset", "tiny", "--data-dir", str(folder)),
        *("--log-every", "1", "--out", str(out), *options),
    ]
    process = subprocess.Popen(
        [sys.executable, *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(caches),
    )
    assert process.stderr is not None
    printed = []
    for line in process.stderr:
        printed.append(line)
        if line.startswith("epoch"):
            return process
    raise RuntimeError(f"fcifar train made no step: {''.join(printed)}")


def stop(process: subprocess.Popen) -> None:
    """Stop a training."""
    process.terminate()
    process.communicate()


# Memory ------------------------------------------------------------------------------------------


def peak_memory(
    code: str,
    args: Sequence[str] = (),
    caches: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Return the peak memory, in bytes, of a Python process that runs ``code`` with ``args``."""
    result = subprocess.run(
        [sys.executable, "-c", _PEAK + code, *args],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(caches) if variables is None else variables,
    )
    last = [line for line in result.stderr.splitlines() if line.startswith("peak ")][-1]
    return 1024 * int(last.split()[1])
