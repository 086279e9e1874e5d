"""The runtime: switches set and put back, devices and signals."""

import os
import platform
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch

from fcifar import recipes
from fcifar.errors import UsageError
from fcifar.precision import BF16, FP32
from fcifar.recipes import check_seed
from fcifar.train.config import RunConfig
from fcifar.train.runtime import GRAIN, Runtime, activate, make_runtime, on_rank
from fcifar.train.signals import catching_signals


def switches() -> dict[str, object]:
    cudnn = torch.backends.cudnn
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.mark.parametrize("deterministic", [True, False])
def test_flags_are_set_and_restored(deterministic: bool) -> None:
    before = switches()
    with activate(Runtime(threads=2, deterministic=deterministic)):
        inside = switches()
        assert inside["threads"] == 2
        assert inside["deterministic"] is deterministic
        assert inside["cudnn"] == (deterministic, not deterministic, not deterministic)
        assert inside["matmul"] == ("highest" if deterministic else "high")
    assert switches() == before
    with pytest.raises(RuntimeError, match="boom"), activate(Runtime(deterministic=True)):
        raise RuntimeError("boom")
    assert switches() == before


def test_runtime_defaults() -> None:
    runtime = make_runtime(device="cpu")
    assert runtime == Runtime(device="cpu", threads=torch.get_num_threads(), deterministic=True)
    assert make_runtime(device="auto").device in ("cpu", "cuda:0", "mps")
    assert make_runtime(device="cpu", deterministic=False).deterministic is False
    assert (runtime.policy, Runtime(precision="bf16").policy) == (FP32, BF16)


def test_threads_depend_on_the_flops_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every start, for the bits of a run depend on it; never more than torch takes."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    for grains, threads in ((0.01, 1), (1.99, 1), (2, 2), (7.5, 7), (8, 8), (1e6, 8)):
        assert make_runtime(device="cpu", step_flops=grains * GRAIN).threads == threads
    assert make_runtime(device="cpu", threads=3, step_flops=1).threads == 3
    assert make_runtime(device="cpu").threads == 8
    of = {name: recipes.count_flops(recipes.get(name)) for name in ("blitz", "blitz10", "speed90")}
    assert of["blitz"] == 4 * of["blitz10"] / 10
    # Forward 2 x 25 x 3 x 6 x 28^2 + 2 x 25 x 6 x 16 x 10^2 + the three linear layers.
    forward = 2 * (25 * 18 * 784 + 25 * 96 * 100 + 400 * 120 + 120 * 84 + 84 * 10)
    assert of["blitz"] == 3 * forward * 4
    assert of["blitz"] < GRAIN < of["speed90"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "tpu"}, "must be auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cpu:0"}, "must be auto"),
        ({"device": "cuda:x"}, "must be auto"),
        ({"device": "cpu:"}, "must be auto"),
        ({"device": "cuda:"}, "must be auto"),
        ({"device": "cuda:01"}, "must be auto"),
        ({"device": "cuda:\N{ARABIC-INDIC DIGIT THREE}"}, "must be auto"),
        ({"device": "cuda:" + "9" * 5000}, "must be auto"),
        ({"threads": 0}, "from 1 up to 1,024"),
        ({"precision": "fp8"}, "fp32, bf16"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_runtime(**values)


@pytest.mark.parametrize(
    "seed", [2**32, -(2**31) - 1, pytest.param(10**5000, id="huge"), 1.0, "1", True, None]
)
def test_a_wrong_seed_is_named(seed: Any, config: RunConfig) -> None:
    for make in (check_seed, lambda seed: config.replace(seed=seed)):
        with pytest.raises(UsageError, match=r"--seed is .*; it must (lie in|be a whole number)"):
            make(seed)


@pytest.mark.parametrize("seed", [2**32 - 1, -(2**31), 0])
def test_the_largest_seeds_are_accepted(seed: int, config: RunConfig) -> None:
    assert config.replace(seed=check_seed(seed)).seed == seed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_gpu_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--device is cuda:0.*use --device cpu"):
        make_runtime(device="cuda")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_caught_and_the_second_is_not(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    if before == signal.SIG_IGN:
        pytest.skip("whoever started the tests has this signal ignored, and so do we")
    with catching_signals() as stop:
        assert stop() is None
        signal.raise_signal(signum)
        assert stop() == signum
        if signum == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signum)
    assert signal.getsignal(signum) is before


@pytest.mark.parametrize(
    ("device", "local", "expected"),
    [
        ("cpu", 0, "cpu"),
        ("cpu", 1, "cpu"),
        ("cuda:0", 0, "cuda:0"),
        ("cuda:0", 3, "cuda:3"),
        ("cuda:1", 0, "cuda:1"),  # one process on the device that was asked for
    ],
)
def test_each_process_of_a_host_has_a_device_of_its_own(
    device: str, local: int, expected: str
) -> None:
    assert on_rank(device, local) == expected


_ALLOCATE = """
import resource, torch
from fcifar import cli

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

cli.main = lambda: print([new_pages() for _ in range(10)][-1])
cli.entry()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_memory_that_is_freed_is_kept() -> None:
    command = [sys.executable, "-c", _ALLOCATE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "64 MB are 15,625 pages"
