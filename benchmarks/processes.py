"""What is measured from outside: seconds and memory of whole processes, as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fcifar import data
from fcifar.bench import bench

# Says at the end how much memory this process had in use at most. The system's count of a child is
# no help: it begins at what the parent had.
_PEAK = """
import atexit, re, sys
def say():
    status = open("/proc/self/status").read()
    print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", status).group(1), file=sys.stderr, flush=True)
atexit.register(say)
"""
IMPORT_COMPILER = "import torch._dynamo, torch._inductor.compile_fx"
_MAIN = "import fcifar.cli; fcifar.cli.main()"


def run(words: Sequence[str], caches: Path | None = None) -> None:
    """Run Python with ``words``, to its end."""
    subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment(caches)
    )


def environment(caches: Path | None) -> dict[str, str]:
    """That of this process, with all that is kept between runs in ``caches``."""
    if caches is None:
        return dict(os.environ)
    places = {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "XDG_CACHE_HOME": str(caches),
    }
    return {**os.environ, **places}


def save_tiny(folder: Path) -> None:
    """A prepared data set named tiny, which takes no time to read."""
    data.save(bench.synthetic(256)._replace(name="tiny"), folder)


def until_first_step(folder: Path, out: Path, caches: Path, *options: str) -> subprocess.Popen:
    """Start ``fcifar train`` on the set of ``save_tiny``; back when it tells of its first step."""
    words = [
        *("-m", "fcifar", "train", "--dataset", "tiny", "--data-dir", str(folder)),
        *("--log-every", "1", "--out", str(out), *options),
    ]
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(caches),
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("epoch"):
            return process
    raise RuntimeError(f"fcifar train made no step: {''.join(said)}")


def stop(process: subprocess.Popen) -> None:
    """End a training."""
    process.terminate()
    process.communicate()


def peak_memory(code: str, words: Sequence[str] = (), caches: Path | None = None) -> int:
    """The most bytes that a Python process had in use while it ran ``code`` with ``words``."""
    result = subprocess.run(
        [sys.executable, "-c", _PEAK + code, *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(caches),
    )
    last = [line for line in result.stderr.splitlines() if line.startswith("peak ")][-1]
    return 1024 * int(last.split()[1])


def peak_memory_of_command(words: Sequence[str], caches: Path | None = None) -> int:
    """The same, of ``fcifar`` with ``words``."""
    return peak_memory(_MAIN, words, caches)
