"""One small data set, written in every form that can be imported."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")
RNG = np.random.default_rng(7)
# Rows are sorted by class, as folders give them: 5 batches of 3 for training, 6 for the test.
TRAIN_LABELS = np.repeat([0, 1, 2], 5)
TEST_LABELS = np.repeat([0, 1, 2], 2)
TRAIN_IMAGES = RNG.integers(0, 256, (15, 3, 32, 32), dtype=np.uint8)
TEST_IMAGES = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)

Files = dict[str, bytes]


def png(image: np.ndarray, mode: str = "RGB") -> bytes:
    """A channels-first image as a PNG, converted to ``mode`` first."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).convert(mode).save(
        stream, "PNG"
    )
    return stream.getvalue()


def class_folders() -> Files:
    files = {}
    for split, images, labels in (
        ("train", TRAIN_IMAGES, TRAIN_LABELS),
        ("test", TEST_IMAGES, TEST_LABELS),
    ):
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            files[f"{split}/{CLASSES[label]}/{row:04}.png"] = png(image)
    return files


def batch(images: np.ndarray, labels: np.ndarray, protocol: int = 2) -> bytes:
    rows = images.reshape(len(images), 3072)
    return pickle.dumps({b"data": rows, b"labels": labels.tolist(), b"batch_label": b"x"}, protocol)


def official(protocol: int = 2) -> Files:
    files = {
        f"data_batch_{i + 1}": batch(
            TRAIN_IMAGES[3 * i : 3 * i + 3], TRAIN_LABELS[3 * i : 3 * i + 3], protocol
        )
        for i in range(5)
    }
    files["test_batch"] = batch(TEST_IMAGES, TEST_LABELS, protocol)
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)}, protocol)
    return files


def python2_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 wrote the official ones: text and pixels are byte strings."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def whole(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    pixels = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01" + whole(len(images)) + whole(3072) + b"\x86"
        b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )
    numbers = b"](" + b"".join(whole(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def binary() -> Files:
    def records(images: np.ndarray, labels: np.ndarray) -> bytes:
        return b"".join(
            bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
        )

    files = {
        f"data_batch_{i + 1}.bin": records(
            TRAIN_IMAGES[3 * i : 3 * i + 3], TRAIN_LABELS[3 * i : 3 * i + 3]
        )
        for i in range(5)
    }
    files["test_batch.bin"] = records(TEST_IMAGES, TEST_LABELS)
    files["batches.meta.txt"] = ("\n".join(CLASSES) + "\n\n").encode()
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], *extra: tarfile.TarInfo) -> Path:
    """A tar, compressed if the name ends in "gz"; ``extra`` are members without content."""
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in extra:
            archive.addfile(entry)
    return path


def write_npz(path: Path, **changes: np.ndarray) -> Path:
    arrays = {
        "train_images": TRAIN_IMAGES,
        "train_labels": TRAIN_LABELS,
        "test_images": TEST_IMAGES,
        "test_labels": TEST_LABELS,
        "classes": np.array(CLASSES),
    }
    np.savez(path, **(arrays | changes))
    return path
