"""Image files of any kind and size, made into the 32x32 images that a network takes.

Import and ``fcifar predict`` read image files here and nowhere else.
"""

import contextlib
import functools
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fcifar.data.dataset import SIDE
from fcifar.data.throttle import Progress, paced
from fcifar.errors import ExternalError, UsageError, names_of, one_line, reason

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads more, but some of that by running other programs, and some without decoding it.
FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "PNG": (".png", ".apng"),
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
        "BMP": (".bmp", ".dib"),
        "GIF": (".gif",),
        "TIFF": (".tif", ".tiff"),
        "WEBP": (".webp",),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
        "AVIF": (".avif", ".avifs"),
        "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
        "QOI": (".qoi",),
        "PSD": (".psd",),
        # These begin with too little that is theirs: they are read where the file is named so.
        "DIB": (".dib",),
        "TGA": (".tga", ".icb", ".vda", ".vst"),
        "ICO": (".ico",),
        "CUR": (".cur",),
        "ICNS": (".icns",),
        "PCX": (".pcx",),
        "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
        "SUN": (".ras",),
        "DDS": (".dds",),
        "XBM": (".xbm",),
        "XPM": (".xpm",),
        # With pillow-heif installed.
        "HEIF": (".heic", ".heif", ".hif"),
    }
)
"""Pillow's name of each kind of file, and the endings of its files."""

_BY_CONTENT = frozenset(
    ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000", "QOI", "PSD", "HEIF")
)
# What lies beside images and is none. Whatever else is left out is named by its ending.
_NO_IMAGES = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".md", ".rst", ".tex", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".xls"),
    *(".xlsx", ".py", ".pyc", ".ipynb", ".sh", ".bat", ".log", ".db", ".lock", ".url", ".lnk"),
    *(".mat", ".h5", ".hdf5", ".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".parquet"),
    *(".safetensors", ".onnx", ".md5", ".sha1", ".sha256"),
)
_HINTS = (
    (FORMATS["HEIF"], "`pip install pillow-heif` and they are read"),
    (FORMATS["AVIF"], "Pillow 11.3 or newer reads them"),
    ((".7z", ".rar", ".zip", ".tar", ".gz"), "unpack them first"),
)
_SCREENFUL = 20  # lines of a list
_ORIENTATION = 0x0112  # the EXIF tag
# What turns an image of each orientation upright: names of Pillow's Transpose.
_TURNS = (
    *("", "", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"),
    *("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"),
)
_DEEP = re.compile(";16[BLN]")  # of how Pillow unpacks 16 bits a channel


class Picture(NamedTuple):
    """An image file, read, and what was done to it on the way."""

    pixels: bytes  # 3072: 32 rows of 32 RGB triples
    mode: str  # Pillow's name of what the file holds: "RGB", "L", "P", "CMYK", ...
    oriented: bool = False  # turned or mirrored, as its EXIF orientation says
    on_white: bool = False  # it was transparent somewhere, and is composited on white now
    resized: bool = False
    first_frame: bool = False  # of several
    cut_to_8_bits: bool = False  # a channel


class UnreadableError(UsageError):
    """A file is not an image that can be used: ``<file> <what is wrong>; <what to do>``."""


class Found(NamedTuple):
    """The image files among paths, and what else there was."""

    paths: list[Path]
    left_out: dict[str, int]  # files in folders that cannot be read here, by their ending
    others: int  # text, tables and the like in folders


# Which files --------------------------------------------------------------------------------------


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the Pillow here reads; HEIF with the package pillow-heif."""
    from PIL import Image  # not at the top: importing fcifar shall stay cheap

    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def ending_of(path: str) -> str:
    """``".jpg"`` of ``"train/cat/1.JPG"``; ``""`` where there is none."""
    return PurePosixPath(path).suffix.lower()


def is_image(path: str) -> bool:
    """Whether a path has the ending of an image file that can be read here."""
    ending = ending_of(path)
    return any(ending in FORMATS[name] for name in readable_formats())


def may_be_image(path: str) -> bool:
    """Whether the ending of a path says nothing, so that its content has to."""
    ending = ending_of(path)
    return ending not in _NO_IMAGES and not any(ending in known for known in FORMATS.values())


def holds_image(stream: IO[bytes]) -> bool:
    """Whether a file of whatever name begins like an image. Nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=_formats("")):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # whatever Pillow trips over
        return False


