"""Folders, zips and tars, read without writing to disk.

Archives are not trusted: a member that points outside, is not a plain file, or is larger than any
image or batch of images is refused before it is read.
"""

import errno
import gzip
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from fcifar.data import image_files
from fcifar.data.readers import folder, npz, tars
from fcifar.data.readers.tars import Member
from fcifar.data.throttle import Progress
from fcifar.errors import ExternalError, UsageError, one_line, reason

MEMBER_LIMIT = 32 * 2**20  # bytes; an official batch has 31 million
BATCH_LIMIT = 160 * 2**20  # bytes of a member without file ending; CIFAR-100's has 155 million
ARRAY_LIMIT = 2**30  # bytes of a .npy or .parquet member
TOTAL_LIMIT = 2**31  # bytes of all members, read or not
CONVERTED_LIMIT = 2**38  # the same if members are made small one by one
COUNT_LIMIT = 2_000_000  # members
NAME_LIMIT = 1000  # characters of a member's path
DEPTH_LIMIT = 8  # nested folders; a link to a parent would never end

ACCEPTED = (
    "an official CIFAR-10 archive or its unpacked folder (Python or binary version), that of "
    "CIFAR-100 (Python version), a folder with train/<class>/ and test/<class>/ holding .png, .jpg "
    "or other image files, such a folder as .zip, .tar or .tar.gz, an .npz, .parquet files of "
    "Hugging Face, or a test set as .npy (CIFAR-10.1, CIFAR-10-C)"
)

# The first bytes of files that another program has to unpack.
_PACKED = {
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x"),
    b"Rar!": ("a RAR archive", "unrar x"),
    b"BZh": ("packed by bzip2", "tar xf"),
    b"\xfd7zXZ": ("packed by xz", "tar xf"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "tar xf"),
}

# The errors of the libraries for damaged archives.
_DAMAGED = (
    *(zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error),
    *(EOFError, OverflowError, ValueError),
    LookupError,  # zipfile: a member without a name
    RuntimeError,  # zipfile: encrypted
)


class Found(NamedTuple):
    """The content of a folder or archive."""

    files: dict[str, Any]  # content by path, converted
    others: list[str]  # paths of the files that were not read


def read(
    source: Path,
    wanted: Callable[[str], bool],
    progress: Progress,
    convert: Callable[[str, bytes], Any] | None = None,
    *,
    limit: int | None = None,
    uncounted: Callable[[str], bool] = lambda path: False,
) -> Found:
    """Read files of a folder or archive, sorted by path.

    Paths are relative and use "/". Paths of folders end in "/", and their content is empty. A
    folder that holds everything else is left out of the paths, unless it is a split or a class.
    Hidden files are ignored. The content of an unreadable image file in a folder is the
    ExternalError.

    Args:
        wanted: whether to read a path. A file with an unknown ending is read if it is an image.
        convert: ``(path, content) -> content``, called as each file is read, so that no more than
            one of many large images is in memory.
        limit: bytes of all members; None: ``TOTAL_LIMIT``.
        uncounted: whether a path does not count, because ``convert`` does not keep it in memory.
    """
    where, limit = one_line(source), limit or TOTAL_LIMIT
    try:
        members = _members(source, limit, progress)
        return _without_tops(_gather(members, wanted, convert, limit, uncounted, where))
    except (UsageError, ExternalError):
        raise
    except (*_DAMAGED, OSError) as error:
        # EINVAL: zipfile followed a damaged header to an impossible offset.
        if isinstance(error, _DAMAGED) or error.errno == errno.EINVAL:
            raise UsageError(
                f"{where} is damaged or incomplete ({reason(error)}); get a fresh copy of it"
            ) from error
        raise image_files.unreadable(source, error) from error


def unknown(source: Path) -> UsageError:
    """Return the error for a source in an unknown format."""
    return UsageError(
        f"{one_line(source)} holds no images that fcifar can import; it accepts {ACCEPTED}"
    )


def _gather(
    members: Iterator[Member],
    wanted: Callable[[str], bool],
    convert: Callable[[str, bytes], Any] | None,
    total_limit: int,
    uncounted: Callable[[str], bool],
    source: str,
) -> Found:
    files: dict[str, Any] = {}
    others: list[str] = []
    total = 0
    for count, member in enumerate(members, 1):
        name = _inside(member.name, source)
        if member.kind not in ("file", "folder"):
            raise UsageError(
                f"{source} has {member.kind} at {member.name!r}; only plain files and folders "
                "are accepted"
            )
        if member.size < 0:
            raise ValueError("a member has a negative size")
        total += len(member.name) + (0 if uncounted(name) else member.size)
        if total > total_limit or count > COUNT_LIMIT:
            raise UsageError(
                f"{source} has more than {total_limit} bytes or {COUNT_LIMIT} files in it; "
                "these are not 32x32 images, and larger ones need --resize"
            )
        if not name or any(part[0] == "." or part == "__MACOSX" for part in name.split("/")):
            continue
        if member.kind == "folder":
            files[name + "/"] = b""
            continue
        sure, limit = wanted(name), _limit(name)
        if not sure and (member.size > MEMBER_LIMIT or not image_files.may_be_image(name)):
            others.append(name)
            continue
        if name in files:
            raise UsageError(f"{source} holds {name!r} twice; it is not clear which one counts")
        if member.size > limit:
            raise UsageError(
                f"{name!r} in {source} has {member.size} bytes; at most {limit} are accepted"
            )
        try:
            content = member.read()
        except ExternalError as error:
            if not image_files.is_image(name):
                raise
            files[name] = error
            continue
        if not sure and not image_files.holds_image(io.BytesIO(content)):
            others.append(name)
        else:
            files[name] = convert(name, content) if convert else content
    return Found(dict(sorted(files.items())), sorted(others))


