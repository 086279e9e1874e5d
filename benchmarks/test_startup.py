"""Start-up times, each in its own process."""

import itertools
import subprocess
from pathlib import Path

import pytest

from benchmarks import processes

pytestmark = pytest.mark.slow

STARTS = {
    "python": ("-c", "pass"),
    "import_torch": ("-c", "import torch"),
    "import_torch_and_its_compiler": ("-c", processes.IMPORT_COMPILER),
    "import_fcifar": ("-c", "import fcifar"),
    "everything_of_fcifar": (
        "-c",
        "import fcifar; [getattr(fcifar, name) for name in fcifar.__all__]",
    ),
    "fcifar_help": ("-m", "fcifar", "--help"),
}


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("name", STARTS)
def test_start(benchmark, name: str) -> None:
    benchmark.name = name
    benchmark.pedantic(processes.run, (STARTS[name],), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="train to first step")
@pytest.mark.parametrize("name", ["eager", "compiled_cold", "compiled_warm"])
def test_train_to_first_step(benchmark, tmp_path: Path, name: str) -> None:
    """Cold: with empty caches of compiled code. Warm: with the code of an earlier process."""
    benchmark.name = name
    processes.save_tiny(tmp_path / "data")
    number = itertools.count()
    options = ("--device", "cpu", *(["--compile"] if name != "eager" else []))

    def setup() -> tuple[tuple[Path], dict]:
        cold = name == "compiled_cold"
        return (tmp_path / (f"caches{next(number)}" if cold else "caches"),), {}

    def start(caches: Path) -> None:
        out = tmp_path / f"run{next(number)}"
        started.append(processes.until_first_step(tmp_path / "data", out, caches, *options))

    def stop(caches: Path) -> None:
        processes.stop(started.pop())

    started: list[subprocess.Popen] = []
    benchmark.pedantic(
        start, setup=setup, teardown=stop, rounds=3, warmup_rounds=int(name != "compiled_cold")
    )
    for process in started:  # --benchmark-disable skips the teardown
        processes.stop(process)
