"""C into a shared library, once for each set of macros, processor and compiler."""

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fcifar.errors import ExternalError, UsageError

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
        UsageError: the compiler is missing, or refuses.
        ExternalError: the library cannot be written, or not loaded.
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
        raise ExternalError(
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
        raise ExternalError(f"cannot write a kernel to {path.parent}: {error.strerror}") from error
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
        raise UsageError(f"cannot run the compiler {command[0]!r}: {error.strerror}") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise UsageError(f"the compiler {command[0]!r} refused {arguments[-3]!r}: {reason}")
    return done.stdout


def _folder() -> Path:
    """Beside what ``torch.compile`` keeps."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "fcifar"


def prepare_cache() -> dict[str, Any]:
    """Let ``torch.compile`` keep its files in a folder with a space or a quote in its path.

    Torch makes one string of the compiler's command line, and splits it again at spaces, so that
    such a path becomes two. Where there is one, ``TORCHINDUCTOR_CACHE_DIR`` is set to a symbolic
    link to the folder.

    Returns:
        settings of inductor that are needed as well.

    Raises:
        ExternalError: such a link cannot be made anywhere.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folder = cache_dir()
    if not _survives(folder):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = _link_to(folder)
    # Precompiled headers always lie in the default folder.
    headers = sys.platform != "win32" and not _survives(default_cache_dir())
    return {"cpp_cache_precompile_headers": False} if headers else {}


def _survives(path: str) -> bool:
    """Whether a path stays one word of a command line."""
    try:
        return sys.platform == "win32" or shlex.split(path) == [path]
    except ValueError:  # a quote without another
        return False


def _link_to(folder: str) -> str:
    """A symbolic link of this user's to a folder, made unless it is there."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    name = f"fcifar-{user}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~")]
    for place in filter(_survives, places):
        link = os.path.join(place, name)
        try:
            with contextlib.suppress(FileExistsError):
                os.symlink(folder, link)
            # In a folder that all may write to, another user might have made it.
            if os.readlink(link) == folder and os.lstat(link).st_uid == user:
                return link
        except OSError:
            continue
    raise ExternalError(
        f"torch.compile cannot keep its files in {folder!r}, whose path is not a single word of a "
        "command line; let TORCHINDUCTOR_CACHE_DIR name a folder without spaces and quotes"
    )
