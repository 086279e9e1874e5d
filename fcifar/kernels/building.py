"""C into a shared library, once for each set of macros, processor and compiler."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from fcifar.errors import UserError, WorldError

# Sums are never reordered; a multiplication and an addition become one instruction.
FLAGS = (
    *("-x", "c", "-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC"),
)


def why_not() -> str | None:
    """Why kernels of our own cannot be had on this machine; None where they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are for Linux on x86-64, and this is {platform.system()} {platform.machine()}"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return "they are written for AVX-512, which this processor does not offer to torch"
    if not shutil.which(compiler()):
        return f"there is no compiler {compiler()!r}"
    return None


def compiler() -> str:
    """The compiler, which is that of ``torch.compile``."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX") or default


def load(source: Path, macros: Mapping[str, int]) -> ctypes.CDLL:
    """The library that ``source`` makes under ``macros``, built unless it is there already.

    Raises:
        UserError: the compiler is missing, or refuses.
        WorldError: the library cannot be written, or not loaded.
    """
    return _load(source, tuple(sorted(macros.items())))


@functools.cache
def _load(source: Path, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    arguments = [*FLAGS, *(f"-D{name}={value}" for name, value in macros)]
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, *(a.encode() for a in arguments), _target()]))
    path = _folder() / f"{source.stem}-{key.hexdigest()[:24]}.so"
    if not path.exists():
        _build(source, arguments, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise WorldError(
            f"cannot load the kernel {path} ({error}); delete it, or let TORCHINDUCTOR_CACHE_DIR "
            "name a folder from which programs may run"
        ) from error


def _build(source: Path, arguments: list[str], path: Path) -> None:
    """Write the library under another name first: another process may be doing the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".so")
        os.close(handle)
    except OSError as error:
        raise WorldError(f"cannot write a kernel to {path.parent}: {error.strerror}") from error
    try:
        _call([*arguments, str(source), "-o", partial])
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


@functools.cache
def _target() -> bytes:
    """What the compiler makes of this processor, and which compiler it is: its own macros."""
    return _call([*FLAGS, "-dM", "-E", os.devnull])


def _call(arguments: list[str]) -> bytes:
    command = [compiler(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"cannot run the compiler {command[0]!r}: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise UserError(f"the compiler {command[0]!r} refused {arguments[-3]!r}: {reason}")
    return done.stdout


def _folder() -> Path:
    """Beside what ``torch.compile`` keeps."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "fcifar"
