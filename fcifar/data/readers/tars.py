"""Tars, read front to back in bounded memory and time.

Of what a tar can say, this understands names, sizes and kinds. Python's own module believes what
the headers claim: before 3.11.10 and 3.12.6, one of 60 kB could cost it gigabytes or minutes.
"""

import io
import re
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes; all a tar consists of
HEADER_LIMIT = 64 * 2**10  # bytes of one extension header; a path has 4096 at most
_EXTENSIONS = 8  # headers before one member; two are usual
_CHUNK = 2**20  # bytes

_FILES = (b"0", b"\0", b"7")
_KINDS = {b"1": "a link", b"2": "a link", b"5": "folder"}
_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)


class NoTarError(ValueError):
    """The first block is not a header."""


class Entry(NamedTuple):
    """A member. Its content can be read until the next one is asked for."""

    name: str
    kind: str  # "file", "folder", or words for something else
    size: int
    read: Callable[[], bytes]


def entries(stream: io.BufferedIOBase, limit: int) -> Iterator[Entry]:
    """The members of the tar that ``stream`` is at the beginning of.

    At the end, ``stream`` is read out: a compressed one has its checksum there.

    Raises:
        NoTarError: this is not a tar file.
        ValueError or EOFError: it is damaged, or goes on for more than ``limit`` bytes.
    """
    reader = _Reader(stream, limit)
    block = reader.some(BLOCK)
    if not _is_header(block):
        raise NoTarError("it does not begin like a tar")
    while any(block):
        long_name, said = "", {}
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
                said = _records(content)
            block = reader.read(BLOCK)
        else:
            raise ValueError("a member has too many headers")
        name = said.get("path", long_name) or _name(block)
        # A file with such a name is how tars without folders had them.
        what = "folder" if kind in _FILES and name.endswith("/") else _kind(kind, said)
        end = reader.place
        size = _size(block, said)
        yield Entry(name, what, size, lambda size=size: reader.read(size))
        if what == "file":
            reader.skip_to(end + size + -size % BLOCK)
        block = reader.read(BLOCK)
    while reader.some(_CHUNK):
        pass


def read_whole(stream: io.BufferedIOBase | IO[bytes], size: int) -> bytes:
    """``size`` bytes. Memory is taken for those that come, not for those that were promised.

    Raises:
        EOFError: there are fewer.
    """
    content = io.BytesIO()
    while missing := size - content.tell():
        if not content.write(stream.read(min(missing, _CHUNK))):
            raise EOFError("the archive ends early")
    return content.getvalue()


class _Reader:
    """A stream that is read forwards only, and not without an end."""

    def __init__(self, stream: io.BufferedIOBase, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.place = 0

    def some(self, size: int) -> bytes:
        data = self.stream.read(size)
        self._move(len(data))
        return data

    def read(self, size: int) -> bytes:
        self._move(size)
        return read_whole(self.stream, size)

    def header(self, size: int) -> bytes:
        if size > HEADER_LIMIT:
            raise EOFError(f"it claims to have {size} bytes in one piece")
        return self.read(size + -size % BLOCK)[:size]

    def _move(self, size: int) -> None:
        self.place += size
        if self.place > self.limit:
            raise EOFError("there is no end to it")

    def skip_to(self, place: int) -> None:
        while self.place < place:
            self.read(min(place - self.place, _CHUNK))


# Headers ------------------------------------------------------------------------------------------


def _is_header(block: bytes) -> bool:
    """Whether the checksum is right. Some old programs added signed bytes up."""
    if len(block) < BLOCK:
        return False
    try:
        expected = _number(block[148:156])
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    found = sum(rest)
    return found == expected or found - 256 * sum(byte > 127 for byte in rest) == expected


def _number(field: bytes) -> int:
    """In octal digits, or where those do not suffice, in binary."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
    octal = _OCTAL.fullmatch(field)
    if octal is None:
        raise ValueError("a header has no number where one should be")
    return int(octal[1] or b"0", 8)


def _size(block: bytes, said: dict[str, str]) -> int:
    size = int(said["size"]) if "size" in said else _number(block[124:136])
    if size < 0:
        raise ValueError("a member has a negative size")
    return size


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # Other programs than POSIX ones keep something else in the place of the prefix.
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _kind(kind: bytes, said: dict[str, str]) -> str:
    if kind not in _FILES:
        return _KINDS.get(kind, "a device or sparse file")
    sparse = any(key.startswith("GNU.sparse.") for key in said)
    return "a device or sparse file" if sparse else "file"


def _records(content: bytes) -> dict[str, str]:
    """Records of the form "20 path=train/a.png\\n", which begin with their own length."""
    found, place = {}, 0
    while place < len(content):
        space = content.find(b" ", place, place + 8)
        length = content[place:space] if space > 0 else b""
        record = content[space + 1 : place + int(length)] if length.isdigit() else b""
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise ValueError("an extension header is damaged")
        found[key.decode("utf-8", "surrogateescape")] = value[:-1].decode(
            "utf-8", "surrogateescape"
        )
        place += int(length)
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
