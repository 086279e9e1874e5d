"""Kernels with float16 on processors without it: ``float16.h`` stands in for the instructions."""

import ctypes
import functools
import tempfile
from pathlib import Path

from fcifar.kernels import build

FLAGS = ("-mavx512fp16", "-DEMULATED", "-include", str(Path(__file__).with_name("float16.h")))


@functools.cache
def library(source: Path, macros: tuple[tuple[str, int], ...]) -> ctypes.CDLL:
    """Build and load a kernel."""
    defined = [f"-D{name}={value}" for name, value in macros]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kernel.so"
        build.call([*build.FLAGS, *FLAGS, *defined, str(source), "-o", path])
        return ctypes.CDLL(path)
