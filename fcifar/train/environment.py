"""The environment of a run: versions, machine, compilers."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import fcifar
from fcifar import kernels, recipes
from fcifar.errors import UsageError
from fcifar.kernels.build import compiler
from fcifar.train import distributed
from fcifar.train.runtime import read_switches

# Environment variables that affect the choice or the build of kernels, or threading.
_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "VECLIB_", "DNNL_", "ONEDNN_"),
    *("ATEN_CPU_CAPABILITY", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_"),
    *("CUBLAS_", "CUDA_", "CUDNN_", "NVIDIA_TF32"),
    *("CXX", "LD_PRELOAD", "GLIBC_TUNABLES"),
)
# Exceptions: locations of files, and how threads wait.
_WITHOUT_EFFECT = (
    *("CUDA_HOME", "CUDA_PATH", "TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "TRITON_CACHE_DIR"),
    *("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"),
)
# Parts of the package that no training result depends on.
_NOT_TRAINING = {"bench", "cli", "report", "export"}


def describe(models: Iterable[str] = ()) -> dict[str, Any]:
    """Return the environment of runs of ``models``, as JSON-serializable values."""
    imported = [f"{name} {digest}" for name in sorted({*models}) if (digest := module_digest(name))]
    return {
        "versions": _versions(),
        "code": code_digest(),
        **({"model_code": ", ".join(imported)} if imported else {}),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "torch_build": _short_digest(torch.__config__.show().encode()),
        "switches": read_switches(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": _devices(),
        "distributed": distributed.available(),
        "compiler": _compiler_version(),
        "kernels": kernels.why_not() or "yes",
        "variables": _variables(),
    }


def of_programs() -> dict[str, Any]:
    """Return what a compiled program depends on besides its function, as JSON-serializable values.

    Quick to compute: no other process is started.
    """
    return {**_of_machine(), "threads": torch.get_num_threads(), "switches": read_switches()} | {
        "variables": _variables()
    }


@functools.cache
def _of_machine() -> dict[str, Any]:
    return {
        "code": code_digest(),
        "versions": _versions(),
        "torch": torch.version.git_version,
        "torch_build": _short_digest(torch.__config__.show().encode()),
        "cpu": _cpu_name(),
        "cpu_flags": _short_digest(_cpu_line("flags").encode()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernels.why_not() or "yes",
    }


def find_compiler() -> str | None:
    """Return the path of the C++ compiler; None if there is none."""
    return shutil.which(compiler())


def compiler_digest() -> str:
    """Return a short SHA-256 of the C++ compiler's path, size and time; empty if there is none."""
    found = find_compiler()
    if found is None:
        return ""
    path = Path(found).resolve()
    status = path.stat()
    return _short_digest(f"{path} {status.st_size} {status.st_mtime_ns}".encode())


def _versions() -> dict[str, str]:
    packages = ("torchvision", "numpy", "optree", "safetensors")
    return {
        "fcifar": fcifar.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, unlike the package's version
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _variables() -> dict[str, str]:
    return {
        name: os.environ[name]
        for name in sorted(os.environ)
        if name.startswith(_VARIABLES) and name not in _WITHOUT_EFFECT
    }


@functools.cache
def code_digest() -> str:
    """Return a short SHA-256 of the modules of fcifar that a result can depend on."""
    package = Path(fcifar.__file__).resolve().parent
    paths = (path.relative_to(package) for path in package.rglob("*.[pch]*"))
    parts = [
        f"{path.as_posix()}\n".encode() + (package / path).read_bytes()
        for path in sorted(paths)
        if path.suffix in (".py", ".c", ".h") and path.parts[0] not in _NOT_TRAINING
    ]
    return _short_digest(b"\n".join(parts))


def module_digest(model: str) -> str:
    """Return a short SHA-256 of the file of a MODULE:FACTORY; empty for other models."""
    if not recipes.is_import(model):
        return ""
    module, _ = recipes.imported("the model", model)
    file = getattr(module, "__file__", None)
    return _short_digest(Path(file).read_bytes()) if file else ""


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout of fcifar; None for an installed package."""
    package = Path(fcifar.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    return _output(command).strip() or None


def check_compiler(device: str) -> None:
    """Raise a UsageError unless ``torch.compile`` has a compiler on this machine."""
    if device == "mps" or find_compiler():
        return
    raise UsageError(
        f"torch.compile needs a C++ compiler, and {compiler()!r} is not on this machine; install "
        "one (Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: "
        "xcode-select --install) or train with --no-compile"
    )


def _compiler_version() -> str | None:
    return _version_of(compiler()) if find_compiler() else None


@functools.cache
def _version_of(program: str) -> str:
    return (_output([program, "--version"]).splitlines() or [program])[0]


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    return done.stdout


def _cpu_name() -> str:
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_line(name: str) -> str:
    """Return the value of a line about the first processor; empty if there is none."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""


def _devices() -> list[str]:
    capability = torch.cuda.get_device_capability
    cuda = [
        f"cuda:{i} ({torch.cuda.get_device_name(i)}, sm_{''.join(map(str, capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def since_process_start() -> float:
    """Return the seconds since Python started in this process.

    Measured from the first import of ``fcifar``, plus the processor time used before it. The age of
    the process would include what a shell did before, as in ``sleep 10; exec fcifar``.
    """
    return time.monotonic() - fcifar.IMPORTED.monotonic + fcifar.IMPORTED.processor
