"""Class folders: ``train/<class>/<image>`` and ``test/<class>/<image>``."""

import io
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath

import torch

from fcifar.data.dataset import SIDE, Content, Split
from fcifar.data.progress import Progress
from fcifar.errors import UserError, one_line, reason

SPLITS = ("train", "test")
IMAGES = (".png", ".jpg", ".jpeg")
# Passing over these would make a smaller data set than the folder shows.
UNSUPPORTED = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".avif")


def is_image(path: str) -> bool:
    """Whether a path has the ending of an image file, of a kind we read or not."""
    return path.lower().endswith(IMAGES + UNSUPPORTED)


def is_layout(files: Mapping[str, bytes]) -> bool:
    """Whether there is a train or a test folder at all."""
    return any(path.split("/")[0] in SPLITS and "/" in path for path in files)


def read(files: Mapping[str, bytes], progress: Progress) -> Content:
    """Decode every image. ``files`` are in sorted order, and so are classes and rows.

    Classes are numbered in the alphabetical order of their names, which for CIFAR-10 is the
    official order.

    Raises:
        UserError: a split or class is missing or empty, or a file is no 32x32 image. The file is
            named.
    """
    members = {split: _by_class(files, split) for split in SPLITS}
    classes = sorted(members["train"])
    for split, other in (SPLITS, SPLITS[::-1]):
        if not members[split]:
            raise UserError(f"there is no {split}/<class>/ folder; both train and test are needed")
        if lost := sorted(set(members[other]) - set(members[split])):
            raise UserError(
                f"class {lost[0]!r} is in {other}/ but not in {split}/; every class needs both"
            )
    total = sum(len(paths) for split in members.values() for paths in split.values())
    done = 0
    splits = []
    for split in SPLITS:
        pixels = []
        for name in classes:
            for path in members[split][name]:
                pixels.append(decode(path, files[path]))
                done += 1
                progress("decoding images", done, total)
        counts = torch.tensor([len(members[split][name]) for name in classes])
        splits.append(
            Split(_to_images(pixels), torch.repeat_interleave(torch.arange(len(classes)), counts))
        )
    train, test = splits
    return Content(train, test, tuple(classes))


def decode(path: str, data: bytes) -> bytes:
    """The pixels of a PNG or JPEG file: 3072 bytes, rows of RGB triples.

    Grey, palette and CMYK images become RGB; transparency is dropped.

    Raises:
        UserError: it is no such file, is damaged, or is not 32x32. ``path`` is named.
    """
    from PIL import Image  # not at the top: importing fcifar shall stay cheap

    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image,
        ):
            # The size is in the head of the file. Nothing has been decoded yet.
            if image.size != (SIDE, SIDE):
                width, height = image.size
                raise UserError(
                    f"{one_line(path)} is {width}x{height}; "
                    f"every image must be {SIDE}x{SIDE}, so resize it"
                )
            if image.mode[0] in "IF":
                raise UserError(f"{one_line(path)} has more than 8 bits a channel; save it with 8")
            if "transparency" in image.info:
                return image.convert("RGBA").convert("RGB").tobytes()
            return image.convert("RGB").tobytes()
    except UserError:
        raise
    # Pillow raises whatever its decoder tripped over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UserError(
            f"{one_line(path)} is no readable PNG or JPEG image ({reason(error)}); "
            "replace or remove it"
        ) from error


def _by_class(files: Mapping[str, bytes], split: str) -> dict[str, list[str]]:
    """Image paths of one split by class, both in sorted order."""
    classes: dict[str, list[str]] = {}
    for path in sorted(files):
        top, *rest = path.rstrip("/").split("/")
        if top != split or not rest:
            continue
        if path.endswith("/") and len(rest) == 1:
            classes.setdefault(rest[0], [])
        elif not path.endswith("/"):
            if len(rest) != 2:
                raise UserError(
                    f"{one_line(path)} does not lie in a folder {split}/<class>/; move it there"
                )
            if not path.lower().endswith(IMAGES):
                raise UserError(
                    f"{one_line(path)} is a {PurePosixPath(path).suffix} file; "
                    f"save it as one of {', '.join(IMAGES)}"
                )
            classes.setdefault(rest[0], []).append(path)
    if empty := [name for name, paths in classes.items() if not paths]:
        raise UserError(
            f"{split}/{one_line(empty[0])}/ has no image in it; "
            f"put {', '.join(IMAGES)} files there or remove the folder"
        )
    return classes


def _to_images(pixels: list[bytes]) -> torch.Tensor:
    rows = torch.frombuffer(bytearray(b"".join(pixels)), dtype=torch.uint8)
    return rows.reshape(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).contiguous()
