"""Class folders: ``train/<class>/<image>`` and ``test/<class>/<image>``, or ``<class>/<image>``."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import torch

from fcifar import random
from fcifar.data.dataset import SIDE, Content, Split
from fcifar.data.progress import Progress
from fcifar.data.splits import hold_out_of_each
from fcifar.errors import UserError, one_line, reason

Decode = Callable[[str, bytes], bytes]

SPLITS = ("train", "test")
VALIDATION = ("val", "valid", "validation")  # what others call the folder to test with
IMAGES = (".png", ".jpg", ".jpeg")
# Passing over these would make a smaller data set than the folder shows.
UNSUPPORTED = (".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".avif")


def is_image(path: str) -> bool:
    """Whether a path has the ending of an image file, of a kind we read or not."""
    return path.lower().endswith(IMAGES + UNSUPPORTED)


def is_layout(files: Mapping[str, bytes]) -> bool:
    """Whether there is a train or a test folder, or else a folder with an image in it."""
    return _has_splits(files) or any("/" in path and is_image(path) for path in files)


def read(
    files: Mapping[str, bytes],
    progress: Progress,
    *,
    decode: Decode,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Content:
    """Decode every image. ``files`` are in sorted order, and so are classes and rows.

    Classes are numbered in the alphabetical order of their names, which for CIFAR-10 is the
    official order.

    Args:
        decode: ``(path, content) -> `` 3072 bytes, rows of RGB triples.
        test_fraction: of the images of each class, rounded, and at least one, to test with, where
            there is no test folder. 0 asks for a test folder.
        seed: of the key that chooses them.

    Raises:
        UserError: a split or class is missing or empty, or a file is no 32x32 image. The file is
            named.
    """
    if not test_fraction:
        _check_splits(files)
        members = {split: _by_class(files, split) for split in SPLITS}
        for split, other in (SPLITS, SPLITS[::-1]):
            if lost := sorted(set(members[other]) - set(members[split])):
                raise UserError(
                    f"class {one_line(repr(lost[0]))} is in {other}/ but not in {split}/; "
                    "every class needs both"
                )
        images = sum(len(paths) for split in members.values() for paths in split.values())
        report = _counted(progress, images)
        train, test = (_decode_all(members[split], files, decode, report) for split in SPLITS)
        return Content(train, test, tuple(sorted(members["train"])))
    if any(path.startswith("test/") for path in files):
        raise UserError("there is a test folder already; leave --test-fraction out")
    together = _by_class(files, "train" if _has_splits(files) else "")
    if few := [name for name, paths in sorted(together.items()) if len(paths) < 2]:
        raise UserError(
            f"class {one_line(repr(few[0]))} has a single image; to hold a part of it out for "
            "testing, it needs two or more"
        )
    report = _counted(progress, sum(map(len, together.values())))
    everything = _decode_all(together, files, decode, report)
    kept, held_out = hold_out_of_each(random.key(seed), everything.labels, test_fraction)
    train, test = (Split(*(part[rows] for part in everything)) for rows in (kept, held_out))
    return Content(train, test, tuple(sorted(together)))


def left_out(files: Mapping[str, bytes]) -> tuple[int, tuple[str, ...]]:
    """How many images ``read`` takes for neither split, and the folders that they are in."""
    if not _has_splits(files):
        return 0, ()
    other = [path for path in files if is_image(path) and path.split("/")[0] not in SPLITS]
    return len(other), tuple(sorted({path.rpartition("/")[0].split("/")[0] for path in other}))


def _has_splits(files: Mapping[str, bytes]) -> bool:
    return any(path.split("/")[0] in SPLITS and "/" in path for path in files)


def _check_splits(files: Mapping[str, bytes]) -> None:
    """Raise a UserError unless there are images to train and images to test with."""
    tops = {path.split("/")[0] for path in files if path.count("/") > 1}
    for split in SPLITS:
        if split in tops:
            continue
        if not _has_splits(files):
            raise UserError(
                "there are class folders, and neither train/ nor test/ above them; add "
                "--test-fraction 0.1 to hold a tenth of each class out for testing"
            )
        other = next((f"; rename {top}/ to test/" for top in VALIDATION if top in tops), "")
        way = f"{other}, or add --test-fraction 0.1 for a part of train/" if split == "test" else ""
        raise UserError(f"there is no {split}/<class>/ folder; both train and test are needed{way}")


def _counted(progress: Progress, total: int) -> Callable[[], None]:
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        progress("decoding images", done, total)

    return report


def _decode_all(
    members: Mapping[str, Sequence[str]],
    files: Mapping[str, bytes],
    decode: Decode,
    report: Callable[[], None],
) -> Split:
    pixels = bytearray()
    classes = sorted(members)
    for name in classes:
        for path in members[name]:
            pixels += decode(path, files[path])
            report()
    counts = torch.tensor([len(members[name]) for name in classes])
    return Split(_to_images(pixels), torch.repeat_interleave(torch.arange(len(classes)), counts))


def decode(path: str, data: bytes) -> bytes:
    """The pixels of a PNG or JPEG file: 3072 bytes, rows of RGB triples.

    Grey, palette and CMYK images become RGB; transparency is dropped.

    Raises:
        UserError: it is no such file, is damaged, or is not 32x32. ``path`` is named.
    """
    from PIL import Image  # not at the top: importing fcifar shall stay cheap

    if not path.lower().endswith(IMAGES):
        raise UserError(
            f"{one_line(path)} is a {PurePosixPath(path).suffix} file; save it as one of "
            f"{', '.join(IMAGES)}, or add --resize, which reads others"
        )
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
                    f"every image must be {SIDE}x{SIDE}, so add --resize crop or --resize stretch"
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


def _by_class(files: Mapping[str, bytes], above: str) -> dict[str, list[str]]:
    """Image paths by class, both in sorted order, in the folder ``above`` the classes, or ""."""
    classes: dict[str, list[str]] = {}
    start = f"{above}/" if above else ""
    for path in sorted(files):
        rest = path.removeprefix(start).rstrip("/").split("/")
        if not path.startswith(start) or path == start:
            continue
        if path.endswith("/") and len(rest) == 1:
            classes.setdefault(rest[0], [])
        elif not path.endswith("/"):
            if len(rest) != 2:
                raise UserError(
                    f"{one_line(path)} does not lie in a folder {start}<class>/; move it there"
                )
            classes.setdefault(rest[0], []).append(path)
    if empty := [name for name, paths in classes.items() if not paths]:
        raise UserError(
            f"{start}{one_line(empty[0])}/ has no image in it; "
            f"put {', '.join(IMAGES)} files there or remove the folder"
        )
    return classes


def _to_images(pixels: bytearray) -> torch.Tensor:
    rows = torch.frombuffer(pixels, dtype=torch.uint8)
    return rows.reshape(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2).contiguous()
