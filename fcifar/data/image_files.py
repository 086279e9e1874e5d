"""Image files of any format and size, decoded to 32x32 RGB.

Import and ``fcifar predict`` read image files here and nowhere else.
"""

import contextlib
import functools
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fcifar.data.dataset import EMPTY, SIDE
from fcifar.data.throttle import Progress, paced
from fcifar.errors import ExternalError, UsageError, names_of, one_line, reason

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads more formats, some of them by running other programs, some without decoding.
_BY_CONTENT = {
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
    # With pillow-heif installed.
    "HEIF": (".heic", ".heif", ".hif"),
}
# The content does not identify these reliably: they need the right file ending.
_BY_ENDING = {
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
}
FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType({**_BY_CONTENT, **_BY_ENDING})
"""File endings by Pillow's name of the format."""

# Everything else that is left out is listed by its file ending.
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
FITS = ("crop", "stretch")  # see fit
_MOST_SHOWN, _MOST_RECORDED = 20, 100  # unreadable files listed in an error, in a prepared file
_ORIENTATION = 0x0112  # the EXIF tag
# Names of Pillow's Transpose that turn an image of each EXIF orientation upright.
_TURNS = (
    *("", "", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM"),
    *("TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"),
)
_DEEP = re.compile(";16[BLN]")  # Pillow's raw modes with 16 bits a channel


class UnreadableError(UsageError):
    """A file is not a usable image: ``<file> <problem>; <solution>``."""


Failure = UsageError | ExternalError  # for one file


class Decoded(NamedTuple):
    """A decoded image file, and what was changed."""

    pixels: bytes  # 3072: 32 rows of 32 RGB triples
    mode: str  # Pillow's mode of the file: "RGB", "L", "P", "CMYK", ...
    oriented: bool = False  # turned or mirrored according to the EXIF orientation
    on_white: bool = False  # has transparency, composited on white
    resized: bool = False
    first_frame: bool = False  # of several
    cut_to_8_bits: bool = False  # a channel


class Found(NamedTuple):
    """The image files among paths, and what was left out."""

    paths: list[Path]
    left_out: dict[str, int]  # number of files that cannot be read here, by ending
    others: int  # text, tables and the like


# Which files --------------------------------------------------------------------------------------


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the keys of ``FORMATS`` that the installed Pillow reads; HEIF needs pillow-heif."""
    from PIL import Image  # not at the top, to keep importing fcifar fast

    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def ending_of(path: str) -> str:
    """``".jpg"`` of ``"train/cat/1.JPG"``; ``""`` if there is none."""
    return PurePosixPath(path).suffix.lower()


def is_image(path: str) -> bool:
    """Whether a path has the file ending of a readable image format."""
    return any(ending_of(path) in FORMATS[name] for name in readable_formats())


def may_be_image(path: str) -> bool:
    """Whether the content has to decide, because the file ending is unknown."""
    ending = ending_of(path)
    return ending not in _NO_IMAGES and not any(ending in known for known in FORMATS.values())


def holds_image(stream: IO[bytes]) -> bool:
    """Whether a file begins like an image. Nothing is decoded."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(stream, formats=_formats("")):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's decoders raise errors of many types
        return False


def left_out(names: Iterable[str]) -> tuple[dict[str, int], int]:
    """Count files by ending, except for text, tables and the like, which are counted together."""
    counts = Counter(ending_of(name) for name in names)
    named = {e: n for e, n in counts.items() if e and e not in _NO_IMAGES}
    return dict(sorted(named.items())), counts.total() - sum(named.values())


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by ending or folder, shortened if there are many: ``50 .heic (hint), 7 in val/``."""
    parts = []
    for what, number in counts.items():
        hint = next((f" ({text})" for endings, text in _HINTS if what in endings), "")
        where = "" if what.startswith(".") else "in "
        parts.append(f"{number:,} {where}{one_line(what)}{hint}")
    return names_of(parts)


def others_in_words(names: Sequence[str]) -> str:
    """Names of arrays or files, shortened if there are many: ``2 others: mean, std``."""
    return f"{len(names):,} other{'s'[: len(names) > 1]}: {first_three(names)}"


def first_three(names: Sequence[str]) -> str:
    """``mean, std, max, ...``."""
    return ", ".join(map(one_line, names[:3])) + ", ..." * (len(names) > 3)


def find(paths: Iterable[Path]) -> Found:
    """Find the image files among ``paths`` and, sorted, in the folders among them.

    Given files are taken with any name. In folders and their subfolders, files with the ending of
    an image are taken, and files with an unknown ending if they contain one. Hidden files and links
    to folders are ignored.
    """
    found, others = [], []
    for path in paths:
        if path.is_dir():
            files = sorted(_walk(path))
            images = [file for file in files if _is_image_file(file)]
            rest = [str(file) for file in set(files) - set(images)]
            if not images:
                named, _ = left_out(rest)
                what = f"it has {in_words(named)}" if named else "no file in it is an image"
                raise UsageError(
                    f"there is no image in {one_line(path)}: {what}; give one of {_examples()}"
                )
            found += images
            others += rest
        elif path.is_file():
            found.append(path)
        else:
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UsageError(f"{one_line(path)} {what}; give image files, or folders of them")
    return Found(found, *left_out(others))


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise unreadable(folder, error)

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _is_image_file(path: Path) -> bool:
    if not may_be_image(path.name):
        return is_image(path.name)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            return holds_image(stream)
    except (OSError, ValueError):
        return False


# Reading ------------------------------------------------------------------------------------------


def read_those_that_can_be(
    paths: Sequence[Path], progress: Progress | None = None
) -> tuple[list[Tensor], dict[Path, Failure]]:
    """``read`` every readable file. Returns the images, and the errors of the other files."""
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


def cannot_read(failures: Sequence[Failure], total: int) -> Failure:
    """Return one error for all unreadable files of ``total``, listed in its notes (PEP 678)."""
    external = all(isinstance(error, ExternalError) for error in failures)
    kind = ExternalError if external else UsageError
    if len(failures) == 1:
        return kind(f"{failures[0]}{'; --skip-unreadable goes on without it' * (total > 1)}")
    error = kind(
        f"{len(failures):,} of {total:,} images cannot be read ({short(failures[0])}, ...); "
        "replace them, or add --skip-unreadable to go on without them"
    )
    for line in listed(failures):
        error.add_note(line)
    return error


def listed(failures: Sequence[Failure]) -> list[str]:
    """A line for each unreadable file, up to 20."""
    lines = [short(error) for error in failures[:_MOST_SHOWN]]
    rest = len(failures) - len(lines)
    return [*lines, f"... and {rest:,} more"] if rest else lines


def short(error: Failure) -> str:
    """The message without the solution."""
    return str(error).rpartition("; ")[0] or str(error)


def read(path: Path) -> Tensor:
    """Decode an image file: uint8 [3, 32, 32]. Raises as ``decode`` does.

    Raises:
        ExternalError: the file cannot be opened.
    """
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: invalid file name
        raise unreadable(path, error) from error
    with stream:
        decoded = decode(stream, one_line(path), ending=ending_of(path.name))
    return to_tensor(bytearray(decoded.pixels))[0]


def unreadable(path: Path, error: Exception) -> ExternalError:
    """Return the error for a file or folder that the operating system cannot read."""
    return ExternalError(
        f"cannot read {one_line(path)}: {reason(error)}; check the file and its permissions"
    )


def to_tensor(pixels: bytearray) -> Tensor:
    """Rows of 32x32 RGB triples as uint8 [N, 3, 32, 32]."""
    if not pixels:
        return EMPTY.images
    rows = torch.frombuffer(pixels, dtype=torch.uint8)
    return rows.reshape(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).contiguous()


def decode(stream: IO[bytes], where: str, how: str | None = "crop", *, ending: str = "") -> Decoded:
    """Decode an image file to 32x32 RGB.

    The EXIF orientation is applied. Transparency is composited on white. Grey, palette and CMYK
    images become RGB; colour profiles are not applied. Only the first frame or page is read.

    Args:
        where: name of the file in messages.
        how: one of ``FITS``: see ``fit``. None: the image has to be 32x32 already.
        ending: of the file, such as ".tga". A few formats need it.

    Raises:
        UnreadableError: the file is not an image, is damaged, has more pixels than Pillow accepts,
            or has more than 8 bits a channel that cannot be cut.
        UsageError: the image is not 32x32, and ``how`` is None.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"):
            # The warning is raised for the size in the header, before anything is decoded.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=_formats(ending)) as image:
                if how is None and image.size != (SIDE, SIDE):
                    width, height = image.size
                    raise UsageError(
                        f"{where} is {width}x{height}; every image must be {SIDE}x{SIDE}, so add "
                        "--resize crop or --resize stretch"
                    )
                return _decode(image, where, how or "crop")
    except UsageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
            problem = f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        elif isinstance(error, UnidentifiedImageError):
            problem = f"is not an image file; give one of {_examples()}"
        else:
            problem = f"cannot be read as an image ({reason(error)}); replace it, or leave it out"
        raise UnreadableError(f"{where} {problem}") from error


def _decode(image: "Image", where: str, how: str) -> Decoded:
    from PIL.Image import Transpose

    if image.mode[0] in "IF":
        raise UnreadableError(f"{where} has more than 8 bits a channel; save it with 8")
    mode, size, stored = image.mode, image.size, _orientation(image)
    deep = any(_DEEP.search(str(tile[3])) for tile in getattr(image, "tile", ()))
    image.load()
    turn = _TURNS[_orientation(image)]  # read again: loading some formats applies it
    fitted = _fit(image.transpose(Transpose[turn]) if turn else image, how)
    return Decoded(
        _on_white(fitted).tobytes(),
        mode,
        oriented=stored != 1,
        on_white=fitted.mode == "RGBA" and fitted.getchannel("A").getextrema()[0] != 255,
        resized=size != (SIDE, SIDE),
        first_frame=_has_more(image),
        cut_to_8_bits=deep,
    )


def changes(decoded: Iterable[Decoded]) -> dict[str, Any]:
    """Count the images with each change; ``converted`` is by Pillow's mode of the file."""
    decoded = list(decoded)
    names = ("oriented", "on_white", "resized", "first_frame", "cut_to_8_bits")
    counts: dict[str, Any] = {
        name: sum(getattr(image, name) for image in decoded) for name in names
    }
    modes = Counter(image.mode for image in decoded if image.mode not in ("RGB", "RGBA"))
    counts["converted"] = dict(sorted(modes.items()))
    return {name: count for name, count in counts.items() if count}


def preparation(decoded: Sequence[Decoded], failures: Sequence[Failure]) -> dict[str, Any]:
    """What was done to image files, as part of ``Content.preparation``."""
    return {
        "images": len(decoded),
        **changes(decoded),
        "unreadable": len(failures),
        "unreadable_files": [short(error) for error in failures[:_MOST_RECORDED]],
    }


def _formats(ending: str) -> list[str]:
    """The formats that a file of this ending may have."""
    return [name for name in readable_formats() if name in _BY_CONTENT or ending in FORMATS[name]]


def _examples() -> str:
    return f"{', '.join(readable_formats()[:9])}, ..."


def _orientation(image: "Image") -> int:
    """The EXIF orientation, 1 to 8; 1 if it cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF; the pixels may be fine
        return 1
    return found if found in range(1, 9) else 1


def _has_more(image: "Image") -> bool:
    """Whether there is a second frame or page; a photograph's depth map does not count."""
    if image.format not in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        return False
    try:
        image.seek(1)
    except Exception:  # EOFError if there is none, other errors if it is damaged
        return False
    return True


# Pixels -------------------------------------------------------------------------------------------


def fit(image: "Image", how: str = "crop") -> bytes:
    """Return the 3072 pixel bytes of an image made 32x32 RGB by antialiased bicubic resizing.

    Args:
        how: "crop" resizes the shorter side to 32 pixels and cuts out the middle of the longer
            side. "stretch" resizes both sides. A 32x32 image is not changed.
    """
    return _on_white(_fit(image, how)).tobytes()


def _fit(image: "Image", how: str) -> "Image":
    """32x32, RGB or RGBA."""
    from PIL.Image import Resampling

    image = _to_rgb_or_rgba(image)
    if image.size == (SIDE, SIDE):
        return image
    if how == "stretch":
        return image.resize((SIDE, SIDE), Resampling.BICUBIC)
    shorter = min(image.size)
    resized = [round(side * SIDE / shorter) for side in image.size]
    before = [(side - SIDE) // 2 for side in resized]
    scale = [side / new for side, new in zip(image.size, resized, strict=True)]
    # Only the middle is computed: the whole of an image one pixel high would grow huge.
    left, top = (b * s for b, s in zip(before, scale, strict=True))
    right, bottom = (
        min((b + SIDE) * s, side) for b, s, side in zip(before, scale, image.size, strict=True)
    )
    return image.resize((SIDE, SIDE), Resampling.BICUBIC, box=(left, top, right, bottom))


def _to_rgb_or_rgba(image: "Image") -> "Image":
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or palette.endswith("A")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGBA" if transparent or "transparency" in image.info else "RGB")


def _on_white(image: "Image") -> "Image":
    from PIL import Image

    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
