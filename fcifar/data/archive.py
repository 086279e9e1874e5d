"""Folders, zips and tars, read alike and without writing anything to the disk.

Archives come from strangers. A member that points outside, that is no plain file, or that is
larger than any image or batch of images, is refused before it is read.
"""

import errno
import gzip
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from fcifar.data import tars, testsets
from fcifar.data.progress import Progress
from fcifar.errors import UserError, WorldError, one_line, reason

MEMBER_LIMIT = 32 * 2**20  # bytes; an official batch has 31 million
BATCH_LIMIT = 160 * 2**20  # bytes of a member without an ending; CIFAR-100's has 155 million
ARRAY_LIMIT = 2**30  # bytes of one .npy or .parquet member
TOTAL_LIMIT = 2**31  # bytes of all members, those included that are not read
CONVERTED_LIMIT = 2**38  # the same where members are made small one by one
COUNT_LIMIT = 2_000_000  # members
NAME_LIMIT = 1000  # letters of the path of a member
DEPTH_LIMIT = 8  # folders within folders; a link to a parent would never end

ACCEPTED = (
    "an official CIFAR-10 archive or its unpacked folder (Python or binary version), that of "
    "CIFAR-100 (Python version), a folder with train/<class>/ and test/<class>/ holding .png or "
    ".jpg files, such a folder as .zip, .tar or .tar.gz, an .npz, .parquet files of Hugging Face, "
    "or a test set as .npy (CIFAR-10.1, CIFAR-10-C)"
)

Convert = Callable[[str, bytes], bytes]

# What the libraries raise for bytes that are not what they should be.
_DAMAGED = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    OverflowError,
    LookupError,  # from zipfile: a member without a name
    RuntimeError,  # from zipfile: encrypted
    ValueError,
)


class Member(NamedTuple):
    """An entry of a folder or archive, not read yet."""

    name: str
    kind: str  # "file", "folder", or words for something we refuse
    size: int
    read: Callable[[], bytes]


def read(
    source: Path,
    wanted: Callable[[str], bool],
    progress: Progress,
    convert: Convert | None = None,
    *,
    limit: int | None = None,
) -> dict[str, bytes]:
    """The wanted files of a folder or archive by path, in sorted order, whatever theirs was.

    Paths are relative and use "/". Folders that the source mentions are there as well: their path
    ends in "/" and their content is empty. One folder that holds everything else is left out of
    the paths, unless it is called train or test. Hidden files are passed over.

    Args:
        convert: ``(path, content) -> content``: what to keep of a file that is wanted, as soon as
            it is read. Of a folder of large pictures, no more than one is in memory then.
        limit: bytes of all members; without it, more of them with ``convert`` than without.

    Raises:
        UserError: the source does not exist, is nothing we can read, is damaged, or has a member
            that is refused.
        WorldError: the operating system cannot read it.
    """
    where = one_line(source)
    try:
        limit = limit or (CONVERTED_LIMIT if convert else TOTAL_LIMIT)
        members = _members(source, limit, progress)
        return _without_top(_gather(members, wanted, convert, limit, where))
    except UserError:
        raise
    except (*_DAMAGED, OSError) as error:
        # zipfile looks where a header sends it, were that beyond the end of all files.
        if isinstance(error, _DAMAGED) or error.errno == errno.EINVAL:
            raise UserError(
                f"{where} is damaged or incomplete ({reason(error)}); get a fresh copy of it"
            ) from error
        raise WorldError(
            f"cannot read {where}: {reason(error)}; check the file and its permissions"
        ) from error


def unknown(source: Path) -> UserError:
    """The error for a source that is not in any form we read."""
    return UserError(
        f"{one_line(source)} holds no images that fcifar can import; it accepts {ACCEPTED}"
    )


def _gather(
    members: Iterable[Member],
    wanted: Callable[[str], bool],
    convert: Convert | None,
    most: int,
    source: str,
) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for count, member in enumerate(members, 1):
        name = _inside(member.name, source)
        if member.kind not in ("file", "folder"):
            raise UserError(
                f"{source} has {member.kind} at {member.name!r}; only plain files and folders "
                "are accepted"
            )
        if member.size < 0:
            raise ValueError("a member has a negative size")
        total += member.size + len(member.name)
        if total > most or count > COUNT_LIMIT:
            raise UserError(
                f"{source} has more than {most} bytes or {COUNT_LIMIT} files in it; "
                "that is no set of 32x32 images, and larger ones are read with --resize"
            )
        if not name or any(part[0] == "." or part == "__MACOSX" for part in name.split("/")):
            continue
        if member.kind == "folder":
            files[name + "/"] = b""
        elif wanted(name):
            if name in files:
                raise UserError(f"{source} holds {name!r} twice; it is not clear which one counts")
            limit = _limit(name)
            if member.size > limit:
                raise UserError(
                    f"{name!r} in {source} has {member.size} bytes; at most {limit} are accepted"
                )
            files[name] = convert(name, member.read()) if convert else member.read()
    return dict(sorted(files.items()))


