"""Small files that claim or become something enormous, read by a process with little memory."""

import gzip
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.helpers import forms

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory")

ROOM = 100 * 2**20  # bytes that may be taken beyond those of the imports
SECONDS = 5.0

# Imports each file of a folder and prints what came of it, and the seconds of the processor.
CHILD = """
import json, os, resource, sys, time
from pathlib import Path
import torch, PIL.Image
from fcifar import data
from fcifar.data import image_files
from fcifar.errors import UsageError, ExternalError

torch.set_num_threads(1)
folder, room = Path(sys.argv[1]), int(sys.argv[2])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
for source in sorted(folder.iterdir()):
    started, message = time.process_time(), ""
    try:
        if source.suffix == ".safetensors":
            data.load(source.stem, folder)
        elif source.suffix == ".png":
            image_files.read(source)
        else:
            data.import_source(source, "set", folder / "root")
    except (UsageError, ExternalError) as error:
        message = str(error)
    except BaseException as error:
        message = f"a {type(error).__name__} of Python's own"
    print(json.dumps([source.name, message, time.process_time() - started]))
"""


def zipped(name: str, content: bytes, method: int, claims: int) -> bytes:
    """A zip of one member that claims to be of another size, with a checksum to suit."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr(name, content)
    archive = bytearray(stream.getvalue())
    for place in (14, archive.rfind(b"PK\1\2") + 16):
        archive[place : place + 4] = struct.pack("<I", zlib.crc32(content[:claims]))
        archive[place + 8 : place + 12] = struct.pack("<I", claims)
    return bytes(archive)


def promised(name: str, size: int) -> bytes:
    """A stored member without content, whose two sizes are ``size``."""
    archive = bytearray(zipped(name, b"", zipfile.ZIP_STORED, 0))
    for place in (18, archive.rfind(b"PK\1\2") + 20):
        archive[place : place + 8] = struct.pack("<II", size, size)
    return bytes(archive)


def overlapping() -> bytes:
    """Thousands of members that are one and the same, of 30 MB unpacked."""
    archive = zipped("train/a/00000.png", bytes(30_000_000), zipfile.ZIP_DEFLATED, 30_000_000)
    start, end = archive.rfind(b"PK\1\2"), archive.rfind(b"PK\5\6")
    entry = archive[start:end]
    entries = b"".join(entry.replace(b"00000", b"%05d" % row) for row in range(5000))
    tail = struct.pack("<HHHHIIH", 0, 0, 5000, 5000, len(entries), start, 0)
    return archive[:start] + entries + b"PK\5\6" + tail


def nested() -> bytes:
    inside = zipped("train/a/0.png", bytes(10_000_000), zipfile.ZIP_DEFLATED, 10_000_000)
    return zipped("train/a/0.png", inside, zipfile.ZIP_DEFLATED, len(inside))


def tarred(*members: tuple[str, bytes, bytes, int]) -> bytes:
    """A tar of (name, type, content, size claimed)."""
    data = bytearray()
    for name, kind, content, size in members:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size = kind, size
        data += entry.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return bytes(data) + bytes(1024)


def tar(kind: bytes, content: bytes, times: int = 1) -> bytes:
    image = ("train/a/0.png", b"0", b"", 0)
    return gzip.compress(tarred(*[("x", kind, content, len(content)), image] * times), 1)


def with_array(descr: str, shape: str) -> bytes:
    files = {"train_images.npy": forms.TRAIN_IMAGES, "test_images.npy": forms.TEST_IMAGES}
    files |= {"train_labels.npy": forms.TRAIN_LABELS, "test_labels.npy": forms.TEST_LABELS}
    stream = io.BytesIO()
    np.savez(stream, **{name.removesuffix(".npy"): array for name, array in files.items()})
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("classes.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)
    return stream.getvalue()


def official(batch: bytes) -> bytes:
    stream = io.BytesIO()
    files = forms.official() | {"test_batch": batch}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


LIES = "train/a/0.png"
BOMBS: dict[str, Callable[[], bytes]] = {
    "deflate-lies.zip": lambda: zipped(LIES, bytes(200_000_000), zipfile.ZIP_DEFLATED, 100),
    "bzip2-lies.zip": lambda: zipped(LIES, bytes(150_000_000), zipfile.ZIP_BZIP2, 100),
    "lzma-lies.zip": lambda: zipped(LIES, bytes(20_000_000), zipfile.ZIP_LZMA, 100),
    "array-promised.zip": lambda: promised("a.npy", 2**30),
    "image-too-large.zip": lambda: promised(LIES, 2**31),
    "overlapping.zip": overlapping,
    "nested.zip": nested,
    "array-promised.tar": lambda: tarred(("a.npy", b"0", b"", 2**30)),
    "image-too-large.tar": lambda: tarred((LIES, b"0", b"", 2**40)),
    "long-name.tar.gz": lambda: tar(b"L", b"a" * 20_000_000),
    "long-names-of-folders.tar.gz": lambda: tar(b"L", b"a" * 60_000 + b"/", 300),
    "pax-digits.tar.gz": lambda: tar(b"x", b"1" * 60_000, 20),
    "pax-suffixes.tar.gz": lambda: tar(b"x", b"2 " * 30_000 + b"=", 20),
    "pax-long.tar.gz": lambda: tar(b"x", b"9 path=a\n" * 2_000_000),
    "pax-global.tar.gz": lambda: tar(b"g", b"60009 a=" + b"b" * 60_000 + b"\n", 500),
    "pax-for-ever.tar.gz": lambda: gzip.compress(tarred(*[("x", b"x", b"", 0)] * 5_000), 1),
    "sparse.tar.gz": lambda: gzip.compress(
        tarred(
            ("x", b"x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", 44),
            (LIES, b"0", b"99999999\n" + b"0\n" * 10_000_000, 2**27),
        ),
        1,
    ),
    "no-end.tar.gz": lambda: gzip.compress(tarred() + bytes(150_000_000), 1),
    "objects.npz": lambda: with_array("'|O'", "(3,)"),
    "shape.npz": lambda: with_array("'<U9'", "(2**60,)"),
    "shape-number.npz": lambda: with_array("'<U9'", "(1152921504606846976,)"),
    "no-bytes.npz": lambda: with_array("'<U0'", "(1152921504606846976,)"),
    "wide.npz": lambda: with_array("'<U536870911'", "(1,)"),
    "memo.zip": lambda: official(b"Nr" + struct.pack("<I", 2**30) + b"."),
    "sets.zip": lambda: official(b"](" + b"\x8f" * 5_000_000 + b"e."),
    "steps.zip": lambda: official(b"N0" * 10_000_000 + b"."),
    "bytes-promised.zip": lambda: official(b"\x8e" + struct.pack("<Q", 2**33) + b"."),
    "header.safetensors": lambda: struct.pack("<Q", 2**40) + b"{}",
    "tensor.safetensors": lambda: (
        struct.pack("<Q", 77)
        + b'{"train_images":{"dtype":"U8","shape":[9999999999],"data_offsets":[0,9999999999]}}'
    ),
    "pixels.png": lambda: png(100_000, 100_000),
}  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    folder = tmp_path_factory.mktemp("bombs")
    for name, make in BOMBS.items():
        (folder / name).write_bytes(make())
    arguments = [sys.executable, "-c", CHILD, str(folder), str(ROOM)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert not done.stderr
    assert {path.name for path in folder.iterdir()} == set(BOMBS), "something was left behind"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (message, seconds) for name, message, seconds in lines}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_line_soon(ends: dict[str, tuple[str, float]], name: str) -> None:
    message, seconds = ends[name]
    assert name in message
    assert message.isprintable()
    assert seconds < SECONDS
