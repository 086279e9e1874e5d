"""Arrays in an ``.npz``, or ``.npy`` files in a folder: images and labels of each split.

``train_images``, ``train_labels``, ``test_images`` and ``test_labels``; ``val_images`` and
``val_labels`` are the given validation split. Other common spellings are read as well, such as
``x_train`` and ``y_train``; see ``parse``. ``classes`` may be there too; without it, classes are
called "0", "1", ...
"""

import io
import math
import re
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fcifar.data import image_files
from fcifar.data.dataset import EMPTY, SIDE, Content, Split
from fcifar.data.split import hold_out_test
from fcifar.data.throttle import Progress
from fcifar.errors import UsageError, one_line, reason

_MOST_CLASSES = 100_000  # a larger label is a mistake, and would make that many names
_SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
    "": ("",),  # of no split in particular
}
_KINDS = {
    "images": ("images", "image", "imgs", "data", "x"),
    "labels": ("labels", "label", "targets", "target", "y"),
}
_SPELLINGS = {
    spelling: (split, kind)
    for split, names in _SPLITS.items()
    for kind, words in _KINDS.items()
    for name in names
    for word in words
    for spelling in (name + word, word + name)
} | dict.fromkeys(("classes", "classnames", "labelnames"), ("", "classes"))
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
_IN_WORDS = {"train": "training", "valid": "validation", "test": "test"}


# What numpy raises for a header that is not one: it is parsed as a Python literal.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def parse(path: str) -> tuple[str, str] | None:
    """The split ("train", "valid", "test" or "") and kind ("images", "labels" or "classes") of the
    array in a file of that name, in any spelling; None if the name says neither.

    >>> from fcifar.data.readers.npz import parse
    >>> parse("train_images.npy"), parse("Y_test.npy"), parse("val/images.npy"), parse("fog.npy")
    (('train', 'images'), ('test', 'labels'), ('valid', 'images'), None)
    """
    if not path.endswith(".npy"):
        return None
    return _SPELLINGS.get(re.sub(r"[/_. -]", "", path.removesuffix(".npy").lower()))


def is_layout(files: Mapping[str, bytes]) -> bool:
    """Whether there is any array."""
    return any(path.endswith(".npy") for path in files)


