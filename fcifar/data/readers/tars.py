"""A tar reader in bounded memory and time. It reads front to back, names, sizes and kinds only.

``tarfile.open`` trusts the headers: before Python 3.11.10 and 3.12.6, a tar of 60 kB can cost it
gigabytes or minutes.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes; the unit of a tar
HEADER_LIMIT = 64 * 2**10  # bytes of an extension header; paths have at most 4096
_EXTENSIONS = 8  # headers before a member; two are usual
_CHUNK = 2**20  # bytes

_KINDS = {
    **dict.fromkeys((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE), "file"),
    **dict.fromkeys((tarfile.LNKTYPE, tarfile.SYMTYPE), "a link"),
    tarfile.DIRTYPE: "folder",
}
_OTHER = "a device or sparse file"


class NotATarError(ValueError):
    """The first block is not a header."""


class Member(NamedTuple):
    """A member of a folder or archive."""

    name: str
    kind: str  # "file", "folder", or a description of an unsupported kind
    size: int
    read: Callable[[], bytes]  # of a tar, before the next member is requested


def members(stream: io.BufferedIOBase, limit: int) -> Iterator[Member]:
    """Iterate over a tar, then read ``stream`` to its end, where gzip has its checksum.

    Raises:
        NotATarError: ``stream`` does not begin with a tar header.
        ValueError or EOFError: the tar is damaged, or longer than ``limit`` bytes.
    """
    reader = _Reader(stream, limit)
    block = reader.up_to(BLOCK)
    try:
        _parse(block)
    except ValueError as error:
        raise NotATarError("it does not begin like a tar") from error
    while any(block):
        long_name, extended = "", {}
        for _ in range(_EXTENSIONS):
            header = _parse(block)
            if header.type not in (b"L", b"K", b"x", b"X", b"g"):
                break
            content = reader.header(header.size)
            if header.type == b"L":
                long_name = _decode(content.split(b"\0", 1)[0])
            elif header.type in b"xX":
                extended = _records(content)
            block = reader.read(BLOCK)
        else:
            raise ValueError("a member has too many headers")
        name = extended.get("path", long_name) or header.name
        kind = _KINDS.get(header.type, _OTHER)
        if kind == "file" and name.endswith("/"):  # in tars from before there were folders
            kind = "folder"
        elif kind == "file" and any(key.startswith("GNU.sparse.") for key in extended):
            kind = _OTHER
        start, size = reader.offset, int(extended.get("size", header.size))
        if size < 0:
            raise ValueError("a member has a negative size")
        yield Member(name, kind, size, lambda size=size: reader.read(size))
        if kind == "file":
            reader.skip_to(start + size + -size % BLOCK)
        block = reader.read(BLOCK)
    while reader.up_to(_CHUNK):
        pass


def read_whole(stream: io.BufferedIOBase | IO[bytes], size: int) -> bytes:
    """Read ``size`` bytes, allocating memory only as they arrive.

    Raises:
        EOFError: there are fewer.
    """
    content = io.BytesIO()
    while missing := size - content.tell():
        if not content.write(stream.read(min(missing, _CHUNK))):
            raise EOFError("the archive ends early")
    return content.getvalue()


class _Reader:
    """A forward-only stream of limited length."""

    def __init__(self, stream: io.BufferedIOBase, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.offset = 0

    def up_to(self, size: int) -> bytes:
        data = self.stream.read(size)
        self._advance(len(data))
        return data

    def read(self, size: int) -> bytes:
        self._advance(size)
        return read_whole(self.stream, size)

    def header(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise EOFError(f"it claims to have {size} bytes in one piece")
        return self.read(size + -size % BLOCK)[:size]

    def skip_to(self, offset: int) -> None:
        while self.offset < offset:
            self.read(min(offset - self.offset, _CHUNK))

    def _advance(self, size: int) -> None:
        self.offset += size
        if self.offset > self.limit:
            raise EOFError("there is no end to it")


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ValueError("a header is damaged") from error
    if header.size < 0:
        raise ValueError("a member has a negative size")
    if block[257:263] != b"ustar\0":  # other formats keep something else in the prefix's field
        header.name = _decode(block[:100].split(b"\0", 1)[0])
    return header


def _records(content: bytes) -> dict[str, str]:
    """Parse records such as "20 path=train/a.png\\n", which begin with their own length."""
    found, start = {}, 0
    while start < len(content):
        space = content.find(b" ", start, start + 8)
        length = content[start:space] if space > 0 else b""
        record = content[space + 1 : start + int(length)] if length.isdigit() else b""
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ValueError("an extension header is damaged")
        found[_decode(key)] = _decode(value[:-1])
        start += int(length)
    return found


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