def left_out(names: Iterable[str]) -> tuple[dict[str, int], int]:
    """What is not taken: how many files by ending, and how many that are beside the point.

    The latter are text, tables and the like, and what has neither an ending nor an image in it.
    """
    counts = Counter(ending_of(name) for name in names)
    named = {e: n for e, n in counts.items() if e and e not in _NO_IMAGES}
    return dict(sorted(named.items())), counts.total() - sum(named.values())


def in_words(counts: Mapping[str, int]) -> str:
    """``50 .heic (hint), 7 in val/``, of counts by ending or folder; of many, the first."""
    parts = []
    for what, number in counts.items():
        hint = next((text for endings, text in _HINTS if what in endings), "")
        where = "" if what.startswith(".") else "in "
        parts.append(f"{number:,} {where}{one_line(what)}{f' ({hint})' if hint else ''}")
    return names_of(parts)


def others_in_words(names: Sequence[str]) -> str:
    """``2 others: mean, std``, of arrays or files that are left out; of many, the first."""
    first = ", ".join(map(one_line, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"{len(names):,} other{'s'[: len(names) > 1]}: {first}"


def find(paths: Iterable[Path]) -> Found:
    """The image files among ``paths``, and in sorted order those in the folders among them.

    A file that is given is taken, whatever its name. In a folder and the folders below it, those
    that are named like an image are taken, and those whose ending says nothing if an image is in
    them; hidden ones, and links to folders, are passed over.

    Raises:
        UsageError: a path leads nowhere, or there is no image in a folder.
        ExternalError: a folder cannot be read.
    """
    found, others = [], []
    for path in paths:
        if path.is_dir():
            inside, rest = [], []
            for file in sorted(_walk(path)):
                (inside if _is_image_file(file) else rest).append(file)
            others += map(str, rest)
            if not inside:
                named, _ = left_out(map(str, rest))
                what = f"it has {in_words(named)}" if named else "no file in it is an image"
                raise UsageError(
                    f"there is no image in {one_line(path)}: {what}; give one of "
                    f"{', '.join(readable_formats()[:9])}, ..."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UsageError(f"{one_line(path)} {what}; give image files, or folders of them")
    return Found(found, *left_out(others))


def _walk(folder: Path) -> Iterator[Path]:
    def give_up(error: OSError) -> None:
        raise ExternalError(
            f"cannot read {one_line(folder)}: {reason(error)}; check its permissions"
        )

    for place, folders, files in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _is_image_file(path: Path) -> bool:
    if not may_be_image(path.name):
        return is_image(path.name)
    try:
        with path.open("rb") as stream:
            return path.is_file() and holds_image(stream)
    except (OSError, ValueError):
        return False


# Reading ------------------------------------------------------------------------------------------


def read_all(paths: Sequence[Path], progress: Progress | None = None) -> Tensor:
    """``read`` of each of one or more files: uint8 [N, 3, 32, 32].

    Raises:
        UsageError: files cannot be read; all of them are listed, see ``cannot_read``.
    """
    images, failures = read_those_that_can_be(paths, progress)
    if failures:
        raise cannot_read(list(failures.values()), len(paths))
    return torch.stack(images)


def read_those_that_can_be(
    paths: Sequence[Path], progress: Progress | None = None
) -> tuple[list[Tensor], dict[Path, UsageError | ExternalError]]:
    """``read`` of each file that can be read, and why the others cannot."""
    progress = paced(progress)
    images, failures = [], {}
    for done, path in enumerate(paths, 1):
        try:
            images.append(read(path))
        except (UsageError, ExternalError) as error:
            failures[path] = error
        else:
            progress("reading images", done, len(paths))
    return images, failures


def cannot_read(
    failures: Sequence[UsageError | ExternalError], total: int
) -> UsageError | ExternalError:
    """One error for all files that cannot be read, which are listed in its notes (PEP 678).

    Args:
        failures: at least one.
        total: how many files were read, those included.
    """
    kind = (
        ExternalError if all(isinstance(error, ExternalError) for error in failures) else UsageError
    )
    if total == 1:
        return kind(str(failures[0]))
    if len(failures) == 1:
        return kind(f"{failures[0]}; --skip-unreadable goes on without it")
    error = kind(
        f"{len(failures):,} of {total:,} images cannot be read ({short(failures[0])}, ...); "
        "replace them, or add --skip-unreadable to go on without them"
    )
    for line in listed(failures):
        error.add_note(line)
    return error


def listed(failures: Sequence[UsageError | ExternalError]) -> list[str]:
    """A line for each file that cannot be read, up to a screenful."""
    lines = [short(error) for error in failures[:_SCREENFUL]]
    rest = len(failures) - len(lines)
    return [*lines, f"... and {rest:,} more"] if rest else lines


def short(error: UsageError | ExternalError) -> str:
    """Which file cannot be read and why, without what to do about it."""
    return str(error).rpartition("; ")[0] or str(error)


def read(path: Path) -> Tensor:
    """An image file as a network takes it: as ``decode`` reads it.

    Returns:
        uint8 [3, 32, 32].

    Raises:
        UsageError: as ``decode``. ``path`` is named.
        ExternalError: the operating system cannot read it.
    """
    where = one_line(path)
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise ExternalError(
            f"cannot read {where}: {reason(error)}; check the file and its permissions"
        ) from error
    with stream:
        picture = decode(stream, where, ending=ending_of(path.name))
    rows = torch.frombuffer(bytearray(picture.pixels), dtype=torch.uint8)
    return rows.reshape(SIDE, SIDE, 3).permute(2, 0, 1).contiguous()


def decode(stream: IO[bytes], where: str, how: str | None = "crop", *, ending: str = "") -> Picture:
    """An image file made 32x32 RGB.

    It is turned and mirrored as its EXIF orientation says. What is transparent is composited on
    white. Grey, palette and CMYK images become RGB; colour profiles are not applied. Of an
    animation or of several pages it is the first.

    Args:
        where: what a message calls the file.
        how: one of ``FITS``: see ``fit``. None: the image has to be 32x32 already.
        ending: of the file's name, such as ".tga". Only a few kinds of file need it.

    Raises:
        UnreadableError: it is not an image, is damaged, is larger than Pillow thinks safe, or has
            more than 8 bits a channel and no way to fewer. ``where`` is named.
        UsageError: it is not 32x32, and ``how`` is None.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"):
            # Comes with the size from the head of the file, before anything is decoded.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=_formats(ending)) as image:
                if how is None and image.size != (SIDE, SIDE):
                    width, height = image.size
                    raise UsageError(
                        f"{where} is {width}x{height}; every image must be {SIDE}x{SIDE}, so add "
                        "--resize crop or --resize stretch"
                    )
                return _picture(image, where, how or "crop")
    except UsageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableError(
            f"{where} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableError(
            f"{where} is not an image file; give one of {', '.join(readable_formats()[:9])}, ..."
        ) from error
    # Pillow raises whatever its decoder tripped over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UnreadableError(
            f"{where} cannot be read as an image ({reason(error)}); replace it, or leave it out"
        ) from error


def _picture(image: "Image", where: str, how: str) -> Picture:
    from PIL.Image import Transpose

    if image.mode[0] in "IF":
        raise UnreadableError(f"{where} has more than 8 bits a channel; save it with 8")
    mode, size, turned = image.mode, image.size, _orientation(image)
    deep = any(_DEEP.search(str(tile[3])) for tile in getattr(image, "tile", ()))
    image.load()
    # Some kinds have been turned by loading them, and say so.
    turn = _TURNS[_orientation(image)]
    upright = image.transpose(Transpose[turn]) if turn else image
    fitted = FITS[how](_to_rgb_or_rgba(upright))
    return Picture(
        _on_white(fitted).tobytes(),
        mode,
        oriented=turned != 1,
        on_white=fitted.mode == "RGBA" and fitted.getchannel("A").getextrema()[0] != 255,
        resized=size != (SIDE, SIDE),
        first_frame=_has_more(image),
        cut_to_8_bits=deep,
    )


def fit(image: "Image", how: str = "crop") -> bytes:
    """The pixels of an image made 32x32 RGB by Pillow's antialiased bicubic resize: 3072 bytes.

    Args:
        how: "crop": the shorter side becomes 32 pixels, and the middle is cut out of the longer
            one. "stretch": both sides become 32 pixels. An image of 32x32 pixels is left as it is.
    """
    return _on_white(FITS[how](_to_rgb_or_rgba(image))).tobytes()


def summed(pictures: Iterable[Picture]) -> dict[str, int | dict[str, int]]:
    """How many images had what done to them; ``converted`` by Pillow's mode of the file."""
    pictures = list(pictures)
    counts: dict[str, int | dict[str, int]] = {
        name: count
        for name in ("oriented", "on_white", "resized", "first_frame", "cut_to_8_bits")
        if (count := sum(getattr(picture, name) for picture in pictures))
    }
    modes = Counter(picture.mode for picture in pictures if picture.mode not in ("RGB", "RGBA"))
    return {**counts, **({"converted": dict(sorted(modes.items()))} if modes else {})}


def _formats(ending: str) -> list[str]:
    """What a file may be: those known by their content, and the one that its name says."""
    return [name for name in readable_formats() if name in _BY_CONTENT or ending in FORMATS[name]]


def _orientation(image: "Image") -> int:
    """1 to 8, as EXIF numbers them. What cannot be read of EXIF says nothing: 1."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever Pillow trips over; the pixels may be whole
        return 1
    return found if found in range(1, 9) else 1


def _has_more(image: "Image") -> bool:
    """Whether there is a second frame or page; the depth map of a photograph does not count."""
    if image.format not in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        return False
    try:
        image.seek(1)
    except Exception:  # EOFError where there is none; all else where it is damaged
        return False
    return True


def _to_rgb_or_rgba(image: "Image") -> "Image":
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or palette.endswith("A")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGBA" if transparent or "transparency" in image.info else "RGB")


def _crop(image: "Image") -> "Image":
    """The middle, as wide as it is high."""
    from PIL.Image import Resampling

    if image.size == (SIDE, SIDE):
        return image
    shorter = min(image.size)
    resized = [round(side * SIDE / shorter) for side in image.size]
    before = [(side - SIDE) // 2 for side in resized]
    scale = [side / new for side, new in zip(image.size, resized, strict=True)]
    # Only what remains is computed: resized as a whole, a line of one pixel would grow huge.
    left, top = (b * s for b, s in zip(before, scale, strict=True))
    right, bottom = (
        min((b + SIDE) * s, side) for b, s, side in zip(before, scale, image.size, strict=True)
    )
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, box=(left, top, right, bottom))


def _stretch(image: "Image") -> "Image":
    """All of it, whatever becomes of its proportions."""
    from PIL.Image import Resampling

    if image.size == (SIDE, SIDE):
        return image
    return image.resize((SIDE, SIDE), Resampling.BICUBIC)


FITS: dict[str, Callable[["Image"], "Image"]] = {"crop": _crop, "stretch": _stretch}


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
