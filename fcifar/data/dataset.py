"""A data set as a value, and its validation."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.errors import UsageError, one_line

SIDE = 32  # pixels


class Split(NamedTuple):
    """The images of one part of a data set, with their labels."""

    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]


EMPTY = Split(torch.empty(0, 3, SIDE, SIDE, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
"""The training split of a data set with test images only; the validation split of most sets."""


class Content(NamedTuple):
    """The content of a source, as a reader returns it."""

    train: Split  # EMPTY for a data set with test images only
    test: Split
    classes: tuple[str, ...]
    valid: Split = EMPTY  # given validation images
    preparation: Mapping[str, Any] = MappingProxyType({})  # changes and omissions, JSON values


class ImportOptions(NamedTuple):
    """How to read a source that can be read in several ways."""

    resize: str | None = None  # key of image_files.FITS; None: images have to be 32x32
    labels: str | None = None  # of CIFAR-100: fine or coarse; None: fine
    test_fraction: float = 0.0  # of each class to hold out, in (0, 1); 0: the source has a test set
    seed: int = 0  # of the key that draws the held-out images
    skip_unreadable: bool = False  # leave out unreadable images instead of raising an error
    corruption: str | None = None  # of CIFAR-10-C, such as fog, where a source has several
    severity: int | None = None  # of the corruption, 1 to 5; None: all of them


class Dataset(NamedTuple):
    """A prepared data set, in memory or memory-mapped."""

    name: str
    train_images: Tensor  # uint8 [N, 3, 32, 32]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # uint8 [M, 3, 32, 32]
    test_labels: Tensor  # int64 [M]
    classes: tuple[str, ...]
    source: str  # description of the origin
    digest: str  # SHA-256, see content_digest
    path: str = ""  # the memory-mapped file, if any
    preparation: Mapping[str, Any] = MappingProxyType({})  # see Content; not part of the digest
    valid_images: Tensor = EMPTY.images  # uint8 [V, 3, 32, 32], given validation images
    valid_labels: Tensor = EMPTY.labels  # int64 [V]


def make_dataset(
    name: str, train: Split, test: Split, classes: Sequence[str], source: str, valid: Split = EMPTY
) -> Dataset:
    """Return a valid data set with its digest.

    ``train`` is ``EMPTY`` for a data set to evaluate on, but not to train on.

    Raises:
        UsageError: the test split is empty, a shape or dtype is wrong, a label has no class, or
            class names are missing, repeated or unprintable.
    """
    check(train, test, classes, valid)
    digest = content_digest(*train, *test, classes, *valid)
    dataset = Dataset(name, *train, *test, tuple(classes), source, digest)
    return dataset._replace(valid_images=valid.images, valid_labels=valid.labels)


def content_digest(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    classes: Sequence[str],
    valid_images: Tensor = EMPTY.images,
    valid_labels: Tensor = EMPTY.labels,
) -> str:
    """Return the SHA-256 of images, labels and class names in order.

    Name and source of the data set are not included: the same images imported from a folder and
    from an archive have the same digest. An empty validation split is not included either.
    """
    values = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "classes": torch.tensor(list(json.dumps(list(classes)).encode()), dtype=torch.uint8),
    }
    if len(valid_labels):
        values |= {"valid_images": valid_images, "valid_labels": valid_labels}
    return tree.digest(values)


def check(train: Split, test: Split, classes: Sequence[str], valid: Split = EMPTY) -> None:
    """Raise the UsageError of ``make_dataset``. Images are not read."""
    if bad := [name for name in classes if not name or not name.isprintable()]:
        raise UsageError(f"a class is named {one_line(repr(bad[0]))}; names are printable text")
    if not classes or len(set(classes)) < len(classes):
        raise UsageError(f"the class names are {one_line(list(classes))}; each needs its own name")
    for name, split in (("train", train), ("validation", valid), ("test", test)):
        check_split(name, split, len(classes))
    if not len(test.images):
        raise UsageError("the test split is empty; it needs at least one image")


def check_split(name: str, split: Split, classes: int) -> None:
    """Raise a UsageError unless shapes, dtypes and numbers of images and labels are right and
    labels lie in [0, ``classes``).
    """
    images, labels = split
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
        raise UsageError(
            f"the {name} images are {_describe(images)}; "
            f"they must be uint8 [N, 3, {SIDE}, {SIDE}] or uint8 [N, {SIDE}, {SIDE}, 3]"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise UsageError(f"the {name} labels are {_describe(labels)}; they must be integers [N]")
    if len(images) != len(labels):
        raise UsageError(
            f"the {name} split has {len(images)} images and {len(labels)} labels; "
            "every image needs one label"
        )
    if not len(labels):
        return
    low, high = map(int, labels.aminmax())
    if low < 0 or high >= classes:
        raise UsageError(
            f"the {name} labels run from {low} to {high}, but {classes} classes "
            f"have labels 0 to {classes - 1}"
        )


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
