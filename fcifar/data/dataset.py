"""A data set as a value, and what makes one valid."""

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
"""The training split of a test set alone; the validation split of a set without one."""


class Content(NamedTuple):
    """What a reader finds in a source."""

    train: Split  # without rows for a test set alone
    test: Split
    classes: tuple[str, ...]
    valid: Split = EMPTY  # given validation images
    preparation: Mapping[str, Any] = MappingProxyType({})  # what was done and left out, for JSON


class Dataset(NamedTuple):
    """A prepared data set, in memory or memory-mapped."""

    name: str
    train_images: Tensor  # uint8 [N, 3, 32, 32]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # uint8 [M, 3, 32, 32]
    test_labels: Tensor  # int64 [M]
    classes: tuple[str, ...]
    source: str  # where the images came from, for a person
    digest: str  # SHA-256 of content: see content_digest
    path: str = ""  # the prepared file that it is mapped from, if it is
    preparation: Mapping[str, Any] = MappingProxyType(
        {}
    )  # see ``importing``; the digest is not of it
    valid_images: Tensor = EMPTY.images  # uint8 [V, 3, 32, 32]: the given validation split, or none
    valid_labels: Tensor = EMPTY.labels  # int64 [V]


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    classes: Sequence[str],
    source: str,
    valid: Split = EMPTY,
) -> Dataset:
    """A valid data set with its digest.

    Args:
        train: ``EMPTY`` for a test set alone, which can be evaluated on and not trained on.
        valid: the given validation split, ``EMPTY`` where there is none.

    Raises:
        UsageError: the test split is empty, a split is of another shape or dtype, a label has no
            class, or class names are missing, repeated or unprintable.
    """
    check(train, test, classes, valid)
    digest = content_digest(*train, *test, classes, *valid)
    return Dataset(
        name,
        *train,
        *test,
        tuple(classes),
        source,
        digest,
        valid_images=valid.images,
        valid_labels=valid.labels,
    )


def check(train: Split, test: Split, classes: Sequence[str], valid: Split = EMPTY) -> None:
    """Raise the UsageError that ``make_dataset`` promises, without reading the images."""
    _check_classes(classes)
    for name, split in (("train", train), ("validation", valid), ("test", test)):
        check_split(name, split, len(classes))
    if not len(test.images):
        raise UsageError("the test split is empty; it needs at least one image")


def content_digest(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    classes: Sequence[str],
    valid_images: Tensor = EMPTY.images,
    valid_labels: Tensor = EMPTY.labels,
) -> str:
    """SHA-256 of what a model can learn from: images, labels and the class names in order.

    A data set's name and source do not count, so the same images imported from a folder and from
    an archive have the same digest. Validation images count where there are any.
    """
    names = torch.tensor(list(json.dumps(list(classes)).encode()), dtype=torch.uint8)
    given = {"valid_images": valid_images, "valid_labels": valid_labels}
    return tree.digest(
        {
            "train_images": train_images,
            "train_labels": train_labels,
            "test_images": test_images,
            "test_labels": test_labels,
            "classes": names,
            **(given if len(valid_labels) else {}),
        }
    )


def _check_classes(classes: Sequence[str]) -> None:
    bad = [name for name in classes if not name or not name.isprintable()]
    if bad:
        raise UsageError(
            f"a class is named {one_line(repr(bad[0]))}; class names are printable text"
        )
    if not classes or len(set(classes)) < len(classes):
        raise UsageError(
            f"the class names are {one_line(list(classes))}; each class needs a name of its own"
        )


def check_split(split: str, data: Split, classes: int) -> None:
    """Raise a UsageError unless images and labels are of the right shapes and dtypes and as many as
    each other, and labels are below ``classes``.

    Args:
        split: what messages call it.
    """
    images, labels = data
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
        raise UsageError(
            f"the {split} images are {_describe(images)}; "
            f"they must be uint8 [N, 3, {SIDE}, {SIDE}] or uint8 [N, {SIDE}, {SIDE}, 3]"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise UsageError(f"the {split} labels are {_describe(labels)}; they must be integers [N]")
    if len(images) != len(labels):
        raise UsageError(
            f"the {split} split has {len(images)} images and {len(labels)} labels; "
            "every image needs one label"
        )
    if not len(images):
        return
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= classes:
        raise UsageError(
            f"the {split} labels run from {low} to {high}, but {classes} classes "
            f"have labels 0 to {classes - 1}"
        )


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