def read(
    files: Mapping[str, bytes],
    resize: str | None = None,
    *,
    test_fraction: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> Content:
    """Images are uint8, [N, H, W] or with 1, 3 or 4 channels first or last; grey ones become RGB,
    and transparency is seen on white. Labels are whole numbers, [N] or [N, 1].

    With test arrays and no training arrays it is a test set alone. With training and validation
    arrays and no test arrays, the validation arrays are the test split.

    Args:
        resize: how images of other sizes become 32x32: a key of ``image_files.FITS``.
        test_fraction: of each class, to test with, where there are no test arrays.
        seed: of the key that chooses these.

    Returns:
        the splits, with ``preparation``: what was left out, and what was done to pixels.

    Raises:
        UsageError: an array is missing, damaged, or of another type or shape, or two arrays are the
            same one by their names.
    """
    found = _by_meaning(files)
    splits = {split for split, kind in found if kind != "classes"}
    if "test" in splits and test_fraction:
        raise UsageError("there are test images already; leave --test-fraction out")
    needed = {split: split for split in ("train", "valid", "test") if split in splits}
    if "train" not in splits and (test_fraction or {"", "test"} <= splits):
        needed = {"train": "" if "" in splits else "train"} | needed
    if needed.keys() == {"train", "valid"} and not test_fraction:
        needed = {"train": needed["train"], "test": "valid"}
    _check_complete(found, needed, test_fraction)
    arrays = {
        meaning: load_array(name, files[name])
        for meaning, name in found.items()
        if meaning[0] in needed.values() or meaning[1] == "classes"
    }
    parts = {
        split: make_split(
            split, arrays[there, "images"], arrays[there, "labels"], resize, progress=progress
        )
        for split, there in needed.items()
    }
    classes = class_names(arrays.get(("", "classes")), [part.labels for part in parts.values()])
    if test_fraction:
        parts["train"], parts["test"] = hold_out_test(parts["train"], classes, test_fraction, seed)
    used = {found[meaning] for meaning in arrays}
    tested = found["valid", "images"] if needed.get("test") == "valid" else ""
    preparation = {
        "images": sum(len(part.images) for part in parts.values()),
        **changes([arrays[there, "images"] for there in needed.values()]),
        "others": [
            path.removesuffix(".npy")
            for path in sorted(files)
            if path.endswith(".npy") and path not in used
        ],
        "test_from": tested.removesuffix(".npy"),
    }
    train, valid = parts.get("train", EMPTY), parts.get("valid", EMPTY)
    return Content(train, parts["test"], classes, valid, preparation)


def _by_meaning(files: Mapping[str, bytes]) -> dict[tuple[str, str], str]:
    """The name of each array that has a meaning. Raises a UsageError where two have the same."""
    found: dict[tuple[str, str], str] = {}
    for path in files:
        meaning = parse(path)
        if meaning is None:
            continue
        if meaning in found:
            raise UsageError(
                f"{one_line(found[meaning])} and {one_line(path)} are the same by their names; "
                "keep the one that counts"
            )
        found[meaning] = path
    return found


def _check_complete(
    found: Mapping[tuple[str, str], str], needed: Mapping[str, str], test_fraction: float
) -> None:
    """Raise a UsageError unless all arrays are there that ``read`` needs."""
    wanted = dict(needed)
    if not test_fraction:
        wanted.setdefault("test", "test")
    if "test" not in needed and "train" not in needed and not test_fraction:
        wanted = {"train": "train", **wanted}
    missing = [
        f"{f'{there}_' if there else ''}{kind}.npy"
        for there in wanted.values()
        for kind in _KINDS
        if (there, kind) not in found
    ]
    if not missing:
        return
    ways = ""
    if not test_fraction and {("", kind) for kind in _KINDS} <= found.keys() and not needed:
        ways = "; nothing says which images are to test with: add --test-fraction 0.1"
    elif not test_fraction and "train" in needed and "test" not in needed:
        ways = "; or add --test-fraction 0.1 for a part of the training images"
    raise UsageError(
        f"{', '.join(missing)} missing; an .npz needs the arrays train_images, train_labels, "
        f"test_images, test_labels{ways}"
    )


def load_array(name: str, data: bytes) -> np.ndarray:
    """A read-only array over the bytes of an ``.npy`` file. Arrays of objects are refused.

    Raises:
        UsageError: it is damaged, or needs pickle.
    """
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Python 2 wrote, for one
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which could run code")
        # numpy's own reader would allocate what the header claims before it looks.
        if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("its size is not what its header says")
        flat = np.frombuffer(data, dtype, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except _MALFORMED as error:
        raise UsageError(
            f"{name} cannot be read ({reason(error)}); save plain arrays with numpy.savez"
        ) from error


def make_split(
    split: str,
    images: np.ndarray,
    labels: np.ndarray,
    resize: str | None = None,
    *,
    progress: Progress = lambda *_: None,
) -> Split:
    """Images and labels as ``read`` takes them, as tensors. Raises a UsageError as it does.

    Args:
        split: "train", "valid" or "test", for messages.
    """
    return Split(_images(split, images, resize, progress), _labels(split, labels))


def _images(split: str, array: np.ndarray, resize: str | None, progress: Progress) -> torch.Tensor:
    """uint8 [N, 3, 32, 32]."""
    what = f"the {_IN_WORDS[split]} images are {one_line(array.dtype)} {list(array.shape)}"
    if array.dtype != np.uint8:
        raise UsageError(
            f"{what}; they must be uint8, 0 to 255; convert them, such as by "
            "numpy.rint(255 * images).astype('uint8') where they lie between 0 and 1"
        )
    array = _channels_last(array)
    if array.ndim != 4 or array.shape[3] not in _CHANNELS or 0 in array.shape[1:]:
        raise UsageError(
            f"{what}; they must be uint8 [N, 3, {SIDE}, {SIDE}] or uint8 [N, {SIDE}, {SIDE}, 3], "
            "or [N, H, W] with 1, 3 or 4 channels in the second or last place; reshape them"
        )
    height, width, channels = array.shape[1:]
    if (height, width) != (SIDE, SIDE) and resize is None:
        raise UsageError(
            f"{what}, and every image must be {SIDE}x{SIDE}, so add --resize crop or "
            "--resize stretch"
        )
    if (height, width) != (SIDE, SIDE) or channels == 4:
        array = _fitted(array, resize or "crop", progress)
    # A copy, for the bytes below are read-only, and in one order of memory.
    return torch.from_numpy(
        np.array(np.broadcast_to(array, (*array.shape[:3], 3)).transpose(0, 3, 1, 2), order="C")
    )


def _channels_last(array: np.ndarray) -> np.ndarray:
    """[N, H, W, C] of any form of images; what is of no such form, as it is."""
    if array.ndim == 3:
        return array[..., None]
    if array.ndim == 4 and array.shape[3] not in _CHANNELS and array.shape[1] in _CHANNELS:
        return array.transpose(0, 2, 3, 1)
    return array


def changes(arrays: Sequence[np.ndarray]) -> dict[str, Any]:
    """How many images had what done to them, as ``image_files.summed`` says it of files."""
    shapes = [_channels_last(array).shape for array in arrays]
    resized = sum(shape[0] for shape in shapes if shape[1:3] != (SIDE, SIDE))
    grey = sum(shape[0] for shape in shapes if shape[3] == 1)
    on_white = sum(
        int((_channels_last(array)[..., 3] < 255).any((1, 2)).sum())
        for array, shape in zip(arrays, shapes, strict=True)
        if shape[3] == 4
    )
    counts = {"on_white": on_white, "resized": resized}
    found: dict[str, Any] = {name: count for name, count in counts.items() if count}
    return {**found, **({"converted": {"L": grey}} if grey else {})}


def _fitted(array: np.ndarray, how: str, progress: Progress) -> np.ndarray:
    """[N, 32, 32, 3] of [N, H, W, C], as ``image_files.fit`` makes it."""
    from PIL import Image

    pixels = bytearray()
    for done, image in enumerate(array, 1):
        grey = image.shape[2] == 1
        pixels += image_files.fit(
            Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image)), how
        )
        progress("resizing images", done, len(array))
    return np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)


