"""Picture files of any kind and size, made into the 32x32 images that a network takes."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch import Tensor

from fcifar.data.dataset import SIDE
from fcifar.data.folders import IMAGES, UNSUPPORTED, is_image
from fcifar.data.progress import Progress, paced
from fcifar.errors import UserError, WorldError, one_line, reason

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow reads more, but some of that by running other programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")


def find(paths: Iterable[Path]) -> list[Path]:
    """The picture files among ``paths``, and in sorted order those in the folders among them.

    A file that is given is taken, whatever its name. In a folder and the folders below it, those
    that are named like a picture are taken; hidden ones, and links to folders, are passed over.

    Raises:
        UserError: a path leads nowhere, or there is no picture in a folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_walk(path))
            if not inside:
                raise UserError(
                    f"there is no picture in {one_line(path)}: no file in it ends in "
                    f"{', '.join(IMAGES + UNSUPPORTED)}"
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise UserError(f"{one_line(path)} {what}; give picture files, or folders of them")
    return found


def read_all(paths: Sequence[Path], progress: Progress | None = None) -> Tensor:
    """``read`` of each of one or more files: uint8 [N, 3, 32, 32]."""
    progress = paced(progress)
    images = []
    for done, path in enumerate(paths, 1):
        images.append(read(path))
        progress("reading pictures", done, len(paths))
    return torch.stack(images)


def read(path: Path) -> Tensor:
    """A picture file as a network takes it: as ``decode`` reads it.

    Returns:
        uint8 [3, 32, 32].

    Raises:
        UserError: as ``decode``. ``path`` is named.
        WorldError: the operating system cannot read it.
    """
    where = one_line(path)
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise WorldError(
            f"cannot read {where}: {reason(error)}; check the file and its permissions"
        ) from error
    with stream:
        rows = torch.frombuffer(bytearray(decode(stream, where)), dtype=torch.uint8)
    return rows.reshape(SIDE, SIDE, 3).permute(2, 0, 1).contiguous()


def decode(stream: IO[bytes], where: str, how: str = "crop") -> bytes:
    """The pixels of a picture file made 32x32: 3072 bytes, rows of RGB triples.

    It is turned as its EXIF orientation says, and becomes RGB. What is transparent is seen on
    white. Of an animation or of several pages it is the first. Colour profiles are not applied.

    Args:
        where: what a message calls the file.
        how: one of ``FITS``: see ``fit``.

    Raises:
        UserError: it is no picture, is damaged, is larger than Pillow thinks safe, or has more
            than 8 bits a channel. ``where`` is named.
    """
    # Not at the top: importing fcifar shall stay cheap.
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"):
            # Comes with the size from the head of the file, before anything is decoded.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(stream, formats=_formats()) as image:
                if image.mode[0] in "IF":
                    raise UserError(f"{where} has more than 8 bits a channel; save it with 8")
                return fit(ImageOps.exif_transpose(image), how)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{where} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is no picture; give one of {', '.join(FORMATS)}") from error
    # Pillow raises whatever its decoder tripped over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UserError(
            f"{where} cannot be read as a picture ({reason(error)}); replace it, or leave it out"
        ) from error


def fit(image: "Image", how: str = "crop") -> bytes:
    """The pixels of an image made 32x32 RGB by Pillow's antialiased bicubic resize: 3072 bytes.

    Args:
        how: "crop": the shorter side becomes 32 pixels, and the middle is cut out of the longer
            one. "stretch": both sides become 32 pixels. An image of 32x32 pixels is left as it is.
    """
    return _on_white(FITS[how](_to_rgb_or_rgba(image))).tobytes()


def _walk(folder: Path) -> Iterator[Path]:
    def give_up(error: OSError) -> None:
        raise WorldError(f"cannot read {one_line(folder)}: {reason(error)}; check its permissions")

    for place, folders, files in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(place, name) for name in files if is_image(name) and not name.startswith(".")
        )


def _formats() -> list[str]:
    """Those of ``FORMATS`` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb_or_rgba(image: "Image") -> "Image":
    transparent = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


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
