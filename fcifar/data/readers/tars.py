"""A tar reader in bounded memory and time. It reads front to back, names, sizes and kinds only.

Python's own ``tarfile`` trusts the headers: before 3.11.10 and 3.12.6, a tar of 60 kB can cost it
gigabytes or minutes.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes; the unit of a tar
HEADER_LIMIT = 64 * 2**10  # bytes of an extension header; paths have at most 4096
_EXTENSIONS = 8  # headers before a member; two are usual
_CHUNK = 2**20  # bytes

_FILES = (b"0", b"\0", b"7")
_KINDS = {b"1": "a link", b"2": "a link", b"5": "folder"}
_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)


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
    if not _is_header(block):
        raise NotATarError("it does not begin like a tar")
    while any(block):
        long_name, extended = "", {}
        for _ in range(_EXTENSIONS):
            if not _is_header(block):
                raise ValueError("a header is damaged")
            kind = block[156:157]
            if kind not in b"LKxXg":
                break
            content = reader.header(_size(block, {}))
            if kind == b"L":
                long_name = _text(content)
            elif kind in b"xX":
                extended = _records(content)
            block = reader.read(BLOCK)
        else:
            raise ValueError("a member has too many headers")
        name = extended.get("path", long_name) or _name(block)
        # Tars from before there were folders mark them by such a name.
        what = "folder" if kind in _FILES and name.endswith("/") else _kind(kind, extended)
        start, size = reader.offset, _size(block, extended)
        yield Member(name, what, size, lambda size=size: reader.read(size))
        if what == "file":
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


# Headers ------------------------------------------------------------------------------------------


def _is_header(block: bytes) -> bool:
    """Whether the checksum is right. Some old programs summed signed bytes."""
    if len(block) < BLOCK:
        return False
    try:
        expected = _number(block[148:156])
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    return expected in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes) -> int:
    """Octal digits, or binary if these do not suffice."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
    octal = _OCTAL.fullmatch(field)
    if octal is None:
        raise ValueError("a header has no number where one should be")
    return int(octal[1] or b"0", 8)


def _size(block: bytes, extended: dict[str, str]) -> int:
    size = int(extended["size"]) if "size" in extended else _number(block[124:136])
    if size < 0:
        raise ValueError("a member has a negative size")
    return size


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # Only POSIX tars have a prefix in that field.
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _kind(kind: bytes, extended: dict[str, str]) -> str:
    if kind not in _FILES:
        return _KINDS.get(kind, "a device or sparse file")
    sparse = any(key.startswith("GNU.sparse.") for key in extended)
    return "a device or sparse file" if sparse else "file"


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


def _text(field: bytes) -> str:
    return _decode(field.split(b"\0", 1)[0])


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")
