"""Real images, where there are any: set FCIFAR_TEST_DATA to the folder of the two archives."""

import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from fcifar import data

FOLDER = Path(os.environ.get("FCIFAR_TEST_DATA", ""))
EXACT, JPEG = FOLDER / "cifar10-exact-subset.tar.gz", FOLDER / "cifar10-jpeg.tar.gz"
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(
        not (os.environ.get("FCIFAR_TEST_DATA") and EXACT.exists() and JPEG.exists()),
        reason="FCIFAR_TEST_DATA names no folder with the two archives",
    ),
]


def unpickled(member: str) -> dict[bytes, np.ndarray]:
    """What Python's own pickle makes of a batch."""
    with tarfile.open(EXACT) as archive, warnings.catch_warnings(action="ignore"):
        file = archive.extractfile(f"cifar-10-batches-py/{member}")
        assert file is not None
        return pickle.load(file, encoding="bytes")


def test_official_pixels_and_labels_are_exact(root: Path) -> None:
    dataset = data.import_source(EXACT, "exact", root)
    batches = [unpickled(f"data_batch_{i}") for i in range(1, 6)]
    pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[b"labels"] for batch in batches])
    test = unpickled("test_batch")
    assert np.array_equal(dataset.train_images.numpy(), pixels)
    assert np.array_equal(dataset.train_labels.numpy(), labels)
    assert np.array_equal(dataset.test_images.numpy(), test[b"data"].reshape(-1, 3, 32, 32))
    assert np.array_equal(dataset.test_labels.numpy(), test[b"labels"])
    assert dataset.classes == CIFAR10


def test_sixty_thousand_jpegs(root: Path) -> None:
    dataset = data.import_source(JPEG, "jpeg", root)
    assert dataset.classes == CIFAR10
    info = data.info("jpeg", root)
    assert info.train_counts == (5000,) * 10
    assert info.test_counts == (1000,) * 10
    assert info.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    # Each image, its place in the folders being unknown, is close to an exact one of its class.
    exact = unpickled("test_batch")
    planes = exact[b"data"][exact[b"labels"].index(3)].reshape(3, 32, 32).astype(float)
    cats = dataset.test_images[dataset.test_labels == 3].numpy()
    assert np.square(cats - planes).mean((1, 2, 3)).min() < 200
