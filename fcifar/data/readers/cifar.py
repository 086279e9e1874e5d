"""The official files: Python pickles of CIFAR-10 and CIFAR-100, binary records of CIFAR-10."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fcifar.data.dataset import SIDE, Content, Split
from fcifar.data.readers.safe_pickle import STEPS, load_pickle
from fcifar.errors import UsageError, one_line

PIXELS = 3 * SIDE * SIDE
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
META = "batches.meta"
PARTS_100 = ("meta", "train", "test")  # of CIFAR-100
LABELS = ("fine", "coarse")  # of CIFAR-100

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
"""The class names of CIFAR-10."""

CLASSES_100 = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle"),
    *("bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle"),
    *("caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch"),
    *("crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest"),
    *("fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower"),
    *("leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain"),
    *("mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear"),
    *("pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit"),
    *("raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk"),
    *("skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower"),
    *("sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train"),
    *("trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
)
"""The fine class names of CIFAR-100."""

_PART = re.compile(r"(?:.*/)?(data_batch_\d+|test_batch|batches\.meta)(\.bin|\.txt)?")
_PART_100 = re.compile(r"(?:[^/]+/)?(meta|train|test)")
_STEPS_100 = 2**19  # of a pickle: 50,000 rows with a name and two labels take 200,000


def is_part(path: str) -> bool:
    """Whether a file may be part of an official data set."""
    return _PART.fullmatch(path) is not None or _PART_100.fullmatch(path) is not None


def read(files: Mapping[str, bytes]) -> Content:
    """Read the Python version: batches with the keys ``data`` and ``labels``, and a meta file."""
    _require(files, (META, *TRAIN, TEST))
    *train, test = (_batch(name, files[name]) for name in (*TRAIN, TEST))
    return Content(_join(train), test, _names(META, files[META], "label_names"))


def read_100(files: Mapping[str, bytes], labels: str) -> Content:
    """Read CIFAR-100 with its 100 "fine" or 20 "coarse" ``labels``."""
    _require(files, PARTS_100)
    train, test = (
        _batch(name, files[name], f"{labels}_labels", _STEPS_100) for name in PARTS_100[1:]
    )
    return Content(train, test, _names("meta", files["meta"], f"{labels}_label_names"))


def read_binary(files: Mapping[str, bytes]) -> Content:
    """Read the binary version: records of a label byte and 3072 pixel bytes."""
    names = (f"{META}.txt", *(f"{name}.bin" for name in (*TRAIN, TEST)))
    _require(files, names)
    *train, test = (_records(name, files[name]) for name in names[1:])
    return Content(_join(train), test, tuple(files[names[0]].decode("utf-8", "replace").split()))


def _require(files: Mapping[str, bytes], names: Sequence[str]) -> None:
    if missing := [name for name in names if name not in files]:
        raise UsageError(
            f"{', '.join(missing)} missing beside {one_line(next(iter(files)))}; "
            f"the official form needs {', '.join(names)}"
        )


def _names(name: str, data: bytes, key: str) -> tuple[str, ...]:
    names = load_pickle(name, data).get(key)
    if not isinstance(names, list) or not all(isinstance(text, str) for text in names):
        raise UsageError(f"{name} has no list of {key}; it needs the class names in order")
    return tuple(names)


def _join(splits: list[Split]) -> Split:
    images, labels = zip(*splits, strict=True)
    return Split(torch.cat(images), torch.cat(labels))


def _records(name: str, data: bytes) -> Split:
    if not data or len(data) % (1 + PIXELS):
        raise UsageError(
            f"{name} has {len(data)} bytes; it needs records of {1 + PIXELS}, a label and 3x32x32"
        )
    rows = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS).copy())
    return Split(rows[:, 1:].reshape(-1, 3, SIDE, SIDE), rows[:, 0].long())


def _batch(name: str, data: bytes, key: str = "labels", steps: int = STEPS) -> Split:
    batch = load_pickle(name, data, steps)
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray):
        raise UsageError(f"{name} has no array as its data; it needs uint8 [N, {PIXELS}]")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        kind = f"{pixels.dtype} {list(pixels.shape)}"
        raise UsageError(f"{name} has {kind} as its data; it needs uint8 [N, {PIXELS}]")
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    # Labels that have no class are refused later; here they only have to fit in a tensor.
    is_list = isinstance(labels, list)
    if not is_list or any(type(n) is not int or abs(n) >= 2**31 for n in labels):
        raise UsageError(f"{name} has no list of whole numbers as its {key}; it needs one per row")
    if len(labels) != len(pixels):
        counts = f"{len(pixels)} rows of data and {len(labels)} labels"
        raise UsageError(f"{name} has {counts}; they must agree")
    images = torch.from_numpy(pixels.copy()).reshape(-1, 3, SIDE, SIDE)
    return Split(images, torch.tensor(labels, dtype=torch.int64))
