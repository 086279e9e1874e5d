"""The runtime: device, threads, precision and determinism, as one explicit value.

The only module that sets torch's global flags. Pure code takes its device from its tensors.
"""

import contextlib
import math
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from fcifar.errors import UsageError, shown
from fcifar.precision import POLICIES, Policy
from fcifar.recipes.checks import check_choice, check_count, check_switch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_ATTRIBUTES = {
    "cudnn.deterministic": (torch.backends.cudnn, "deterministic"),
    "cudnn.benchmark": (torch.backends.cudnn, "benchmark"),
    "cudnn.allow_tf32": (torch.backends.cudnn, "allow_tf32"),
    "fill_uninitialized_memory": (torch.utils.deterministic, "fill_uninitialized_memory"),
}
GRAIN = 100_000_000  # floating-point operations of a step per useful thread: docs/speed.md


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """device: such as ``cpu``, ``cuda:0`` or ``mps``.
    threads: of torch's CPU kernels; changes results by rounding.
    precision: ``fp32`` or ``bf16`` arithmetic; parameters are float32 in both.
    deterministic: use only kernels that are bitwise reproducible.
    processes: that divide each batch, or a group of runs; changes results by rounding.
    """

    device: str = "cpu"
    threads: int = 1
    precision: str = "fp32"
    deterministic: bool = True
    processes: int = 1

    def __post_init__(self) -> None:
        _check_device(self.device)
        check_count("--threads", self.threads, 1, 1024)
        check_count("processes", self.processes, 1, 100_000)
        check_choice("--precision", self.precision, POLICIES)
        check_switch("deterministic", self.deterministic)

    @property
    def policy(self) -> Policy:
        """The dtype policy of ``precision``."""
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
    """Return a ``Runtime`` with defaults for this machine.

    ``auto`` is the first available of CUDA, MPS and CPU. ``threads`` defaults to one per ``GRAIN``
    of ``step_flops``, the floating-point operations of a step in one process, at most torch's
    default of one per physical core; ``deterministic`` to true on the CPU; ``precision`` to
    ``preferred``, or to fp32 on a CPU without bf16 arithmetic. Each of several processes uses its
    own CUDA device (``on_rank``).
    """
    if device == "auto":
        device = next((d for d in ("cuda", "mps") if _available(d)), "cpu")
    if processes > 1 and device.startswith("cuda:"):
        raise UsageError(
            f"--device is {device}, and each of {processes} processes takes its own CUDA device; "
            "give --device cuda"
        )
    if device == "cuda":
        device = "cuda:0"
    if precision is None:
        precision = preferred if device != "cpu" or _has_bf16() else "fp32"
    if threads is None:
        # Threads synchronise many times a step. In a small step they save little, and whenever
        # another process takes a core, all of them wait for the one that is not running.
        most = torch.get_num_threads()
        threads = most if step_flops >= most * GRAIN else max(1, int(step_flops / GRAIN))
    return Runtime(
        device=device,
        threads=threads,
        precision=precision,
        deterministic=device == "cpu" if deterministic is None else deterministic,
        processes=processes,
    )


def on_rank(device: str, local_rank: int) -> str:
    """Return the device of a process by its local rank; ``device`` is that of local rank 0."""
    return f"cuda:{local_rank}" if local_rank and device.startswith("cuda") else device


@contextlib.contextmanager
def activate(runtime: Runtime) -> Generator[None]:
    """Set torch's global flags as ``runtime`` says, and restore them at the end."""
    before, exact = read_switches(), runtime.deterministic
    values = {
        "threads": runtime.threads,
        "deterministic_mode": 2 if exact else 0,
        "matmul_precision": "highest" if exact else "high",
        "cudnn.deterministic": exact,
        "cudnn.benchmark": not exact,
        "cudnn.allow_tf32": not exact,
        # Costs time, and no operation here reads uninitialized memory.
        "fill_uninitialized_memory": False,
        # cuBLAS reads it when CUDA starts; only these values make it deterministic.
        _CUBLAS: before[_CUBLAS] or (":4096:8" if exact else None),
    }
    try:
        _write_switches(values)
        yield
    finally:
        _write_switches(before)


def read_switches() -> dict[str, Any]:
    """Return every flag that ``activate`` sets, as JSON-serializable values."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic_mode": torch.get_deterministic_debug_mode(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name: getattr(*attribute) for name, attribute in _ATTRIBUTES.items()},
        _CUBLAS: os.environ.get(_CUBLAS),
    }


def _write_switches(values: dict[str, Any]) -> None:
    torch.set_num_threads(values["threads"])
    # Not use_deterministic_algorithms, which takes seconds to import the compiler; kernels.backend
    # sets the compiler's own flag from this one.
    torch.set_deterministic_debug_mode(values["deterministic_mode"])
    torch.set_float32_matmul_precision(values["matmul_precision"])
    for name, (module, attribute) in _ATTRIBUTES.items():
        setattr(module, attribute, values[name])
    os.environ.pop(_CUBLAS, None)
    if values[_CUBLAS] is not None:
        os.environ[_CUBLAS] = values[_CUBLAS]


def _available(kind: str) -> bool:
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    return kind == "cpu" or backends[kind].is_available()


def _has_bf16() -> bool:
    """Whether the CPU has bf16 arithmetic; without it, bf16 is emulated and slow."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in names if hasattr(torch.cpu, name))


_DEVICE = re.compile(r"cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?")


def _check_device(name: str) -> None:
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"--device is {shown(name)}; it must be auto, cpu, cuda, cuda:N or mps")
    kind, _, index = name.partition(":")
    if not _available(kind):
        raise UsageError(
            f"--device is {name}, but torch {torch.__version__} finds no {kind.upper()} device; "
            "use --device cpu or --device auto"
        )
    if index and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"--device is {name}, but there are {torch.cuda.device_count()} CUDA devices, numbered "
            "from 0; use one of them"
        )