def _limit(name: str) -> int:
    if name.endswith((".npy", ".parquet")):
        return ARRAY_LIMIT
    return MEMBER_LIMIT if "." in name.rpartition("/")[2] else BATCH_LIMIT


def _inside(name: str, source: str) -> str:
    """The path without "." parts. Refuse one that leads out of a folder on any system."""
    if not 0 < len(name) <= NAME_LIMIT:
        raise ValueError(f"a member has a name of {len(name)} letters")
    path = PureWindowsPath(name)  # splits at both kinds of slash, and knows drives
    if path.anchor or ".." in path.parts or "\0" in name:
        raise UsageError(f"{source} has a member {name!r} that points outside; it is not read")
    return "/".join(path.parts)


def _without_tops(found: Found) -> Found:
    """Remove folders that hold everything else and are neither a split nor a class."""
    files, others = found
    while len(tops := {name.partition("/")[0] for name in files if not name.endswith("/")}) == 1:
        top = tops.pop()
        inside = {
            name.removeprefix(f"{top}/"): content
            for name, content in files.items()
            if name.startswith(f"{top}/")
        }
        real = [name for name in inside if name and not name.endswith("/")]
        below = {folder.split_of(name.partition("/")[0]) for name in real if "/" in name}
        is_split = folder.split_of(top) == "train" or top.lower() == "test"
        if (
            not real  # a single file beside folders
            or (is_split and not below - {""})
            or any("/" not in name and folder.is_image(name, inside[name]) for name in real)
        ):
            break
        files = {name: content for name, content in inside.items() if name}
        others = [name.removeprefix(f"{top}/") for name in others]
    return Found(files, others)


def _members(source: Path, limit: int, progress: Progress) -> Iterator[Member]:
    if source.is_dir():
        return _path_members(source, _walk(source), source, progress)
    where = one_line(source)
    if not source.is_file():
        problem = "is neither a file nor a folder" if source.exists() else "does not exist"
        raise UsageError(f"{where} {problem}; give the path of {ACCEPTED}")
    with source.open("rb") as file:
        magic = file.read(6)
    if not magic:
        raise UsageError(f"{where} is empty; give the path of {ACCEPTED}")
    for start, (what, command) in _PACKED.items():
        if magic.startswith(start):
            unpack = f"unpack it with `{command} {one_line(source.name)}` and give the folder"
            raise UsageError(f"{where} is {what}; {unpack}")
    if magic.startswith((b"PAR1", b"\x93NUMPY")):
        return _file_members(source, progress)
    if magic.startswith(b"PK"):
        return _zip_members(source, progress)
    return _tar_members(source, magic.startswith(b"\x1f\x8b"), 2 * limit, progress)


def _file_members(source: Path, progress: Progress) -> Iterator[Member]:
    """A single file; of an .npy file also its labels and class names."""
    beside = [npz.labels_of(source.name), npz.CLASSES_FILE] if source.suffix == ".npy" else []
    paths = map(source.with_name, dict.fromkeys([source.name, *beside]))
    return _path_members(source, filter(Path.is_file, paths), source.parent, progress)


def _path_members(
    source: Path, paths: Iterable[Path], folder: Path, progress: Progress
) -> Iterator[Member]:
    paths = list(paths)
    for count, path in enumerate(paths, 1):
        name, size = path.relative_to(folder).as_posix(), 0
        if path.is_dir():
            kind = "folder"
        elif path.is_file():
            kind, size = "file", path.stat().st_size
        else:
            kind = "a dangling link or a device"
        yield Member(name, kind, size, partial(_read_bytes, path))
        progress(f"reading {source.name}", count, len(paths))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise image_files.unreadable(path, error) from error


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """All paths below a folder. Links are followed, because the folder is the user's own."""
    if depth > DEPTH_LIMIT:
        raise UsageError(
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
            kind = "file" if mode in (0, stat.S_IFREG) else "a link or a device"
            kind = "folder" if entry.is_dir() else kind
            yield Member(entry.filename, kind, entry.file_size, partial(_unzip, archive, entry))
            progress(f"reading {source.name}", count, len(entries))


def _unzip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A member's content, whose size has been checked. zipfile checks the CRC.

    ``archive.read``, and any compression other than deflate, would unpack everything before
    looking at the size.
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
            for member in tars.members(stream, limit):
                yield member
                progress(f"reading {source.name}", file.tell(), size)
        except tars.NotATarError as error:
            raise unknown(source) from error
