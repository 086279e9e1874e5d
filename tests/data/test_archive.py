"""Archives from strangers: what is refused, and that nothing else can happen."""

import contextlib
import gzip
import io
import os
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcifar.data.readers import archive
from fcifar.errors import ExternalError, UsageError
from tests.helpers import forms

FILES = {"train/ant/a.png": b"first", "train/bee/b.png": b"second", "test/ant/c.png": b"x" * 2000}


def read(source: Path) -> dict[str, bytes]:
    wanted, progress = lambda path: path.endswith((".png", ".npy")), lambda *call: None
    return archive.read(source, wanted, progress).files


def refuse(source: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(source)
    assert "\n" not in str(caught.value)


def write(path: Path, files: forms.Files) -> Path:
    return (forms.write_zip if path.suffix == ".zip" else forms.write_tar)(path, files)


ARCHIVES = pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])


@ARCHIVES
def test_files_come_sorted(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, FILES)
    assert list(read(source).items()) == sorted(FILES.items())


@ARCHIVES
@pytest.mark.parametrize(
    "path",
    ["../a.png", "train/../../a.png", "/train/a.png", "C:/a.png", "\\\\host\\share\\a.png"],
)
def test_a_path_that_points_outside_is_refused(tmp_path: Path, name: str, path: str) -> None:
    refuse(write(tmp_path / name, FILES | {path: b""}), "points outside")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    entry = tarfile.TarInfo("train/ant/link.png")
    entry.type, entry.linkname = kind, "/etc/passwd"
    refuse(forms.write_tar(tmp_path / name, FILES, entry), "at 'train/ant/link.png'")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("train/ant/link.png")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(entry, "/etc/passwd")
    refuse(tmp_path / "a.zip", "a link or a device at 'train/ant/link.png'")


def test_links_in_a_folder_of_ones_own_are_followed(tmp_path: Path) -> None:
    forms.write_folder(tmp_path / "elsewhere", {"a.png": b"first"})
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "ant").symlink_to(tmp_path / "elsewhere")
    assert read(folder)["train/ant/a.png"] == b"first"
    (folder / "train" / "circle").symlink_to(folder)
    refuse(folder, "is it a circle")


def test_a_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = forms.write_folder(tmp_path / "set", FILES)
    os.mkfifo(folder / "train" / "pipe.png")
    refuse(folder, "a dangling link or a device at 'train/pipe.png'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_member_that_comes_twice_is_refused(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, FILES)
    appended = tmp_path / "more" / name
    appended.parent.mkdir()
    if name == "a.zip":
        with zipfile.ZipFile(source, "a") as file:
            file.writestr("train/ant/a.png", b"other")
    else:
        with tarfile.open(source, "a") as file:
            entry = tarfile.TarInfo("./train/ant/a.png")
            entry.size = 5
            file.addfile(entry, io.BytesIO(b"other"))
    refuse(source, "'train/ant/a.png' twice")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_bomb_of_one_member_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / name, FILES | {"train/ant/z.png": bytes(3_000_000)})
    assert source.stat().st_size < 20_000
    monkeypatch.setattr(archive, "MEMBER_LIMIT", 2_000_000)
    refuse(source, "'train/ant/z.png' in .* has 3000000 bytes; at most 2000000")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_a_bomb_of_many_members_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"train/ant/{i}.txt": bytes(100_000) for i in range(30)}
    monkeypatch.setattr(archive, "TOTAL_LIMIT", 2_000_000)
    refuse(write(tmp_path / name, many), "more than 2000000 bytes")
    monkeypatch.setattr(archive, "COUNT_LIMIT", 10)
    refuse(write(tmp_path / name, many), "or 10 files")


def test_a_bomb_of_a_name_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 50_000_000
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(entry.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(entry.size + tarfile.BLOCKSIZE))
    refuse(tmp_path / "a.tar.gz", "in one piece|holds no images")


def test_a_negative_size_does_not_go_round_in_circles(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("train/ant/a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    refuse(tmp_path / "a.tar", "negative size|holds no images")


@ARCHIVES
def test_an_archive_cut_short_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, FILES).read_bytes()
    # The zero blocks that end a tar may be fewer than tarfile writes, as long as there is one.
    end = whole.rstrip(b"\0") if name == "a.tar" else whole
    for length in range(1, len(end), 97):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UsageError):
            read(tmp_path / name)


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "a.zip", {"?": b"x"}).read_bytes()
    for signature, size, offset in ((b"PK\x03\x04", 30, 26), (b"PK\x01\x02", 46, 28)):
        start = content.find(signature)
        length, name = start + offset, start + size
        head = content[:length] + b"\0" + content[length + 1 : name]
        content = head + content[name + 1 :]
    end = content.find(b"PK\x05\x06")
    directory = content.find(b"PK\x01\x02")
    places = (end - directory).to_bytes(4, "little") + directory.to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content[: end + 12] + places + content[end + 20 :])
    refuse(tmp_path / "a.zip", "damaged or incomplete")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.zip", FILES).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        content[start + offset] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    refuse(tmp_path / "a.zip", "encrypted")


# Fuzzing ------------------------------------------------------------------------------------------

with tempfile.TemporaryDirectory() as folder:
    SEEDS = tuple(write(Path(folder) / n, FILES).read_bytes() for n in ("a.zip", "a.tar", "a.tgz"))


def ends_well(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.write_bytes(data)
        with contextlib.suppress(UsageError, ExternalError):
            files = read(source)
            assert all(isinstance(content, bytes) for content in files.values())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08\x00"]), st.binary(max_size=2000))
def test_any_bytes_end_well(magic: bytes, data: bytes) -> None:
    ends_well(magic + data)


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, len(SEEDS) - 1),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4)), min_size=1, max_size=6),
    st.booleans(),
)
def test_mutated_archives_end_well(
    seed: int, changes: list[tuple[int, bytes]], compress: bool
) -> None:
    mutable = bytearray(SEEDS[seed])
    for place, change in changes:
        start = place % len(mutable)
        mutable[start : start + len(change)] = change
    ends_well(gzip.compress(mutable, 1) if compress else bytes(mutable))
