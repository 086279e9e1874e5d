"""Any zip or tar gives files with harmless names, or one line. Good ones are read as written."""

import gzip
import io
import struct
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcifar.data.readers import archive, tars
from tests.helpers import forms
from tests.helpers.fuzzing import ends_well, everything, examples, mutated

LONG = "train/" + "deep/" * 40 + "é.png"
FILES = {
    "train/ant/a.png": b"first",
    "test/ant/c.png": b"x" * 2000,
    LONG: b"",
    "a.npy": b"\0" * 512,
}


def read(source: Path) -> dict[str, bytes]:
    wanted, progress = lambda path: path.endswith((".png", ".npy")), lambda *call: None
    return archive.read(source, wanted, progress).files


def read_bytes(data: bytes) -> dict[str, bytes] | None:
    """What is in an archive. Nothing appears beside it, and no path leads out of a folder."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.write_bytes(data)
        files = ends_well(read, source)
        assert everything(Path(folder)) == {source: data}
    for name in files or ():
        assert not name.startswith("/")
        assert not {"..", "."} & set(name.split("/"))
        assert not set("\\\0") & set(name)
    return files


def zipped(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, content in FILES.items():
            file.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1.5
            file.addfile(entry, io.BytesIO(content))
    return stream.getvalue().rstrip(b"\0") + bytes(1024)


TARS = [tarred(FILES, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
ZIPS = [zipped(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
ODD_ZIPS = [zipped(method) for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]
ANY = st.sampled_from(TARS + ZIPS + ODD_ZIPS)


@examples(4)
@given(st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\x00"]), st.binary())
def test_random_bytes(magic: bytes, data: bytes) -> None:
    read_bytes(magic + data)


@examples(6)
@given(mutated(ANY), st.booleans())
def test_mutated_archives(data: bytes, compress: bool) -> None:
    read_bytes(gzip.compress(data, 1) if compress else data)


@examples(3)
@given(mutated(st.sampled_from([gzip.compress(data) for data in TARS])))
def test_mutated_gzip(data: bytes) -> None:
    read_bytes(data)


# Headers that lie ---------------------------------------------------------------------------------

paths = st.one_of(
    st.sampled_from(
        [
            *(
                b"a.png",
                b"",
                b"/",
                b".",
                b"..",
                b"../a.png",
                b"/etc/a.png",
                b"C:\\a.png",
                b"C:a.png",
            ),
            *(
                b"a\\..\\..\\a.png",
                b"\\\\host\\a\\a.png",
                b"\xff\xfe.png",
                b"a\n.png",
                b"\x1b[2J.png",
            ),
            *(b"a/" * 300 + b"a.png", b"a" * 5000 + b".png", b"./a.png", b"a//a.png", b"\0.png"),
        ]
    ),
    st.binary(max_size=20).map(lambda name: name + b".png"),
)
words = st.sampled_from([0, 1, 5, 100, 2**16 - 1, 2**25, 2**31, 2**32 - 1])
CONTENT = zlib.compress(b"hello")[2:-4]


@st.composite
def lying_zips(draw: st.DrawFn) -> bytes:
    """Members whose two headers are made up field by field, most of them plausible."""

    def lie(truth: int, bits: int) -> int:
        return (draw(words) if draw(st.integers(0, 9)) == 0 else truth) % 2**bits

    body, directory = b"", b""
    count = draw(st.integers(0, 4))
    for _ in range(count):
        name, extra = draw(paths), draw(st.sampled_from([b"", b"", b"\1\0\x18\0" + b"\xff" * 24]))
        common = struct.pack(
            "<HHHHHIIIHH", lie(20, 16), lie(0, 16), lie(8, 16), 0, 0, lie(0x3610A686, 32),
            lie(len(CONTENT), 32), lie(5, 32), lie(len(name), 16), lie(len(extra), 16),
        )  # fmt: skip
        start = len(body)
        body += b"PK\3\4" + common + name + extra + CONTENT
        mode = draw(st.sampled_from([0, 0, 0o100644, 0o120777, 0o020000])) << 16
        directory += b"PK\1\2" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, mode, lie(start, 32)) + name + extra
    counts = (0, 0, lie(count, 16), lie(count, 16), lie(len(directory), 32), lie(len(body), 32), 0)
    return body + directory + b"PK\5\6" + struct.pack("<HHHHIIH", *counts)


@examples(6)
@given(lying_zips())
def test_zips_that_lie(data: bytes) -> None:
    read_bytes(data)


sizes = st.one_of(
    st.sampled_from(
        [b"00000000005\0", b"00000000000\0", b" 5 ", b"", b"-5", b"1_0", b"77777777777"]
    ),
    st.sampled_from([2**40, 2**80, -1, -512]).map(
        lambda n: bytes([0xFF if n < 0 else 0x80]) + n.to_bytes(11, "big", signed=True)
    ),
    st.binary(max_size=12),
)
records = st.one_of(
    st.sampled_from(
        [b"8 size=5\n", b"9 size=-5\n", b"99999 size=5\n", b"0 path=a\n", b"11 size=nan\n"]
    )
    | st.sampled_from(
        [b"15 path=../a.b\n", b"22 GNU.sparse.major=1\n", b"12 size=1_0\n", b"7 a=\0\n"]
    )
    | st.sampled_from([b"2 " * 200, b"1" * 500, b"1" * 5000 + b" path=a\n", b"9 path=a\n" * 500]),
    st.binary(max_size=20),
)


def header(
    name: bytes, kind: bytes, size: bytes, magic: bytes = b"ustar\0", more: bytes = b""
) -> bytes:
    """A block with a right checksum."""
    block = bytearray(512)
    for place, field in ((0, name[:100]), (124, size[:12]), (156, kind), (257, magic), (345, more)):
        block[place : place + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@st.composite
def lying_tars(draw: st.DrawFn) -> bytes:
    data = b""
    for row in range(draw(st.integers(1, 6))):
        kinds = b"0" if draw(st.booleans()) else b"0\07LLKxxxgX5123456SADMNV~"
        kind = draw(st.sampled_from(kinds)).to_bytes(1, "big")
        name = draw(paths) if draw(st.integers(0, 5)) == 0 else b"train/%d.png" % row
        prefix = draw(st.sampled_from([b"", b"", b"", b"train", b"..", b"\xff/"]))
        content = draw(paths if kind in b"LK" else records if kind in b"xgX" else st.just(b"hello"))
        size = draw(sizes) if draw(st.integers(0, 9)) == 0 else b"%011o\0" % len(content)
        magic = draw(st.sampled_from([b"ustar\0", b"ustar  \0", b""]))
        data += header(name, kind, size, magic, prefix)
        data += content + bytes(-len(content) % 512)
    return data + bytes(draw(st.sampled_from([1024, 1024, 512, 0, 100])))


@examples(6)
@given(lying_tars(), st.booleans())
def test_tars_that_lie(data: bytes, compress: bool) -> None:
    read_bytes(gzip.compress(data, 1) if compress else data)


# What is good -------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:.")).map(
    lambda name: f"set/ant/{name}x.png"
)
good = st.dictionaries(names, st.sampled_from([0, 1, 511, 512, 513, 3000]), min_size=1, max_size=4)


@examples(2)
@given(good, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_whatever_tar_format_is_read_as_written(files: dict[str, int], form: int) -> None:
    contents = {name: name.encode()[:1] * size for name, size in files.items()}
    expected = {name.removeprefix("set/"): content for name, content in contents.items()}
    try:
        data = tarred(contents, form)
    except ValueError:  # the old format has no room for long names
        return
    assert read_bytes(data) == dict(sorted(expected.items()))
    assert read_bytes(gzip.compress(data, 1)) == dict(sorted(expected.items()))


def test_a_tar_made_by_an_old_program_is_read() -> None:
    # No magic, a folder that is a file ending in "/", a checksum of signed bytes.
    folder = header(b"train/", b"\0", b"0", magic=b"")
    file = bytearray(header(b"train/\xe9.png", b"\0", b"    5 ", magic=b""))
    file[148:156] = b" " * 8
    file[148:156] = b"%06o\0 " % sum(byte - 256 * (byte > 127) for byte in file)
    data = folder + bytes(file) + b"hello" + bytes(507 + 1024)
    assert read_bytes(data) == {"train/": b"", "train/\udce9.png": b"hello"}


@pytest.mark.parametrize("record", [b"2 " * 200, b"1" * 500, b"9 path=a\n" + b"x", b"0 path=a\n"])
def test_an_extension_header_of_nonsense_is_refused(record: bytes) -> None:
    data = header(b"x", b"x", b"%o" % len(record)) + record + bytes(-len(record) % 512)
    data += header(b"a.png", b"0", b"0") + bytes(1024)
    with pytest.raises(ValueError, match="an extension header is damaged"):
        list(tars.members(io.BytesIO(data), 10**6))


def test_an_extension_header_for_ever_is_refused() -> None:
    data = header(b"x", b"x", b"0") * 1000
    with pytest.raises(ValueError, match="too many headers"):
        list(tars.members(io.BytesIO(data), 10**6))


def test_a_member_without_content_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    source = forms.write_tar(tmp_path / "a.tar", {})
    source.write_bytes(header(b"a.npy", b"0", b"%011o\0" % 2**29) + bytes(1024))
    assert ends_well(read, source) is None