def _limit(name: str) -> int:
    if name.endswith((".npy", ".parquet")):
        return ARRAY_LIMIT
    return MEMBER_LIMIT if "." in name.rpartition("/")[2] else BATCH_LIMIT


def _inside(name: str, source: str) -> str:
    """The path without "." parts; refused if it could lead out of a folder on any system."""
    if not 0 < len(name) <= NAME_LIMIT:
        raise ValueError(f"a member has a name of {len(name)} letters")
    path = PureWindowsPath(name)  # this flavour knows both kinds of slash, and drives
    if path.anchor or ".." in path.parts or "\0" in name:
        raise UserError(f"{source} has a member {name!r} that points outside; it is not read")
    return "/".join(path.parts)


def _without_top(files: dict[str, bytes]) -> dict[str, bytes]:
    tops = {name.split("/")[0] for name in files if "/" in name}
    if len(tops) != 1 or tops & {"train", "test"} or any("/" not in name for name in files):
        return files
    cut = len(tops.pop()) + 1
    return {name[cut:]: data for name, data in files.items() if name[cut:]}


# The kinds of source ------------------------------------------------------------------------------


def _members(source: Path, limit: int, progress: Progress) -> Iterator[Member]:
    if source.is_dir():
        return _folder_members(source, progress)
    if not source.exists():
        raise UserError(f"{one_line(source)} does not exist; give the path of {ACCEPTED}")
    if not source.is_file():
        raise UserError(
            f"{one_line(source)} is neither a file nor a folder; give the path of {ACCEPTED}"
        )
    if not source.stat().st_size:
        raise UserError(f"{one_line(source)} is empty; give the path of {ACCEPTED}")
    with source.open("rb") as file:
        magic = file.read(4)
    if magic in (b"PAR1", b"\x93NUM"):
        return _file_members(source, progress)
    if magic.startswith(b"PK"):
        return _zip_members(source, progress)
    return _tar_members(source, magic.startswith(b"\x1f\x8b"), 2 * limit, progress)


def _file_members(source: Path, progress: Progress) -> Iterator[Member]:
    """A file that is no archive, and beside an .npy file the labels and class names of it."""
    beside = [testsets.labels_of(source.name), testsets.CLASSES] if source.suffix == ".npy" else []
    for count, name in enumerate(dict.fromkeys([source.name, *beside])):
        progress(f"reading {source.name}", count, 0)
        path = source.with_name(name)
        if path.is_file():
            yield Member(name, "file", path.stat().st_size, path.read_bytes)


def _folder_members(source: Path, progress: Progress) -> Iterator[Member]:
    for count, path in enumerate(_walk(source)):
        progress(f"reading {source.name}", count, 0)
        name, size = path.relative_to(source).as_posix(), 0
        if path.is_dir():
            kind = "folder"
        elif path.is_file():
            kind, size = "file", path.stat().st_size
        else:
            kind = "a dangling link or a device"
        yield Member(name, kind, size, path.read_bytes)


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Everything below a folder. Links are followed here: the folder is the user's own."""
    if depth > DEPTH_LIMIT:
        raise UserError(
            f"{one_line(folder)} lies more than {DEPTH_LIMIT} folders deep; is it a circle?"
        )
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir():
            yield from _walk(path, depth + 1)


def _zip_members(source: Path, progress: Progress) -> Iterator[Member]:
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        for count, entry in enumerate(entries, 1):
            mode = stat.S_IFMT(entry.external_attr >> 16)
            if entry.is_dir():
                kind = "folder"
            else:
                kind = "file" if mode in (0, stat.S_IFREG) else "a link or a device"
            yield Member(
                entry.filename, kind, entry.file_size, lambda entry=entry: _unzip(archive, entry)
            )
            progress(f"reading {source.name}", count, len(entries))


def _unzip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A member's content, whose size has been checked. zipfile compares it with a CRC.

    ``archive.read`` would unpack all there is before it looks at the size, and so do the other
    methods of compression whatever one asks for.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed otherwise than by deflate")
    with archive.open(entry) as file:
        return tars.read_whole(file, entry.file_size)


def _tar_members(
    source: Path, compressed: bool, limit: int, progress: Progress
) -> Iterator[Member]:
    size = source.stat().st_size
    with source.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if compressed else file
        try:
            for entry in tars.entries(stream, limit):
                yield Member(*entry)
                progress(f"reading {source.name}", file.tell(), size)
        except tars.NoTarError as error:
            raise unknown(source) from error
