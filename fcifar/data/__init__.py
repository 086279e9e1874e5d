"""Images in: prepared data sets, and every way of preparing one."""

from typing import NamedTuple

from torch import Tensor


class Dataset(NamedTuple):
    """A prepared data set, in memory or memory-mapped."""

    name: str
    train_images: Tensor  # uint8 [N, 3, 32, 32]
    train_labels: Tensor  # int64 [N]
    test_images: Tensor  # uint8 [M, 3, 32, 32]
    test_labels: Tensor  # int64 [M]
    classes: tuple[str, ...]
    source: str  # where the images came from, for a person
    digest: str  # SHA-256 of content: see store.content_digest
