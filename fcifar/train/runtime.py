"""The runtime: where and how exactly a program computes, as one explicit value.

Nothing else in fcifar touches a switch of torch. Pure code never sees a ``Runtime``; it gets a
device through its tensors. The seed is not part of it: it belongs to the experiment (config.py).
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fcifar.errors import UsageError, shown
from fcifar.precision import POLICIES, Policy
from fcifar.recipes.checks import check_choice, check_count, check_switch

LARGEST_WORLD = 100_000  # processes
GRAIN = 100_000_000  # floating-point operations of a step that pay for a thread: docs/speed.md


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """device: such as ``cpu``, ``cuda:0`` or ``mps``.
    threads: of torch's CPU kernels; results depend on it in the last bits.
    precision: ``fp32`` or ``bf16`` arithmetic; parameters are float32 in both.
    deterministic: run only kernels that give the same bits each time.
    processes: how many divide each batch, or a group of runs; results depend on it in the last
        bits.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    deterministic: bool = True
    processes: int = 1

    def __post_init__(self) -> None:
        _check_device(self.device)
        check_count("--threads", self.threads, 1, 1024)
        check_count("processes", self.processes, 1, LARGEST_WORLD)
        check_choice("--precision", self.precision, POLICIES)
        check_switch("deterministic", self.deterministic)

    @property
    def policy(self) -> Policy:
        """The dtypes of ``precision``."""
        return POLICIES[self.precision]


def make_runtime(
    *,
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    preferred: str = "fp32",
    deterministic: bool | None = None,
    processes: int = 1,
    step_flops: float = math.inf,
) -> Runtime:
    """A ``Runtime`` with the open questions answered for this machine.

    ``auto`` is the first of CUDA, MPS and CPU that is there. ``threads`` defaults to one for each
    ``GRAIN`` of ``step_flops``, the floating-point operations of a step in one process, and at most
    to what torch takes, one a physical core; ``deterministic`` to true on the CPU; ``precision`` to
    the ``preferred`` one, or to fp32 on a CPU without instructions for it. Each of several
    processes computes on a CUDA device of its own (``on_rank``), the first on the first.
    """
    if device == "auto":
        device = next((d for d in ("cuda", "mps") if _available(d)), "cpu")
    if processes > 1 and device.startswith("cuda:"):
        raise UsageError(
            f"--device {device} was asked for, and each of {processes} processes takes a CUDA "
            "device of its own; give --device cuda"
        )
    if device == "cuda":
        device = "cuda:0"
    if precision is None:
        precision = preferred if device != "cpu" or _has_bf16() else "fp32"
    return Runtime(
        device=device,
        threads=_useful_threads(step_flops) if threads is None else threads,
        precision=precision,
        deterministic=device == "cpu" if deterministic is None else deterministic,
        processes=processes,
    )


def _useful_threads(step_flops: float) -> int:
    """Threads synchronise many times a step. In a small step they save little, and whenever another
    process takes a core, every one of them waits for the one that is not running.
    """
    most = torch.get_num_threads()
    return most if step_flops >= most * GRAIN else max(1, int(step_flops / GRAIN))


def on_rank(device: str, local: int) -> str:
    """The device of process number ``local`` of a host, where the first one's is ``device``."""
    return f"cuda:{local}" if local and device.startswith("cuda") else device


@contextlib.contextmanager
def activate(runtime: Runtime) -> Iterator[None]:
    """Set torch's switches to what ``runtime`` says, and put them back at the end."""
    before, exact = read_switches(), runtime.deterministic
    wanted = {
        "threads": runtime.threads,
        "deterministic_mode": 2 if exact else 0,
        "matmul_precision": "highest" if exact else "high",
        "cudnn.deterministic": exact,
        "cudnn.benchmark": not exact,
        "cudnn.allow_tf32": not exact,
        # Filling fresh memory would hide reads of it, at a price; no operation here reads any.
        "fill_uninitialized_memory": False,
        # cuBLAS reads it when CUDA starts; only these settings make it repeatable.
        _CUBLAS: before[_CUBLAS] or (":4096:8" if exact else None),
    }
    try:
        _write_switches(wanted)
        yield
    finally:
        _write_switches(before)


def read_switches() -> dict[str, Any]:
    """Every switch that ``activate`` sets, as values that JSON holds."""
    return {name: get() for name, (get, _) in _SWITCHES.items()}


def _write_switches(values: dict[str, Any]) -> None:
    for name, value in values.items():
        _SWITCHES[name][1](value)


def _set_cublas(value: str | None) -> None:
    os.environ.pop(_CUBLAS, None) if value is None else os.environ.update({_CUBLAS: value})


def _attribute(holder: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return partial(getattr, holder, name), partial(setattr, holder, name)


_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "threads": (torch.get_num_threads, torch.set_num_threads),
    # As use_deterministic_algorithms, which would import the compiler: seconds, unneeded. That has
    # a switch of its own, which kernels.backend sets from this one.
    "deterministic_mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{
        f"cudnn.{name}": _attribute(torch.backends.cudnn, name)
        for name in ("deterministic", "benchmark", "allow_tf32")
    },
    "fill_uninitialized_memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
    _CUBLAS: (partial(os.environ.get, _CUBLAS), _set_cublas),
}


def _available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu"


def _has_bf16() -> bool:
    """Whether the processor multiplies bf16; others only convert it, which is slow."""
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in known if hasattr(torch.cpu, name))


# As torch spells them: without a colon that nothing follows, and without leading zeros.
_DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")


def _check_device(name: str) -> None:
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"--device is {shown(name)}; it must be auto, cpu, cuda, cuda:N or mps")
    kind, _, index = name.partition(":")
    if not _available(kind):
        raise UsageError(
            f"--device {name} was asked for, but torch {torch.__version__} finds no "
            f"{kind.upper()} device here; use --device cpu or --device auto"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name} was asked for, but there are {torch.cuda.device_count()} "
            "CUDA devices, counted from 0; use one of them"
        )
