"""Kernels written in C: compiled and cached, and registered as operations of torch.

A library is compiled once for each set of macros, processor and compiler.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fcifar.errors import ExternalError, UsageError

# No reordering of sums; multiplications and additions are fused.
FLAGS = (
    *("-x", "c", "-std=gnu11", "-O3", "-march=native", "-mprefer-vector-width=512"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC"),
)
_OPS = torch.library.Library("fcifar", "DEF")


def define(
    schema: str,
    function: Any,
    fake: Any,
    tags: Sequence[torch.Tag] = (),
    *,
    vmap: Any = None,
    cuda: Any = None,
) -> Any:
    """Define an operation of ``torch.ops.fcifar`` on the CPU, and optionally on CUDA.

    Args:
        fake: returns empty results.
        vmap: as for ``torch.library.register_vmap``.
    """
    name = schema.partition("(")[0]
    _OPS.define(schema, tags=tuple(tags))
    _OPS.impl(name, function, "CPU")
    if cuda is not None:
        _OPS.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"fcifar::{name}", fake, lib=_OPS)
    if vmap is not None:
        torch.library.register_vmap(f"fcifar::{name}", vmap, lib=_OPS)
    return getattr(torch.ops.fcifar, name).default


def why_not() -> str | None:
    """Why the kernels cannot be used on this machine; None if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they are for Linux on x86-64, and this is {platform.system()} {platform.machine()}"
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return "they are written for AVX-512, which this processor does not offer to torch"
    if not shutil.which(compiler()):
        return f"there is no compiler {compiler()!r}"
    return None


def why_not_bfloat16() -> str | None:
    """Why kernels with bfloat16 cannot be used on this machine; None if they can."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "the processor has no instructions for bfloat16"
    return why_not()


def compiler() -> str:
    """The C++ compiler of ``torch.compile``."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX") or default


def load(source: Path, macros: Mapping[str, int]) -> ctypes.CDLL:
    """Load the library of ``source`` with ``macros``, compiled unless it is in the cache.

    Raises:
        UsageError: the compiler is missing, or fails.
        ExternalError: the library cannot be written or loaded.
    """
    arguments = [*FLAGS, *(f"-D{name}={value}" for name, value in sorted(macros.items()))]
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256(b"\0".join([*texts, *(a.encode() for a in arguments), target()]))
    path = _folder() / f"{source.stem}-{key.hexdigest()[:24]}.so"
    if not path.exists():
        _build(source, arguments, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise ExternalError(
            f"cannot load the kernel {path} ({error}); delete it, or set "
            "TORCHINDUCTOR_CACHE_DIR to a folder that allows execution"
        ) from error


def _build(source: Path, arguments: list[str], path: Path) -> None:
    """Compile to another name first, because another process may do the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".so")
        os.close(handle)
    except OSError as error:
        raise ExternalError(f"cannot write a kernel to {path.parent}: {error.strerror}") from error
    try:
        call([*arguments, str(source), "-o", partial])
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


@functools.cache
def target() -> bytes:
    """The compiler's predefined macros, which identify its version and the processor."""
    return call([*FLAGS, "-dM", "-E", os.devnull])


@functools.cache
def has_float16() -> bool:
    """Whether the processor multiplies float16: Intel's do, since Sapphire Rapids.

    On those that do, one instruction for pairs of bfloat16 takes as long as 4 for float16 or for
    float32. AMD's, since Zen 4, only have the instruction for bfloat16, and a fast one.
    """
    return b"#define __AVX512FP16__ 1" in target()


def call(arguments: Sequence[str], folder: Path | None = None) -> bytes:
    """Run the compiler, in a folder; return its output.

    Raises:
        UsageError: it is missing, or fails.
    """
    command = [compiler(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
    except OSError as error:
        raise UsageError(f"cannot run the compiler {command[0]!r}: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise UsageError(f"the compiler {command[0]!r} refused {arguments[-3]!r}: {reason}")
    return done.stdout


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "fcifar"


def prepare_cache() -> dict[str, Any]:
    """Allow spaces and quotes in the path of ``torch.compile``'s cache; return inductor's settings.

    Torch splits the compiler's command line at spaces. For such a path ``TORCHINDUCTOR_CACHE_DIR``
    is set to a symbolic link to the folder; an ExternalError is raised if none can be made.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folder = cache_dir()
    if not _is_one_word(folder):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _link_to(folder)
    # Precompiled headers are always in the default folder.
    headers = _is_one_word(default_cache_dir())
    return {} if headers else {"cpp_cache_precompile_headers": False}


def _is_one_word(path: str) -> bool:
    """Whether a path stays one word of a command line."""
    try:
        return sys.platform == "win32" or shlex.split(path) == [path]
    except ValueError:  # an unmatched quote
        return False


def _link_to(folder: str) -> str:
    """Return a symbolic link of this user to a folder, and make it if it is missing."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"fcifar-{user}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    parents = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~")]
    for parent in filter(_is_one_word, parents):
        link = os.path.join(parent, name)
        try:
            with contextlib.suppress(FileExistsError):
                os.symlink(folder, link)
            # Another user may have made it, in a folder that all may write to.
            if os.readlink(link) == folder and os.lstat(link).st_uid == user:
                return link
        except OSError:
            continue
    raise ExternalError(
        f"torch.compile cannot keep its files in {folder!r}, whose path is not a single word of a "
        "command line; set TORCHINDUCTOR_CACHE_DIR to a folder without spaces and quotes"
    )
