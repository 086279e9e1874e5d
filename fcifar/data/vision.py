"""Data sets of other kinds and sizes, read by torchvision's classes and made 32x32 RGB."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fcifar.data import pictures
from fcifar.data.dataset import SIDE, Content, Split
from fcifar.data.known import Known
from fcifar.data.progress import Progress
from fcifar.errors import UserError


def check_readable(known: Known) -> None:
    """Raise a UserError if a package that reads the files of ``known`` is not installed."""
    if known.needs and importlib.util.find_spec(known.needs) is None:
        raise UserError(
            f"{known.name} needs {known.needs} to read its files; "
            f"install it with: pip install 'fcifar[{known.name}]'"
        )


def read(
    known: Known, folder: Path, *, url: str | None, download: bool, progress: Progress
) -> Content:
    """The images in ``folder``, which torchvision fills first if ``download``.

    torchvision checks the md5 of what it downloads, and unpickles nothing for the sets of
    ``KNOWN``. Grey images become RGB; other sizes are resized as ``pictures.fit`` says.

    Args:
        url: a mirror: the address of the folder that has the files, under their usual names.

    Raises:
        RuntimeError: torchvision did not find or could not download the files.
    """
    from torchvision import datasets

    source = getattr(datasets, known.torchvision)
    if url is not None:
        source = _mirrored(source, url)
    # Both are made before the first is read: what is missing shows at once.
    found = [source(folder, download=download, **arguments) for arguments in known.splits]
    total, done = sum(map(len, found)), 0
    splits, kinds = [], []
    for images in found:
        pixels, labels = bytearray(), []
        for row in range(len(images)):
            image, label = images[row]
            pixels += pictures.fit(image)
            resized = image.size != (SIDE, SIDE)
            kinds.append(pictures.Picture(b"", image.mode, resized=resized))
            labels.append(int(label))
            done += 1
            progress("resizing images", done, total)
        splits.append(_split(pixels, labels))
    train, test = splits
    preparation = {"images": total, "resize": "crop", **pictures.summed(kinds)}
    return Content(train, test, _classes(found[0], train), preparation=preparation)


def _split(pixels: bytearray, labels: Sequence[int]) -> Split:
    rows = torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, SIDE, SIDE, 3)
    return Split(rows.permute(0, 3, 1, 2).contiguous(), torch.tensor(labels, dtype=torch.int64))


def _classes(images: Any, split: Split) -> tuple[str, ...]:
    """The names that torchvision knows, or numbers: SVHN's digits have none."""
    names = getattr(images, "classes", None)
    return tuple(names) if names else tuple(map(str, range(1 + int(split.labels.max()))))


def _mirrored(source: type, url: str) -> type:
    """torchvision's class, with another address and the same names and checksums of files."""
    base = url.rstrip("/") + "/"
    if hasattr(source, "mirrors"):
        changes: dict[str, Any] = {"mirrors": [base]}
    elif hasattr(source, "split_list"):
        changes = {
            "split_list": {
                split: [base + file, file, md5]
                for split, (_, file, md5) in source.split_list.items()
            }
        }
    else:
        changes = {"url": base + source.filename}
    return type(source.__name__, (source,), changes)
