"""CIFAR-10-C and CIFAR-100-C as a whole: every corruption of a folder or archive.

https://arxiv.org/abs/1903.12261. The 19 files have 2.9 GB. Each in turn is read, and its images are
moved to a temporary file, from which the data set is written; no more than one is in memory.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from fcifar.data.dataset import EMPTY, SIDE, Content, ImportOptions, Split
from fcifar.data.readers import npz
from fcifar.errors import ExternalError, UsageError, one_line, reason

_CHUNK = 1000  # images that are moved at a time


class Part(NamedTuple):
    """The images of a corruption, in a file that all of them share."""

    images: np.ndarray  # uint8 [19, N, 3, 32, 32], memory-mapped
    slot: int  # index in npz.CORRUPTIONS


def is_corruption(path: str) -> bool:
    """Whether the file name is that of a known corruption."""
    return path.endswith(".npy") and PurePosixPath(path).stem in npz.CORRUPTIONS


def make_collect(folder: Path, severity: int | None) -> Callable[[str, bytes], Part]:
    """Return a function that moves the images of a file to a temporary file, which all files share.

    Args:
        folder: for the temporary file; the nearest one that exists.
        severity: the images to keep; None: all of them.

    The function raises a UsageError if a file does not hold ``SEVERITIES`` times as many images, or
    not as many as the first one, and an ExternalError if there is no space.
    """
    shared: list[np.ndarray] = []

    def collect(path: str, data: bytes) -> Part:
        array = npz.load_array(path, data)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1:] != (SIDE, SIDE, 3):
            raise UsageError(
                f"{one_line(path)} is {one_line(array.dtype)} {list(array.shape)}; a corruption is "
                f"uint8 [N, {SIDE}, {SIDE}, 3]"
            )
        if not len(array) or len(array) % npz.SEVERITIES:
            raise UsageError(
                f"{one_line(path)} has {len(array):,} images, which are not {npz.SEVERITIES} "
                "severities of as many images"
            )
        if severity is not None:
            array = np.split(array, npz.SEVERITIES)[severity - 1]
        try:
            if not shared:
                near = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
                shape = (len(npz.CORRUPTIONS), len(array), 3, SIDE, SIDE)
                with tempfile.TemporaryFile(dir=near) as file:  # its space is freed with the array
                    shared.append(np.memmap(file, np.uint8, "w+", shape=shape))
            if len(array) != shared[0].shape[1]:
                raise UsageError(
                    f"{one_line(path)} has not as many images as the other corruptions"
                )
            slot = npz.CORRUPTIONS.index(PurePosixPath(path).stem)
            for start in range(0, len(array), _CHUNK):
                chunk = array[start : start + _CHUNK].transpose(0, 3, 1, 2)
                shared[0][slot, start : start + _CHUNK] = chunk
        except OSError as error:
            raise ExternalError(
                f"the images of {one_line(path)} cannot be kept in {one_line(folder)} "
                f"({reason(error)}); free some space, or choose another --data-dir"
            ) from error
        return Part(shared[0], slot)

    return collect


def read(files: Mapping[str, Any], source: str, options: ImportOptions) -> tuple[Content, str]:
    """Return a test set of all corruptions, by name in the order of ``npz.CORRUPTIONS``, and a name
    for it, such as ``cifar10-c``.

    ``preparation`` has the ``corruptions`` and ``severities``: rows are images within severities
    within corruptions.

    Args:
        files: a ``Part`` or an error for each corruption, and the bytes of ``labels.npy``.
        source: names the data set after CIFAR-10 or CIFAR-100, if it has as many classes.
    """
    paths = sorted(filter(is_corruption, files))
    for path in paths:
        if isinstance(files[path], Exception):
            raise files[path]
    slots = {files[path].slot: path for path in paths}
    if len(slots) < len(paths):
        names = " and ".join(one_line(path) for path in paths if path not in slots.values())
        raise UsageError(f"{names} is there twice; it is not clear which one counts")
    labels_path = str(PurePosixPath(paths[0]).with_name(npz.LABELS_FILE))
    if labels_path not in files:
        raise npz.without_labels(paths[0])
    images, labels = files[paths[0]].images, npz.load_array(labels_path, files[labels_path])
    for i, slot in enumerate(sorted(slots)):
        if i != slot:
            images[i] = images[slot]
    images = images[: len(slots)].reshape(-1, 3, SIDE, SIDE)
    per_file = len(images) // len(slots)
    if options.severity is not None and len(labels) == per_file * npz.SEVERITIES:
        labels = np.split(labels, npz.SEVERITIES)[options.severity - 1]
    if labels.dtype.kind not in "iu" or labels.shape != (per_file,):
        raise UsageError(
            f"{one_line(labels_path)} is {one_line(labels.dtype)} {list(labels.shape)}; it must be "
            f"one whole number for each image of a corruption"
        )
    of_all = torch.from_numpy(np.tile(labels.astype(np.int64), len(slots)))
    test = Split(torch.from_numpy(images), of_all)
    names = [npz.CORRUPTIONS[slot] for slot in sorted(slots)]
    classes, family = npz.classes_of(files, test.labels, source, is_known=True)
    used = {*paths, labels_path, npz.CLASSES_FILE}
    preparation = {
        "images": len(images),
        **npz.blocks(names, options.severity),
        "others": [
            path[:-4] for path in sorted(files) if path.endswith(".npy") and path not in used
        ],
    }
    parts = [f"{family}-c", *(names if len(names) == 1 else [])]
    parts += [] if options.severity is None else [str(options.severity)]
    return Content(EMPTY, test, classes, preparation=preparation), "-".join(parts)