def _labels(split: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind not in "iu":
        raise UsageError(
            f"the {split} labels are {one_line(array.dtype)}; they must be whole numbers"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return torch.from_numpy(array.astype(np.int64))


def class_names(names: np.ndarray | None, labels: Sequence[torch.Tensor]) -> tuple[str, ...]:
    """Class names out of an array of text; without one, "0", "1", ... up to the largest label.

    Raises:
        UsageError: it is not a list of texts, or there are too many classes.
    """
    if names is not None:
        if names.dtype.kind not in "US" or names.ndim != 1:
            raise UsageError(
                f"classes is {one_line(names.dtype)} {list(names.shape)}; it must be a list of text"
            )
        if names.dtype.kind == "U":
            _check_letters(names)
        return tuple(
            name.decode("utf-8", "replace") if isinstance(name, bytes) else name
            for name in names.tolist()
        )
    highest = [int(part.max()) for part in labels if part.numel()]
    count = 1 + max(0, *highest, 0)
    if count > _MOST_CLASSES:
        raise UsageError(f"there is a label {count - 1}; labels number the classes from 0")
    return tuple(str(i) for i in range(count))


def _check_letters(names: np.ndarray) -> None:
    """Refuse invalid text: numpy accepts any code points, which Python cannot encode."""
    try:
        names.tobytes().decode("utf-32-be" if names.dtype.str[0] == ">" else "utf-32-le")
    except ValueError as error:
        raise UsageError("classes holds letters that are none; save it anew as text") from error
