"""A data set as a value, and what makes one valid."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import tree
from fcifar.errors import UserError, one_line

SIDE = 32  # pixels


class Split(NamedTuple):
    """The images of one half of a data set, with their labels."""

    images: Tensor  # uint8 [N, 3, 32, 32]
    labels: Tensor  # int64 [N]


class Content(NamedTuple):
    """What a reader finds in a source."""

    train: Split
    test: Split
    classes: tuple[str, ...]
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


def make_dataset(
    name: str, train: Split, test: Split, classes: Sequence[str], source: str
) -> Dataset:
    """A valid data set with its digest.

    Raises:
        UserError: a split is empty or of another shape or dtype, a label has no class, or class
            names are missing, repeated or unprintable.
    """
    check(train, test, classes)
    digest = content_digest(*train, *test, classes)
    return Dataset(name, *train, *test, tuple(classes), source, digest)


def check(train: Split, test: Split, classes: Sequence[str]) -> None:
    """Raise the UserError that ``make_dataset`` promises, without reading the images."""
    _check_classes(classes)
    _check_split("train", train, len(classes))
    _check_split("test", test, len(classes))


def content_digest(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    classes: Sequence[str],
) -> str:
    """SHA-256 of what a model can learn from: the four tensors and the class names in order.

    A data set's name and source do not count, so the same images imported from a folder and from
    an archive have the same digest.
    """
    names = torch.tensor(list(json.dumps(list(classes)).encode()), dtype=torch.uint8)
    return tree.digest(
        {
            "train_images": train_images,
            "train_labels": train_labels,
            "test_images": test_images,
            "test_labels": test_labels,
            "classes": names,
        }
    )


def _check_classes(classes: Sequence[str]) -> None:
    bad = [name for name in classes if not name or not name.isprintable()]
    if bad:
        raise UserError(
            f"a class is named {one_line(repr(bad[0]))}; class names are printable text"
        )
    if not classes or len(set(classes)) < len(classes):
        raise UserError(
            f"the class names are {one_line(list(classes))}; each class needs a name of its own"
        )


def _check_split(split: str, data: Split, classes: int) -> None:
    images, labels = data
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1:] != (3, SIDE, SIDE):
        raise UserError(
            f"the {split} images are {_describe(images)}; "
            f"they must be uint8 [N, 3, {SIDE}, {SIDE}] or uint8 [N, {SIDE}, {SIDE}, 3]"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise UserError(f"the {split} labels are {_describe(labels)}; they must be integers [N]")
    if len(images) != len(labels):
        raise UserError(
            f"the {split} split has {len(images)} images and {len(labels)} labels; "
            "every image needs one label"
        )
    if not len(images):
        raise UserError(f"the {split} split is empty; it needs at least one image")
    low, high = (int(extreme) for extreme in labels.aminmax())
    if low < 0 or high >= classes:
        raise UserError(
            f"the {split} labels run from {low} to {high}, but {classes} classes "
            f"have labels 0 to {classes - 1}"
        )


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
