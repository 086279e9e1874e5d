"""What a result depends on besides the recipe: versions, machine, compilers."""

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

# Those that change how kernels are chosen or built, or how sums are cut into threads.
_VARIABLES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "VECLIB_", "DNNL_", "ONEDNN_"),
    *("ATEN_CPU_CAPABILITY", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_"),
    *("CUBLAS_", "CUDA_", "CUDNN_", "NVIDIA_TF32"),
    *("CXX", "LD_PRELOAD", "GLIBC_TUNABLES"),
)
# They say where files lie, or how threads wait, which changes no result.
_WITHOUT_RESULT = (
    *("CUDA_HOME", "CUDA_PATH", "TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "TRITON_CACHE_DIR"),
    *("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"),
)
# Parts of the package that only show or move what was computed.
_NOT_COMPUTING = {"bench", "cli", "report", "export"}


def versions() -> dict[str, str]:
    """Versions of everything whose change may change a result."""
    packages = ("torchvision", "numpy", "optree", "safetensors")
    return {
        "fcifar": fcifar.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which the package's version leaves out
        **{name: importlib.metadata.version(name) for name in packages},
    }


def describe(models: Iterable[str] = ()) -> dict[str, Any]:
    """The environment of runs of some models, as values that JSON holds."""
    own = {name: digest for name in sorted({*models}) if (digest := module_digest(name))}
    return {
        "versions": versions(),
        "code": code_digest(),
        **({"model_code": ", ".join(f"{name} {d}" for name, d in own.items())} if own else {}),
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
        "variables": {
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(_VARIABLES) and name not in _WITHOUT_RESULT
        },
    }


def code_digest() -> str:
    """The beginning of a SHA-256 over those modules of fcifar that a result can depend on."""
    package = Path(fcifar.__file__).resolve().parent
    found = (path.relative_to(package) for path in package.rglob("*.[pc]*"))
    parts = [
        f"{path.as_posix()}\n".encode() + (package / path).read_bytes()
        for path in sorted(found)
        if path.suffix in (".py", ".c") and path.parts[0] not in _NOT_COMPUTING
    ]
    return _short_digest(b"\n".join(parts))


def module_digest(model: str) -> str:
    """The beginning of a SHA-256 of the file that MODULE:FACTORY names; empty for other models."""
    if not recipes.is_import(model):
        return ""
    module, _ = recipes.imported("the model", model)
    file = getattr(module, "__file__", None)
    return _short_digest(Path(file).read_bytes()) if file else ""


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def git_commit() -> str | None:
    """The commit of the checkout that fcifar is imported from; None for an installed package."""
    package = Path(fcifar.__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    words = ["git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    return _output(words).strip() or None


def check_compiler(device: str) -> None:
    """Make sure that ``torch.compile`` has the compiler it will call.

    Raises:
        UsageError: there is none; the message says what to install.
    """
    if device == "mps" or shutil.which(compiler()):
        return
    raise UsageError(
        f"torch.compile needs a C++ compiler, and {compiler()!r} is not on this machine; install "
        "one (Debian and Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; macOS: "
        "xcode-select --install) or train with --no-compile"
    )


def _compiler_version() -> str | None:
    if not shutil.which(compiler()):
        return None
    return (_output([compiler(), "--version"]).splitlines() or [compiler()])[0]


def _output(words: Sequence[str]) -> str:
    return subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    capability = torch.cuda.get_device_capability
    cuda = [
        f"cuda:{i} ({torch.cuda.get_device_name(i)}, sm_{''.join(map(str, capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def since_process_start() -> float:
    """Seconds that this program has taken so far.

    They count from the first import of ``fcifar``, with the processor time that was taken before:
    starting Python and what was imported is in it; what a shell did before, as in
    ``sleep 10; exec fcifar``, is not, and would be in the age of the process.
    """
    return time.monotonic() - fcifar.IMPORTED.monotonic + fcifar.IMPORTED.processor
